"""Prompts for parts of a picture: all of it is the plain prompt, halves differ where they should, nothing stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from pipelines.attention import BACKENDS, Choice
from pipelines.control.areas import at_places, shares
from pipelines.control.attention_hooks import attends_to_text
from pipelines.control.regions import CANNOT, joint_mask
from pipelines.families.sd1 import SD1
from pipelines.families.sdxl import SDXL
from pipelines.features import denoiser
from pipelines.processors import apply, attentions
from pipelines.request import GenerationRequest, Region, Start
from tests.checkpoints import save_checkpoint
from tests.controls import FullKit, distance, half, scene_of
from tests.drawing import draw
from tests.networks import numbers
from tests.test_dit import made

CPU = torch.device("cpu")
REQUEST = GenerationRequest(
    prompt="a cat", negative_prompt="rain", width=64, height=96, seed=3, steps=3, sampler="Euler", schedule="Karras"
)
DOG = REQUEST.model_copy(update={"prompt": "a dog on a hill"})
MASKS = {"half": half(), "picture": PIL.Image.new("RGB", (128, 64), "green"), "all": PIL.Image.new("L", (8, 8), 255)}


@pytest.fixture(scope="module")
def kit(tiny: Path) -> FullKit:
    return FullKit(SD1.load(tiny, CPU), {}, MASKS)


def split(*regions: Region, **more: Any) -> GenerationRequest:
    return REQUEST.model_copy(update={"regions": regions, **more})


def full_kits(tiny: Path, folder: Path) -> Iterator[FullKit]:
    yield FullKit(SD1.load(tiny, CPU), {}, MASKS)
    yield FullKit(SDXL.load(save_checkpoint(folder / "xl.safetensors", "sdxl", dtype=torch.float32), CPU), {}, MASKS)
    yield FullKit(made("flux"), {}, MASKS)


def test_a_region_that_is_all_of_it_is_the_plain_prompt(tiny: Path, tmp_path: Path) -> None:
    """With an area, a mask, and in U-Nets halves with the same text; in what the networks see, for all that can."""
    for kit in full_kits(tiny, tmp_path):
        model: Any = kit.model()
        flux = "transformer" in model.parts  # a millionth in what it is told changes so much in this tiny one
        halves = Region(prompt=DOG.prompt, area=(0, 0, 0.5, 1)), Region(prompt=DOG.prompt, area=(0.5, 0, 0.5, 1))
        for regions in (
            (Region(prompt=DOG.prompt),),
            (Region(prompt=DOG.prompt, mask="all"),),
            *([] if flux else [halves]),
        ):
            whole, plain = scene_of(kit, split(*regions)), scene_of(kit, DOG)
            x, level = numbers(1, *model.latent_shape(64, 96)), whole.sigmas[1]
            with torch.inference_mode(), denoiser(whole) as ours:
                found = ours(x, level)
            with torch.inference_mode(), denoiser(plain) as theirs:
                expected = theirs(x, level)
            assert torch.allclose(found, expected, atol=5e-3 if flux else 1e-5)
            assert distance(draw(kit, split(*regions))[0], draw(kit, DOG)[0]) <= (8 if flux else 1)
        with torch.inference_mode(), denoiser(scene_of(kit, REQUEST)) as other:
            assert not torch.allclose(found, other(x, level), atol=1e-2)


def test_a_region_without_weight_is_none(kit: FullKit) -> None:
    plain = draw(kit, REQUEST)[0].tobytes()
    before = [layer.processor for _, layer in attentions(kit.model().parts["unet"].module)]
    assert draw(kit, split(Region(prompt="a dog", weight=0)))[0].tobytes() == plain
    assert draw(kit, split(Region(prompt="a dog", area=(0, 0, 0.5, 1))))[0].tobytes() != plain
    assert [layer.processor for _, layer in attentions(kit.model().parts["unet"].module)] == before
    assert draw(kit, REQUEST)[0].tobytes() == plain


@pytest.mark.parametrize("backend", ["sdpa", "sliced"])
@torch.inference_mode()
def test_halves_attend_to_their_own_texts(kit: FullKit, backend: str) -> None:
    """One layer, place by place: the left is that of one prompt, the right that of the other; what is stayed away
    from is the same everywhere."""
    model: Any = kit.model()
    layers = {name: layer for name, layer in attentions(model.unet) if attends_to_text(name)}
    layer = layers["down_blocks.1.attentions.0.transformer_blocks.0.attn2"]
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    request = split(Region(prompt="a dog on a hill", area=(0.5, 0, 0.5, 1)))
    x = numbers(1, 4, 12, 8)
    apply(model.unet, Choice(backend))
    try:
        for asked in (request, REQUEST, DOG):
            with denoiser(scene_of(kit, asked)) as denoise:
                denoise(x, 3.0)
    finally:
        handle.remove()
        apply(model.unet, Choice("sdpa"))
    mixed, cat, dog = (each.reshape(2, 6, 4, -1) for each in seen)  # latents of 12 x 8, seen at half the size
    assert torch.allclose(mixed[0, :, :2], cat[0, :, :2], atol=1e-5)
    assert torch.allclose(mixed[0, :, 2:], dog[0, :, 2:], atol=1e-5)
    assert torch.allclose(mixed[1], cat[1], atol=1e-5)
    assert not torch.allclose(cat[0], dog[0], atol=1e-5)
    assert backend in BACKENDS


def test_a_batch_is_its_single_pictures(kit: FullKit) -> None:
    asked = split(Region(prompt="a dog", mask="half"), Region(prompt="[moon:sun:0.5] AND rain", area=(0, 0.5, 1, 0.5)))
    both = draw(kit, asked.model_copy(update={"batch_size": 2}))
    for unit, found in both.items():
        assert distance(found, draw(kit, asked.model_copy(update={"seed": 3 + unit}))[0]) <= 1
    assert [note for note in kit.notes if "AND is not for the prompts of regions" in note]


def test_shares_add_up(kit: FullKit) -> None:
    left, top = Region(prompt="a", area=(0, 0, 0.5, 1)), Region(prompt="b", area=(0, 0, 1, 0.5), weight=3)
    found = shares(scene_of(kit, split(left, top)), [left, top])
    assert torch.allclose(found.sum(0), torch.ones(12, 8))
    assert found[:, 0, 0].tolist() == [0, 0.25, 0.75]
    assert found[:, 0, 7].tolist() == [0, 0, 1]
    assert found[:, 11, 7].tolist() == [1, 0, 0]
    soft = Region(prompt="a", weight=0.25)
    assert shares(scene_of(kit, split(soft)), [soft])[:, 0, 0].tolist() == [0.75, 0.25]
    small = at_places(found, 3 * 2)
    assert torch.allclose(small.sum(0), torch.ones(6))
    with pytest.raises(ValueError, match="7 places"):
        at_places(found, 7)


def test_where_only_a_part_is_painted_areas_are_those_of_the_whole(kit: FullKit) -> None:
    start = Start(image="picture", mask="half", only_masked=True, padding=0, mask_blur=0, resize_mode="Just resize")
    left, right = Region(prompt="a", area=(0, 0, 0.5, 1)), Region(prompt="b", area=(0.5, 0, 0.5, 1))
    found = shares(scene_of(kit, split(left, right, start=start)), [left, right])
    assert found[1].mean() == 1  # the left half is what is painted


def test_masks_of_joint_attention_keep_texts_apart() -> None:
    found = joint_mask(torch.tensor([[1.0, 0.5], [0.0, 0.5]]), (1, 2)).exp()
    assert found[:3, :3].tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]
    assert found[3:].tolist() == [[1, 0, 0, 1, 1], [0.5, 0.5, 0.5, 1, 1]]
    assert torch.equal(found, found.T)


def test_models_that_cannot_say_so() -> None:
    kit = FullKit(made("qwen-image"), {}, MASKS)
    asked = split(Region(prompt="a dog"), steps=1)
    assert distance(draw(kit, asked)[0], draw(kit, REQUEST.model_copy(update={"steps": 1}))[0]) == 0
    assert CANNOT in kit.notes
