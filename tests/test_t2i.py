"""T2I adapters: the pictures of diffusers' own pipelines, from the layouts of both."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import PipelineError
from pipelines.families.sd1 import SD1
from pipelines.families.sdxl import SDXL
from pipelines.request import Control, GenerationRequest
from pipelines.types import Kind
from tests.checkpoints import TINY, save_checkpoint
from tests.controls import FullKit, distance, info, loud, picture, seeded
from tests.drawing import draw
from tests.reference import pipeline

CPU = torch.device("cpu")
REQUEST = GenerationRequest(
    prompt="a cat", negative_prompt="rain", width=64, height=96, seed=3, steps=3, sampler="Euler", schedule="Karras"
)
PICTURES = {"one": picture(seed=1)}


def adapter(kind: str, channels: tuple[int, ...], in_channels: int = 3) -> Any:
    from diffusers import T2IAdapter

    with seeded(0):
        factor = 16 if kind == "full_adapter_xl" else 8
        made = T2IAdapter(in_channels, list(channels), 2, factor, kind)
        loud(made)
    return made


def makers(name: str) -> str:
    """TencentARC's names: of a full adapter, layers are counted through all levels; light ones hold bodies."""
    name = name.removeprefix("adapter.")
    light = re.fullmatch(r"body\.(\d)\.resnets\.(\d)\.(.+)", name)
    entry = re.fullmatch(r"body\.(\d)\.in_conv\.(.+)", name)
    if light:
        return f"body.{int(light[1]) * 2 + int(light[2])}.{light[3]}"
    return f"body.{int(entry[1]) * 2}.in_conv.{entry[2]}" if entry else name


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_pictures_are_those_of_diffusers(tmp_path: Path, family: str) -> None:
    import diffusers

    file = save_checkpoint(tmp_path / "model.safetensors", family, dtype=torch.float32)
    xl = family == "sdxl"
    model: Any = (SDXL if xl else SD1).load(file, CPU)
    channels = TINY[family].unet.channels
    made = adapter("full_adapter_xl" if xl else "full_adapter", (*channels, channels[-1]) if xl else channels)
    made.save_pretrained(tmp_path / "net")
    own = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    save_file({makers(name): tensor for name, tensor in load_file(own).items()}, tmp_path / "makers.safetensors")
    files = {
        name: info(path, Kind.T2I_ADAPTER, family)
        for name, path in {"folder": tmp_path / "net", "makers": tmp_path / "makers.safetensors"}.items()
    }
    kit = FullKit(model, files, PICTURES)
    found, same = (
        draw(kit, REQUEST.model_copy(update={"controls": (Control(model=name, image="one", weight=0.8),)}))[0]
        for name in files
    )
    assert found.tobytes() == same.tobytes()
    plain = draw(kit, REQUEST)[0]
    assert distance(found, plain) > 2
    pipe = pipeline(file, tmp_path / "configs", family, torch_dtype=torch.float32)
    kind: Any = diffusers.StableDiffusionXLAdapterPipeline if xl else diffusers.StableDiffusionAdapterPipeline
    more = {} if xl else {"requires_safety_checker": False}
    parts = {name: part for name, part in pipe.components.items() if xl or name != "image_encoder"}
    theirs = kind(**parts, adapter=made, **more)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config, use_karras_sigmas=True)
    expected = theirs(
        "a cat",
        image=PICTURES["one"],
        negative_prompt="rain",
        width=64,
        height=96,
        num_inference_steps=3,
        guidance_scale=7.0,
        adapter_conditioning_scale=0.8,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert distance(found, expected) <= 1
    nothing = Control(model="folder", image="one", weight=0)
    assert draw(kit, REQUEST.model_copy(update={"controls": (nothing,)}))[0].tobytes() == plain.tobytes()


def test_light_ones_of_one_colour_and_what_does_not_fit(tmp_path: Path) -> None:
    model = SD1.load(save_checkpoint(tmp_path / "model.safetensors", dtype=torch.float32), CPU)
    channels = TINY["sd1"].unet.channels
    light = adapter("light_adapter", channels[:3], in_channels=1)
    light.save_pretrained(tmp_path / "light")
    adapter("full_adapter", (32, 64)).save_pretrained(tmp_path / "narrow")
    names = {"light": tmp_path / "light" / "diffusion_pytorch_model.safetensors", "narrow": tmp_path / "narrow"}
    kit = FullKit(model, {name: info(path, Kind.T2I_ADAPTER) for name, path in names.items()}, PICTURES)

    def drawn(name: str, **values: Any) -> Any:
        unit = Control(model=name, image="one", **values)
        return draw(kit, REQUEST.model_copy(update={"controls": (unit,)}))[0]

    assert distance(drawn("light"), draw(kit, REQUEST)[0]) > 0
    assert drawn("light").tobytes() != drawn("light", mode="ControlNet is more important").tobytes()
    with pytest.raises(PipelineError, match="made for another kind of checkpoint"):
        drawn("narrow")
