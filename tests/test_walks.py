"""From a request's noise and sampling to pictures: what is off changes nothing, what is asked for is done or said."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.families.base import LoadedModel
from pipelines.families.sd1 import SD1
from pipelines.kit import SoloKit
from pipelines.request import GenerationRequest, Noise, Sampling
from pipelines.samplers import Denoise
from pipelines.stages import stages
from pipelines.walks import unused
from tests.drawing import draw


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, torch.device("cpu"))


def request(**values: Any) -> GenerationRequest:
    defaults = {"prompt": "a cat", "negative_prompt": "rain", "width": 64, "height": 64, "steps": 3, "seed": 5}
    return GenerationRequest(**{"sampler": "Euler a", **defaults, **values})


def pixels(model: SD1, **values: Any) -> bytes:
    return draw(model, request(**values))[0].tobytes()


def test_what_is_off_changes_no_pixel(model: SD1) -> None:
    plain = pixels(model)
    assert pixels(model, noise=Noise(variation_seed=9, variation_strength=0.0)) == plain
    assert pixels(model, noise=Noise(resize_from=(64, 64))) == plain
    assert pixels(model, noise=Noise(resize_from=(128, 0))) == plain
    assert pixels(model, sampling=Sampling(eta=1.0, s_tmin=0.5, s_tmax=3.0)) == plain
    assert pixels(model, noise=Noise(rng="GPU")) == plain  # of a model on the CPU


@pytest.mark.parametrize(
    "values",
    [
        {"noise": Noise(variation_seed=9, variation_strength=0.3)},
        {"noise": Noise(resize_from=(128, 128))},
        {"noise": Noise(delta=31337)},
        {"noise": Noise(rng="NV")},
        {"sampling": Sampling(eta=0.5)},
        {"sampling": Sampling(s_noise=0.5)},
        {"sampling": Sampling(sgm_noise=True, sigma_max=1.0), "schedule": "Karras"},
        {"sampling": Sampling(sigma_min=0.5), "schedule": "Karras"},
        {"sampling": Sampling(rho=3), "schedule": "Karras"},
        {"sampling": Sampling(discard_penultimate=True)},
        {"sampling": Sampling(s_churn=2), "sampler": "Euler"},
    ],
)
def test_what_is_asked_for_counts(model: SD1, values: dict[str, Any]) -> None:
    part, default = next((name, type(value)()) for name, value in values.items() if name in ("noise", "sampling"))
    assert pixels(model, **values) != pixels(model, **{**values, part: default})


def test_the_whole_variation_is_the_picture_of_its_seed(model: SD1) -> None:
    """Without noise on the way; to rounding, since a circle is walked to its end."""
    varied, other = (
        draw(model, request(sampler="Euler", **values))[0]
        for values in ({"noise": Noise(variation_seed=9, variation_strength=1.0)}, {"seed": 9})
    )
    differences = [abs(one - two) for one, two in zip(varied.tobytes(), other.tobytes(), strict=True)]
    assert max(differences) <= 1


def test_variation_k_of_a_batch_is_that_of_variation_seed_plus_k(model: SD1) -> None:
    noise = Noise(variation_seed=9, variation_strength=0.3)
    batch = draw(model, request(batch_size=2, noise=noise))
    alone = draw(model, request(noise=noise.model_copy(update={"variation_seed": 10})))[0]
    assert max(abs(one - two) for one, two in zip(batch[1].tobytes(), alone.tobytes(), strict=True)) <= 1


def spread_at_first(model: SD1, **values: Any) -> tuple[float, float]:
    """The standard deviation of what the model is given first, and the noise level."""
    seen: list[tuple[float, float]] = []

    def watching(denoise: Denoise, loaded: LoadedModel, asked: GenerationRequest) -> Denoise:
        def inner(x: Tensor, sigma: float) -> Tensor:
            seen.append((float(x.std()), sigma))
            return denoise(x, sigma)

        return inner

    draw(model, request(**values), wrappers=(watching,))
    return seen[0]


def test_the_first_noise_may_count_as_a_picture_too(model: SD1) -> None:
    ends = Sampling(sigma_max=1.0)
    plain, sigma = spread_at_first(model, schedule="Karras", sampling=ends)
    assert sigma == 1.0
    widened, _ = spread_at_first(model, schedule="Karras", sampling=ends.model_copy(update={"sgm_noise": True}))
    assert widened / plain == pytest.approx(math.sqrt(2), rel=1e-4)
    ddim, _ = spread_at_first(model, schedule="Karras", sampling=ends, sampler="DDIM")
    assert ddim == pytest.approx(widened)


def test_cfg_plus_plus_sees_both_and_has_its_own_scale(model: SD1) -> None:
    """At 12.5, which is 1 there, the prompt alone says where to go, and still the other x0 counts."""
    seen: list[int] = []
    hook = model.unet.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    guided = pixels(model, sampler="DDIM CFG++", cfg_scale=12.5)
    hook.remove()
    assert seen == [2, 2, 2]
    assert guided != pixels(model, sampler="DDIM", cfg_scale=1.0)
    assert guided != pixels(model, sampler="DDIM CFG++", cfg_scale=12.5, negative_prompt="snow")


def test_what_does_nothing_is_said(model: SD1) -> None:
    kit = SoloKit(model)
    draw(kit, request(sampler="DPM++ 2M", sampling=Sampling(eta=0.5, s_churn=1)))
    assert kit.notes == ["DPM++ 2M takes no eta: it is not used.", "DPM++ 2M takes no sigma churn: it is not used."]
    [stage] = stages(request())
    assert unused(stage, Sampling(), True) == []
    assert unused(stage, Sampling(sgm_noise=True), False) == []
    assert unused(stage, Sampling(sigma_min=0.1, rho=3), False) == [
        "The schedule Uniform takes no sigma min and max: they are not used.",
        "The schedule Uniform takes no rho: it is not used.",
    ]
    assert unused(stages(request(schedule="Karras"))[0], Sampling(sigma_min=0.1, rho=3), False) == []
    assert "flow model" in unused(stage, Sampling(sgm_noise=True), True)[0]
