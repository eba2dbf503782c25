"""Tiny ControlNets and adapters with random weights, and a kit that has them and pictures at hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn

from pipelines.errors import ModelNotFound, PipelineError
from pipelines.families.base import LoadedModel
from pipelines.generate import canvas_of
from pipelines.kit import SoloKit
from pipelines.passes import Pass
from pipelines.request import GenerationRequest
from pipelines.scene import Kit, Scene
from pipelines.stages import stages
from pipelines.types import Format, Kind, ModelInfo


class FullKit(SoloKit):
    """One checkpoint, and the files and pictures that a request names."""

    def __init__(
        self, model: LoadedModel, files: Mapping[str, ModelInfo], images: Mapping[str, PIL.Image.Image] | None = None
    ) -> None:
        super().__init__(model)
        self.files, self.images = files, images or {}

    def file(self, kind: Kind, name: str) -> ModelInfo:
        if name not in self.files or self.files[name].kind != kind:
            raise ModelNotFound(f"There is no {kind} named {name!r} here.")
        return self.files[name]

    def image(self, name: str) -> PIL.Image.Image:
        if name not in self.images:
            raise PipelineError(f"There is no picture {name!r} here.")
        return self.images[name]


def scene_of(kit: Kit, request: GenerationRequest, name: str = "first") -> Scene:
    """Of a pass, for looking at; what it wears is off again."""
    stage = next(stage for stage in stages(request) if stage.name == name)
    one = Pass(request, stage, kit, range(request.units), canvas_of(request, kit))
    with one.staged(one.legs[0]) as scene:
        return scene


def info(path: Path, kind: Kind = Kind.CONTROLNET, family: str = "sd1", variant: str = "") -> ModelInfo:
    return ModelInfo(
        name=path.name, kind=kind, family=family, variant=variant, format=Format.SAFETENSORS, path=path, size_bytes=1
    )


def save_controlnet(folder: Path, unet: Any, seed: int = 0, **options: Any) -> Path:
    """In diffusers' layout, as wide as this U-Net, saying something from the start."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    with seeded(seed):
        network = ControlNetModel.from_unet(unet, **options)
        loud(network)
    network.save_pretrained(folder)
    return folder


def loud(module: nn.Module) -> None:
    """What is zero in a new network is drawn."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)


class seeded:  # noqa: N801 -- read as a word
    """Draws with a seed of its own, and leaves torch's as it was."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()
        torch.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._state)


def picture(width: int = 64, height: int = 96, seed: int = 0) -> PIL.Image.Image:
    """Colourful blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), np.uint8)
    return PIL.Image.fromarray(blocks).resize((width, height), PIL.Image.Resampling.NEAREST)


def half(width: int = 64, height: int = 96) -> PIL.Image.Image:
    """A mask, white on the left."""
    mask = PIL.Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def distance(one: PIL.Image.Image, other: PIL.Image.Image) -> int:
    """The largest difference of two pictures, in levels."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())
