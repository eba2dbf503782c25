"""The second pass: at a larger size, from what the first has made."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from pipelines.families.sd1 import SD1
from pipelines.generate import batches, generate
from pipelines.images.resize import LATENT_MODES
from pipelines.images.sd_upscale import tiles
from pipelines.images.upscale import upscaled
from pipelines.kit import SoloKit
from pipelines.request import GenerationRequest, Hires, Start, Tiled
from pipelines.stages import stages, total_steps
from pipelines.types import Kind, ModelInfo
from tests.drawing import draw
from tests.pixel_files import save_network
from tests.test_canvas import mask, noise
from tests.test_dit import made

CPU = torch.device("cpu")


class Kit(SoloKit):
    """One checkpoint, pictures and upscalers by name."""

    def __init__(self, model: Any, *files: ModelInfo, **pictures: PIL.Image.Image) -> None:
        super().__init__(model)
        self.files, self.pictures = {info.name: info for info in files}, pictures

    def file(self, kind: Kind, name: str) -> ModelInfo:
        return self.files[name]

    def image(self, name: str) -> PIL.Image.Image:
        return self.pictures[name]


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, CPU)


def request(hires: dict[str, Any] | None = None, **values: Any) -> GenerationRequest:
    settings = {"prompt": "a cat", "negative_prompt": "rain", "width": 64, "height": 64, "steps": 3, "seed": 5}
    return GenerationRequest(**{**settings, "hires": Hires(**(hires or {})), **values})


def first_latents(model: Any, asked: GenerationRequest) -> Tensor:
    """What the first pass makes, by its own last step."""
    seen: list[Tensor] = []
    plain = asked.model_copy(update={"hires": None, "sampler": "Euler"})
    kit = SoloKit(model)
    list(generate(plain, kit, batches(plain, [0], kit)[0], lambda index, x0: seen.append(x0)))
    return seen[-1]


@pytest.mark.parametrize("mode", LATENT_MODES)
@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_without_strength_a_latent_mode_is_the_picture_of_the_larger_latents(model: SD1, mode: str, name: str) -> None:
    family = model if name == "sd1" else made(name)
    asked = request({"upscaler": mode, "denoising_strength": 0}, sampler="Euler", cfg_scale=1)
    how = LATENT_MODES[mode]
    with torch.inference_mode():
        latents = first_latents(family, asked)
        large = functional.interpolate(latents, (16, 16), mode=how.mode, antialias=how.antialias)
        expected = family.decode(large[0])
    assert draw(family, asked)[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("upscaler", ["None", "Lanczos", "Nearest", "compact.safetensors"])
def test_without_strength_an_upscaler_is_the_larger_picture(model: SD1, tmp_path: Path, upscaler: str) -> None:
    kit = Kit(model, save_network(tmp_path, "compact"))
    asked = request({"upscaler": upscaler, "denoising_strength": 0}, batch_size=2)
    plain, large = draw(kit, asked.model_copy(update={"hires": None})), draw(kit, asked)
    for unit, picture in large.items():
        assert picture.tobytes() == upscaled(kit, plain[unit], upscaler, 128, 128).tobytes()


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_image_k_of_a_batch_is_the_single_image_of_seed_plus_k(model: SD1, upscaler: str) -> None:
    hires = {"upscaler": upscaler, "steps": 2}
    together, alone = draw(model, request(hires, batch_size=2)), draw(model, request(hires, seed=6))
    assert together[1].size == (128, 128)
    difference = np.abs(np.asarray(together[1]).astype(int) - np.asarray(alone[0]))
    assert difference.mean() < 0.1


@pytest.mark.parametrize(
    ("hires", "size"),
    [
        ({"scale": 1.5}, (144, 112)),
        ({"width": 128}, (128, 96)),
        ({"height": 128}, (168, 128)),
        ({"width": 128, "height": 128}, (128, 128)),
    ],
)
def test_sizes(model: SD1, hires: dict[str, Any], size: tuple[int, int]) -> None:
    for upscaler in ("Latent", "Lanczos"):
        asked = request({"steps": 1, "upscaler": upscaler, **hires}, height=72, width=96)
        assert draw(model, asked)[0].size == size


def test_both_sides_given_cut_off_what_sticks_out(model: SD1) -> None:
    asked = request({"upscaler": "Lanczos", "denoising_strength": 0, "width": 128, "height": 128}, height=72, width=96)
    plain = draw(model, asked.model_copy(update={"hires": None}))[0]
    large = plain.resize((171, 128), PIL.Image.Resampling.LANCZOS).crop((21, 0, 149, 128))
    assert draw(model, asked)[0].tobytes() == large.tobytes()


def test_the_second_pass_has_settings_of_its_own(model: SD1) -> None:
    plain = request({"steps": 2})
    pictures = {draw(model, plain)[0].tobytes()}
    for change in (
        {"steps": 4},
        {"denoising_strength": 0.3},
        {"sampler": "Euler a"},
        {"schedule": "Simple"},
        {"cfg_scale": 2},
        {"prompt": "a dog"},
        {"negative_prompt": "snow"},
    ):
        pictures.add(draw(model, request({"steps": 2, **change}))[0].tobytes())
    assert len(pictures) == 8
    assert draw(model, request({"steps": 2, "prompt": "a cat", "cfg_scale": 7}))[0].tobytes() in pictures


def test_progress_runs_over_both_passes(model: SD1) -> None:
    asked = request({"steps": 4, "denoising_strength": 0.5})
    steps: list[int] = []
    kit = SoloKit(model)
    list(generate(asked, kit, batches(asked, [0], kit)[0], lambda index, x0: steps.append(index)))
    assert steps == list(range(7))
    assert total_steps(asked) == 7
    assert [stage.walked_steps for stage in stages(asked)] == [3, 4]


def test_a_picture_with_a_mask_keeps_the_rest_in_large(model: SD1) -> None:
    picture, where = noise(64, 64), mask(64, 64, (0, 0, 64, 32))
    start = Start(image="picture", mask="mask", mask_blur=0)
    asked = request({"steps": 2, "upscaler": "Lanczos"}, start=start)
    result = draw(Kit(model, picture=picture, mask=where), asked)[0]
    large = picture.resize((128, 128), PIL.Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(result)[72:], np.asarray(large)[72:])
    part = asked.model_copy(update={"start": start.model_copy(update={"only_masked": True, "padding": 8})})
    result = draw(Kit(model, picture=picture, mask=where), part)[0]
    assert np.array_equal(np.asarray(result)[32:], np.asarray(picture)[32:])


# SD upscale


def tiled(tiled: dict[str, Any], strength: float = 0.4, **values: Any) -> GenerationRequest:
    start = Start(image="picture", denoising_strength=strength, tiled=Tiled(**tiled))
    return request().model_copy(update={"hires": None, "start": start, **values})


def test_sd_upscale_without_strength_is_the_larger_picture(model: SD1, tmp_path: Path) -> None:
    kit = Kit(model, save_network(tmp_path, "compact"), picture=noise(72, 60))
    for upscaler in ("Lanczos", "compact.safetensors"):
        result = draw(kit, tiled({"upscaler": upscaler, "overlap": 16}, strength=0))[0]
        assert np.abs(np.asarray(result).astype(int) - upscaled(kit, noise(72, 60), upscaler, 144, 120)).max() <= 1


def test_sd_upscale_paints_every_tile(model: SD1) -> None:
    picture = noise(12, 12).resize((72, 60), PIL.Image.Resampling.BICUBIC)
    kit, asked, steps = Kit(model, picture=picture), tiled({"overlap": 16}, batch_size=2), list[int]()
    made = dict(generate(asked, kit, batches(asked, [0, 1], kit)[0], lambda index, x0: steps.append(index)))
    assert steps == list(range(total_steps(asked) * 9))
    assert tiles(kit, asked) == 9
    assert made[0].size == (144, 120)
    large = np.asarray(picture.resize((144, 120), PIL.Image.Resampling.LANCZOS)).astype(int)
    changed = np.abs(np.asarray(made[0]) - large).mean(-1)
    blocks = changed.reshape(5, 24, 6, 24).mean((1, 3))
    assert blocks.min() > 1
    single = draw(kit, tiled({"overlap": 16}, seed=6))[0]
    assert np.abs(np.asarray(made[1]).astype(int) - np.asarray(single)).mean() < 0.1


@pytest.mark.parametrize("values", [{"mask": "m"}, {"only_masked": True}, {"outpaint": {"left": 8}}])
def test_what_does_not_go_with_sd_upscale_is_said(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="SD upscale"):
        Start(image="a", tiled=Tiled(), **values)
    with pytest.raises(ValidationError, match="SD upscale"):
        request(start=Start(image="a", tiled=Tiled()))
