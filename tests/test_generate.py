"""The recipe: what a batch is, that pictures repeat, and that nothing is computed twice."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from pipelines.conditioning import Told
from pipelines.errors import UnknownChoice
from pipelines.families.base import Cond, LoadedModel
from pipelines.families.sd1 import SD1
from pipelines.generate import Batch, batches
from pipelines.guidance import guided
from pipelines.kit import SoloKit
from pipelines.prompt import Term, Wording
from pipelines.request import GenerationRequest
from pipelines.samplers import SAMPLERS, Denoise, Sigmas
from pipelines.scene import Scene
from pipelines.stages import stages
from tests.drawing import draw

TELLING = ("Euler a", "DPM++ 2M", "DPM++ SDE", "DPM adaptive")
"""Fresh noise, past steps, a Brownian path, images one by one."""


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, torch.device("cpu"))


def request(**values: Any) -> GenerationRequest:
    defaults = {"prompt": "a cat", "negative_prompt": "rain", "width": 64, "height": 64, "steps": 4, "seed": 5}
    return GenerationRequest(**{**defaults, **values})


def difference(one: PIL.Image.Image, other: PIL.Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def test_batches_are_never_cut(model: SD1) -> None:
    asked, kit = request(batch_count=3, batch_size=2), SoloKit(model)
    whole = [Batch(range(0, 2), (0, 1)), Batch(range(2, 4), (2, 3)), Batch(range(4, 6), (4, 5))]
    assert batches(asked, range(6), kit) == whole
    assert batches(asked, (3, 4), kit) == [Batch(range(2, 4), (3,)), Batch(range(4, 6), (4,))]
    assert batches(asked, (), kit) == []


@pytest.mark.parametrize("sampler", TELLING)
def test_pictures_repeat(model: SD1, sampler: str) -> None:
    first, again = (draw(model, request(sampler=sampler)) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes()
    assert difference(first[0], draw(model, request(sampler=sampler, seed=6))[0]) > 5


@pytest.mark.parametrize("sampler", TELLING)
def test_image_k_of_a_batch_is_the_single_image_of_seed_plus_k(model: SD1, sampler: str) -> None:
    together = draw(model, request(sampler=sampler, batch_size=4))
    for unit, picture in together.items():
        alone = draw(model, request(sampler=sampler, seed=5 + unit))
        assert difference(picture, alone[0]) <= 1


@pytest.mark.parametrize("sampler", TELLING)
def test_the_rest_of_a_batch_has_the_same_pixels(model: SD1, sampler: str) -> None:
    """After a crash only what is missing is made, and it must be what would have been made without the crash."""
    asked = request(sampler=sampler, batch_count=2, batch_size=3)
    whole, rest = draw(model, asked), draw(model, asked, range(4, 6))
    assert list(rest) == [4, 5]
    assert all(rest[unit].tobytes() == whole[unit].tobytes() for unit in rest)


def test_every_sampler_draws_pictures_of_its_own(model: SD1) -> None:
    pictures = {draw(model, request(sampler=name, steps=6))[0].tobytes() for name in SAMPLERS}
    assert len(pictures) == len(SAMPLERS)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, [1] * 4), (7.0, [2] * 4), (0.0, [2] * 4)])
def test_one_pass_of_the_network_a_step(model: SD1, scale: float, rows: list[int]) -> None:
    """Both passes of guidance are one batch; without guidance there is only one."""
    seen: list[int] = []
    hook = model.unet.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    draw(model, request(cfg_scale=scale))
    hook.remove()
    assert seen == rows


def test_guidance_goes_from_the_negative_prompt_to_the_prompt() -> None:
    class Two:
        def predict(self, x: Tensor, sigma: float, cond: Cond) -> Tensor:
            return cond.tokens * torch.ones_like(x)

    def asked(wording: Wording, scale: float) -> Denoise:
        told = Told(Cond(torch.tensor([3.0, 1.0, 2.0])[:, None, None, None]), wording)
        stage = stages(request(cfg_scale=scale))[0]
        two: Any = Two()
        return guided(Scene(request(), stage, SoloKit(two), two, told, range(2), Sigmas([1.0, 0.0])))

    x = torch.zeros(2, 1, 1, 1)
    assert asked(Wording(("", "", ""), (Term((0,), 1.0),), (1,)), 2.5)(x, 1.0).flatten().tolist() == [6.0, 6.0]
    assert asked(Wording(("", "", ""), (Term((0,), 1.0),), ()), 1.0)(x, 1.0).flatten().tolist() == [3.0, 3.0]
    both = Wording(("", "", ""), (Term((0,), 1.0), Term((2,), -0.5)), (1,))  # 1 + 2.5 (2 - 0.5)
    assert asked(both, 2.5)(x, 1.0).flatten().tolist() == [4.75, 4.75]


def test_texts_are_encoded_once(model: SD1) -> None:
    kit, calls = SoloKit(model), []
    hook = model.text_encoder.register_forward_hook(lambda module, inputs, output: calls.append(1))
    first, again = (draw(kit, request(seed=5))[0] for _ in range(2))
    draw(kit, request(seed=6, steps=5))
    assert len(calls) == 1
    assert first.tobytes() == again.tobytes()
    draw(kit, request(prompt="a dog"))
    hook.remove()
    assert len(calls) == 2


def test_the_negative_prompt_counts(model: SD1) -> None:
    asked = request(cfg_scale=10)
    other = asked.model_copy(update={"negative_prompt": "snow and ice"})
    assert draw(model, asked)[0].tobytes() != draw(model, other)[0].tobytes()


def test_extensions_wrap_the_denoiser_outermost_last(model: SD1) -> None:
    order: list[str] = []

    def named(name: str) -> Any:
        def wrap(denoise: Denoise, loaded: LoadedModel, asked: GenerationRequest) -> Denoise:
            assert loaded is model
            assert asked.seed == 5

            def inner(x: Tensor, sigma: float) -> Tensor:
                order.append(name)
                return denoise(x, sigma)

            return inner

        return wrap

    asked = request(steps=2)
    wrapped = draw(model, asked, wrappers=(named("first"), lambda *_: None, named("second")))
    assert order == ["second", "first"] * 2
    assert wrapped[0].tobytes() == draw(model, asked)[0].tobytes()


def test_odd_sizes(model: SD1) -> None:
    assert draw(model, request(width=72, height=104, steps=1))[0].size == (72, 104)


@pytest.mark.parametrize("choice", [{"sampler": "Eular"}, {"schedule": "Karas"}])
def test_unknown_choices(model: SD1, choice: dict[str, str]) -> None:
    with pytest.raises(UnknownChoice, match="Choose one of: "):
        draw(model, request(**choice))
