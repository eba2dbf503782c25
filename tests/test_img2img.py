"""From picture to picture, with real networks: what starts from a picture, and what is left alone."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from pipelines.families.sd1 import SD1
from pipelines.generate import batches, generate
from pipelines.kit import SoloKit
from pipelines.request import GenerationRequest, Start
from pipelines.samplers import SAMPLERS
from tests.drawing import draw
from tests.test_canvas import mask, noise
from tests.test_dit import ROWS, made


class Kit(SoloKit):
    """One checkpoint, and pictures by name."""

    def __init__(self, model: Any, **pictures: PIL.Image.Image) -> None:
        super().__init__(model)
        self.pictures = pictures

    def image(self, name: str) -> PIL.Image.Image:
        return self.pictures[name]


PICTURE = noise(64, 64).resize((8, 8)).resize((64, 64), PIL.Image.Resampling.BICUBIC)
BLACK, WHITE = PIL.Image.new("L", (64, 64)), PIL.Image.new("L", (64, 64), 255)
HALF = mask(64, 64, (0, 0, 64, 32))


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, torch.device("cpu"))


def request(start: dict[str, Any] | None = None, **values: Any) -> GenerationRequest:
    settings = {"prompt": "a cat", "negative_prompt": "rain", "width": 64, "height": 64, "steps": 4, "seed": 5}
    begin = {"image": "picture", "denoising_strength": 0.6, "mask_blur": 0, **(start or {})}
    return GenerationRequest(**{**settings, "start": Start(**begin), **values})


def drawn(model: Any, asked: GenerationRequest, **pictures: PIL.Image.Image) -> PIL.Image.Image:
    return draw(Kit(model, **{"picture": PICTURE, **pictures}), asked)[0]


def watched(kit: Kit, asked: GenerationRequest) -> list[Tensor]:
    """What the denoiser gave at each step."""
    seen: list[Tensor] = []
    for batch in batches(asked, range(asked.units)):
        list(generate(asked, kit, batch, lambda index, x0: seen.append(x0)))
    return seen


def difference(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean())


@pytest.mark.parametrize("all_steps", [False, True])
def test_strength_0_is_the_picture_itself(model: SD1, all_steps: bool) -> None:
    asked = request({"denoising_strength": 0, "all_steps": all_steps})
    assert drawn(model, asked).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("name", ROWS)
def test_the_less_strength_the_more_of_the_picture_in_every_family(name: str) -> None:
    """The autoencoders have random weights: what is compared with is what they make of the picture."""
    family = made(name)
    with torch.inference_mode():
        seen = family.decode(family.to_latent(torch.tensor(np.array(PICTURE)).permute(2, 0, 1)[None] / 255)[0])
    far = [
        difference(
            drawn(family, request({"denoising_strength": strength}, sampler="Euler", cfg_scale=1, steps=5)), seen
        )
        for strength in (0.2, 0.6, 1.0)
    ]
    assert far == sorted(far)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_k_of_a_batch_is_the_single_image_of_seed_plus_k(model: SD1, sampler: str) -> None:
    kit = Kit(model, picture=PICTURE, mask=HALF)
    for start in ({}, {"mask": "mask", "masked_content": "latent noise"}):
        together = draw(kit, request(start, sampler=sampler, batch_size=2))
        alone = draw(kit, request(start, sampler=sampler, seed=6))[0]
        assert difference(together[1], alone) < 0.1
        assert together[0].tobytes() != together[1].tobytes()


@pytest.mark.parametrize(("strength", "every", "walked"), [(0.75, False, 16), (1, False, 20), (0.3, True, 20)])
def test_steps_are_counted_as_in_a1111(model: SD1, strength: float, every: bool, walked: int) -> None:
    start = {"denoising_strength": strength, "all_steps": every}
    assert len(watched(Kit(model, picture=PICTURE), request(start, steps=20, sampler="Euler"))) == walked


def test_noise_multiplier_and_latent_resize_make_other_pictures(model: SD1) -> None:
    plain = drawn(model, request())
    assert drawn(model, request({"noise_multiplier": 1.0})).tobytes() == plain.tobytes()
    assert drawn(model, request({"noise_multiplier": 0.5})).tobytes() != plain.tobytes()
    small = PICTURE.resize((32, 48))
    just, latent = (
        drawn(model, request({"resize_mode": mode}), picture=small)
        for mode in ("Just resize", "Just resize (latent upscale)")
    )
    assert just.size == latent.size == (64, 64)
    assert just.tobytes() != latent.tobytes()


@pytest.mark.parametrize("name", ["sd1", "flux", "qwen-image"])
def test_a_black_mask_is_the_original_and_a_white_one_plain_img2img(model: SD1, name: str) -> None:
    family = model if name == "sd1" else made(name)
    plain = drawn(family, request())
    assert drawn(family, request({"mask": "mask"}), mask=WHITE).tobytes() == plain.tobytes()
    assert drawn(family, request({"mask": "mask"}), mask=BLACK).tobytes() == PICTURE.tobytes()
    assert drawn(family, request({"mask": "mask", "mask_invert": True}), mask=WHITE).tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize("content", ["fill", "original", "latent noise", "latent nothing"])
@pytest.mark.parametrize("only_masked", [False, True])
def test_inpainting_leaves_the_rest_bit_for_bit(model: SD1, content: str, only_masked: bool) -> None:
    start = {"mask": "mask", "masked_content": content, "only_masked": only_masked, "padding": 8}
    result = np.asarray(drawn(model, request(start), mask=HALF))
    assert (result[32:] == np.asarray(PICTURE)[32:]).all()
    assert (result[:32] != np.asarray(PICTURE)[:32]).mean() > 0.5


def test_the_latents_outside_of_the_mask_are_the_original_at_every_step(model: SD1) -> None:
    seen = watched(Kit(model, picture=PICTURE, mask=HALF), request({"mask": "mask"}))
    with torch.inference_mode():
        original = model.to_latent(torch.tensor(np.array(PICTURE)).permute(2, 0, 1)[None] / 255)
    assert all(torch.equal(x0[..., 4:, :], original[..., 4:, :]) for x0 in seen)
    assert all(not torch.equal(x0[..., :4, :], original[..., :4, :]) for x0 in seen)
