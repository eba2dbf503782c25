"""From picture to picture, with real networks: what starts from a picture, and what is left alone."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from pipelines.decoding import VAEWork
from pipelines.errors import PipelineError
from pipelines.families.flow import patches
from pipelines.families.sd1 import SD1
from pipelines.generate import batches, generate
from pipelines.images.resize import to_pixels
from pipelines.kit import SoloKit
from pipelines.memory.fitting import Fitted
from pipelines.memory.planner import Plan
from pipelines.prompt import read
from pipelines.request import GenerationRequest, Start
from pipelines.samplers import SAMPLERS
from pipelines.types import Assignment, Event, Picture
from tests.checkpoints import save_checkpoint
from tests.drawing import draw
from tests.test_canvas import mask, noise
from tests.test_dit import ROWS, made
from tests.tiny import boot, info
from webui.outputs import Outputs


class Kit(SoloKit):
    """One checkpoint, and pictures by name."""

    def __init__(self, model: Any, **pictures: PIL.Image.Image) -> None:
        super().__init__(model)
        self.pictures = pictures

    def image(self, name: str) -> PIL.Image.Image:
        return self.pictures[name]


CPU = torch.device("cpu")
PICTURE = noise(64, 64).resize((8, 8)).resize((64, 64), PIL.Image.Resampling.BICUBIC)
BLACK, WHITE = PIL.Image.new("L", (64, 64)), PIL.Image.new("L", (64, 64), 255)
HALF = mask(64, 64, (0, 0, 64, 32))


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, CPU)


def request(start: dict[str, Any] | None = None, **values: Any) -> GenerationRequest:
    settings = {"prompt": "a cat", "negative_prompt": "rain", "width": 64, "height": 64, "steps": 4, "seed": 5}
    begin = {"image": "picture", "denoising_strength": 0.6, "mask_blur": 0, **(start or {})}
    return GenerationRequest(**{**settings, "start": Start(**begin), **values})


def drawn(model: Any, asked: GenerationRequest, **pictures: PIL.Image.Image) -> PIL.Image.Image:
    return draw(Kit(model, **{"picture": PICTURE, **pictures}), asked)[0]


def watched(kit: Kit, asked: GenerationRequest) -> list[Tensor]:
    """What the denoiser gave at each step."""
    seen: list[Tensor] = []
    for batch in batches(asked, range(asked.units), kit):
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


def test_soft_inpainting(model: SD1) -> None:
    soft = {"mask": "mask", "soft": {}}
    ramp = PIL.Image.linear_gradient("L").resize((64, 64))
    result = np.asarray(drawn(model, request(soft), mask=ramp)).astype(int)
    changed = np.abs(result - np.asarray(PICTURE)).mean((1, 2))
    assert changed[40:].mean() > changed[8:24].mean()
    assert drawn(model, request(soft), mask=BLACK).tobytes() == PICTURE.tobytes()
    far = np.asarray(drawn(model, request(soft), mask=mask(64, 64, (0, 0, 64, 8))))
    assert (far[56:] == np.asarray(PICTURE)[56:]).all()
    more = drawn(model, request({**soft, "soft": {"preservation": 4}}), mask=ramp)
    assert difference(more, PICTURE) < float(np.abs(result - np.asarray(PICTURE)).mean())
    for only_masked in (False, True):
        start = {**soft, "only_masked": only_masked}
        assert drawn(made("flux"), request(start, cfg_scale=1), mask=ramp).size == (64, 64)


# What networks see beside the latents


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> SD1:
    return SD1.load(save_checkpoint(tmp_path_factory.mktemp("sd1") / "paint.safetensors", inputs=9), CPU)


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> SD1:
    return SD1.load(save_checkpoint(tmp_path_factory.mktemp("sd1") / "edit.safetensors", inputs=8), CPU)


def test_a_model_for_inpainting_sees_mask_and_picture(painter: SD1) -> None:
    seen: list[Tensor] = []
    hook = painter.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    result = np.asarray(drawn(painter, request({"mask": "mask"}), mask=HALF))
    drawn(painter, request())
    hook.remove()
    assert (result[32:] == np.asarray(PICTURE)[32:]).all()
    hidden = np.array(PICTURE)
    hidden[:32] = 127.5
    with torch.inference_mode():
        shown = painter.to_latent(torch.tensor(hidden).permute(2, 0, 1)[None] / 255)
    assert seen[0].shape == (2, 9, 8, 8)
    assert seen[0][0, 4, :, 0].tolist() == [1] * 4 + [0] * 4
    assert torch.allclose(seen[0][:, 5:], shown.expand(2, -1, -1, -1), atol=0.02)
    assert seen[-1][0, 4].min() == 1  # without a mask everything is painted, and nothing is shown
    weak = drawn(painter, request({"mask": "mask", "mask_weight": 0}), mask=HALF)
    assert weak.tobytes() != drawn(painter, request({"mask": "mask"}), mask=HALF).tobytes()


def test_flux_fill_sees_mask_and_picture() -> None:
    fill, seen = made("flux-fill"), []
    hook = fill.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    result = np.asarray(drawn(fill, request({"mask": "mask"}, cfg_scale=1), mask=HALF))
    hook.remove()
    assert (result[32:] == np.asarray(PICTURE)[32:]).all()
    assert seen[0].shape == (1, 16, 384)
    assert seen[0][0, :8, 128:].min() == 1
    assert not seen[0][0, 8:, 128:].any()
    with torch.inference_mode():
        blank = fill.beside(torch.full((1, 3, 64, 64), 0.5), torch.ones(1, 1, 64, 64))
    assert not torch.equal(seen[0][0, :, 64:128], patches(blank)[0, :, :64])


def test_editing_by_instruction_is_guided_twice(editor: SD1) -> None:
    """Brooks et al. 2023, equation 3, against three calls of the network, one after another."""
    rows: list[Tensor] = []
    hook = editor.unet.register_forward_pre_hook(lambda module, args: rows.append(args[0]))
    asked = request({"image_cfg_scale": 2.0}, cfg_scale=5.0, steps=1, sampler="Euler")
    seen = watched(Kit(editor, picture=PICTURE), asked)[0]
    hook.remove()
    latents, beside = rows[0][:, :4], rows[0][:, 4:]
    assert torch.equal(latents[0], latents[2])
    assert not beside[2].any()
    sigma = editor.levels.high
    x = latents[:1] * (sigma**2 + 1) ** 0.5
    with torch.inference_mode():
        cond = editor.encode([read("a cat"), read("rain")])
        picture = editor.to_latent(to_pixels(PICTURE)) / editor.vae.config.scaling_factor
        assert torch.allclose(beside[:1], picture, atol=1e-6)
        both, image, nothing = (
            told_beside(editor, x, sigma, cond.take([row]), shown)
            for row, shown in ((0, picture), (1, picture), (1, torch.zeros_like(picture)))
        )
    expected = nothing + 2 * (image - nothing) + 5 * (both - image)
    assert torch.allclose(seen, expected, atol=1e-3)


def told_beside(model: SD1, x: Tensor, sigma: float, cond: Any, beside: Tensor) -> Tensor:
    with model.asides.joined(lambda call: replace(call, beside=beside)):
        return model.predict(x, sigma, cond)


def test_editing_with_the_network_split_in_two_is_the_same(editor: SD1) -> None:
    asked = request({"image_cfg_scale": 2.0}, batch_size=2)
    whole = draw(Kit(editor, picture=PICTURE), asked)
    plan = Plan(split_cfg=True, host=True)
    split = draw(Kit(Fitted(editor, plan, VAEWork(editor.parts["vae"], CPU)), picture=PICTURE), asked)
    assert all(difference(whole[unit], split[unit]) < 0.1 for unit in whole)


def test_without_a_picture_there_is_nothing_to_edit(editor: SD1) -> None:
    with pytest.raises(PipelineError, match="give it one to start from"):
        draw(editor, request().model_copy(update={"start": None}))


def test_what_no_mask_covers_is_the_same_in_the_saved_file(tiny: Path, tmp_path: Path) -> None:
    """Through a worker, as a job would be made, and onto the disk."""
    images = {}
    for name, picture in (("picture", PICTURE), ("mask", HALF)):
        data = io.BytesIO()
        picture.save(data, "PNG")
        images[name] = data.getvalue()
    work = Assignment(job=1, task=request({"mask": "mask"}), model=info(tiny), units=(0,), images=images)
    events: list[Event] = []
    boot({"device": "cpu"}).run(work, events.append, lambda: None, lambda status: None)
    [made_png] = [event.png for event in events if isinstance(event, Picture)]
    Outputs(tmp_path, "png", 90).write("a.png", made_png, "an infotext")
    with PIL.Image.open(tmp_path / "a.png") as saved:
        assert (np.asarray(saved)[32:] == np.asarray(PICTURE)[32:]).all()
        assert (np.asarray(saved)[:32] != np.asarray(PICTURE)[:32]).mean() > 0.5
