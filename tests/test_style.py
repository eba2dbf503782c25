"""Style without weights: seen through self-attention, where and when it counts, and gone afterwards."""

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from torch import Tensor

from pipelines.control.references import styles
from pipelines.control.style import CANNOT, adain
from pipelines.errors import PipelineError
from pipelines.families.sd1 import SD1
from pipelines.families.sdxl import SDXL
from pipelines.features import denoiser
from pipelines.processors import attentions
from pipelines.request import Control, GenerationRequest, Reference, Region
from tests.checkpoints import save_checkpoint
from tests.controls import FullKit, distance, half, info, picture, save_controlnet, scene_of
from tests.drawing import draw
from tests.networks import numbers
from tests.test_dit import made

CPU = torch.device("cpu")
REQUEST = GenerationRequest(
    prompt="a cat", negative_prompt="rain", width=64, height=96, seed=3, steps=3, sampler="Euler", schedule="Karras"
)
PICTURES = {
    "one": picture(seed=1),
    "two": picture(128, 64, seed=2),
    "half": half(),
    "none": PIL.Image.new("L", (64, 96)),
    "all": PIL.Image.new("L", (64, 96), 255),
}
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def kit(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> FullKit:
    model = SD1.load(tiny, CPU)
    net = save_controlnet(
        tmp_path_factory.mktemp("nets") / "net", model.unet, conditioning_embedding_out_channels=(4, 8, 8, 16)
    )
    return FullKit(model, {"net": info(net)}, PICTURES)


def like(*references: Reference, **more: Any) -> GenerationRequest:
    return REQUEST.model_copy(update={"references": references, **more})


def answer(kit: FullKit, request: GenerationRequest, layer: str = LAYER) -> Tensor:
    """Of one self-attention layer in one step, for the rows of the picture itself: prompt, then negative prompt."""
    model: Any = kit.model()
    seen: list[Tensor] = []
    handle = dict(attentions(model.unet))[layer].register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.inference_mode(), denoiser(scene_of(kit, request)) as denoise:
            denoise(numbers(1, 4, 12, 8), 3.0)
    finally:
        handle.remove()
    return seen[0][:2]


def test_what_does_not_count_is_not_there(kit: FullKit) -> None:
    plain = draw(kit, REQUEST)[0]
    full = Reference(image="one")
    for nothing in ({"weight": 0}, {"start": 0.5, "end": 0.5}):
        assert draw(kit, like(full.model_copy(update=nothing)))[0].tobytes() == plain.tobytes()
    assert distance(draw(kit, like(full.model_copy(update={"mask": "none"})))[0], plain) <= 1
    before = [layer.processor for _, layer in attentions(kit.model().parts["unet"].module)]
    assert distance(draw(kit, like(full))[0], plain) > 1
    assert [layer.processor for _, layer in attentions(kit.model().parts["unet"].module)] == before
    assert draw(kit, REQUEST)[0].tobytes() == plain.tobytes()


def test_a_mask_and_the_weight_say_where_and_how_much(kit: FullKit) -> None:
    plain = answer(kit, REQUEST)
    full = answer(kit, like(Reference(image="one", fidelity=0)))
    masked = answer(kit, like(Reference(image="one", fidelity=0, mask="half")))
    places = [each.reshape(2, 6, 4, -1) for each in (plain, full, masked)]
    assert torch.allclose(places[2][:, :, :2], places[1][:, :, :2], atol=1e-5)
    assert torch.allclose(places[2][:, :, 2:], places[0][:, :, 2:], atol=1e-5)
    nearly = answer(kit, like(Reference(image="one", fidelity=0, weight=1e-6)))
    assert torch.allclose(nearly, plain, atol=1e-4)
    assert not torch.allclose(full, plain, atol=1e-3)


def test_fidelity_spares_what_is_stayed_away_from(kit: FullKit) -> None:
    plain, none, some, whole = (
        answer(kit, request)
        for request in (REQUEST, *(like(Reference(image="one", fidelity=value)) for value in (0.0, 0.5, 1.0)))
    )
    assert torch.allclose(whole[1], plain[1], atol=1e-6)
    assert torch.allclose(some[1], (plain[1] + none[1]) / 2, atol=1e-5)
    assert torch.allclose(whole[0], none[0], atol=1e-6)


def test_several_share_a_place(kit: FullKit) -> None:
    one, two = (Reference(image=name, fidelity=0) for name in ("one", "two"))
    both = answer(kit, like(one, two))
    assert torch.allclose(both, (answer(kit, like(one)) + answer(kit, like(two))) / 2, atol=1e-5)
    assert torch.allclose(answer(kit, like(one, one)), answer(kit, like(one)), atol=1e-5)


def test_statistics_are_taken_over() -> None:
    values, other = numbers(2, 3, 50, 4), numbers(1, 3, 50, 4) * 3 + 7
    found = adain(values, other)
    assert torch.allclose(found.mean(2), other.mean(2).expand(2, -1, -1), atol=1e-3)
    assert torch.allclose(found.std(2), other.std(2).expand(2, -1, -1), atol=1e-3)
    assert torch.allclose(adain(values, values), values, atol=1e-4)


@pytest.mark.parametrize("module", ["reference_only", "reference_adain", "reference_adain+attn"])
def test_units_of_a1111_mean_the_same(kit: FullKit, module: str) -> None:
    method = {"reference_only": "attention", "reference_adain": "adain"}.get(module, "adain+attention")
    unit = Control(image="one", module=module, model="None", threshold_a=0.2, weight=0.8)
    asked = REQUEST.model_copy(update={"controls": (unit,)})
    assert [(each.method, each.fidelity) for each in styles(asked)] == [(method, 0.2)]
    same = like(Reference(image="one", method=method, fidelity=0.2, weight=0.8))
    assert draw(kit, asked)[0].tobytes() == draw(kit, same)[0].tobytes()
    with pytest.raises(PipelineError, match="no picture to refer to"):
        draw(kit, REQUEST.model_copy(update={"controls": (Control(module=module),)}))


def test_a_batch_is_its_single_pictures_with_everything_at_once(kit: FullKit) -> None:
    """A style, a ControlNet that spares a side, a region, a prompt longer than a chunk."""
    asked = like(
        Reference(image="one", mask="half"),
        Reference(image="two", start=0.3, method="adain"),
        prompt="a cat " * 40,
        controls=(Control(model="net", image="one", mode="ControlNet is more important"),),
        regions=(Region(prompt="a dog", area=(0, 0, 1, 0.5)),),
    )
    both = draw(kit, asked.model_copy(update={"batch_size": 2}))
    for unit, found in both.items():
        assert distance(found, draw(kit, asked.model_copy(update={"seed": 3 + unit}))[0]) <= 1


def test_sdxl_does_it_and_transformers_say_that_they_cannot(tmp_path: Path) -> None:
    sdxl = SDXL.load(save_checkpoint(tmp_path / "xl.safetensors", "sdxl", dtype=torch.float32), CPU)
    kit = FullKit(sdxl, {}, PICTURES)
    assert distance(draw(kit, like(Reference(image="one")))[0], draw(kit, REQUEST)[0]) > 0
    kit = FullKit(made("flux"), {}, PICTURES)
    asked = like(Reference(image="one"), steps=1)
    assert distance(draw(kit, asked)[0], draw(kit, REQUEST.model_copy(update={"steps": 1}))[0]) == 0
    assert kit.notes == [CANNOT]
