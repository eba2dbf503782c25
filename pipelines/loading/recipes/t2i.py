"""T2I adapters (Mou et al. 2023): full and light ones of SD 1, and SDXL's, in TencentARC's layout or in diffusers'."""

import re
from typing import Any

from diffusers.models.adapter import T2IAdapter
from torch import Tensor, nn

from pipelines.loading.parts import Config, Recipe, Tensors
from pipelines.loading.recipes.ldm import settings
from pipelines.loading.recipes.shapes import Shapes

OWN = "adapter."
"""diffusers puts this before all names."""
LAYERS = 2
"""Of each level of a full adapter, which TencentARC counts through."""
FACTORS = {64: 8, 192: 8, 256: 16, 768: 16}
"""Numbers that the first layer sees of a place -> pixels along its side: of one colour or three."""

LIGHT_LAYER = re.compile(r"body\.(\d+)\.body\.(\d+)\.(.+)")
FULL_LAYER = re.compile(r"body\.(\d+)\.(block\d\..+)")
FULL_ENTRY = re.compile(r"body\.(\d+)\.(in_conv\..+)")


def _names(tensors: Tensors) -> Tensors:
    if any(name.startswith(OWN) for name in tensors):
        return tensors
    if any(".resnets." in name for name in tensors):
        return {OWN + name: tensor for name, tensor in tensors.items()}
    light = any(".out_conv." in name for name in tensors)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        named[OWN + (_light(name) if light else _full(name))] = tensor
    return named


def _light(name: str) -> str:
    return LIGHT_LAYER.sub(r"body.\1.resnets.\2.\3", name)


def _full(name: str) -> str:
    if found := FULL_LAYER.fullmatch(name):
        level, layer = divmod(int(found[1]), LAYERS)
        return f"body.{level}.resnets.{layer}.{found[2]}"
    found = FULL_ENTRY.fullmatch(name)
    return f"body.{int(found[1]) // LAYERS}.{found[2]}" if found else name


def _config(tensors: Tensors) -> Config:
    shapes = Shapes({name.removeprefix(OWN): tensor for name, tensor in _names(tensors).items()})
    light = "body.0.out_conv.weight" in shapes
    inside = shapes.columns("body.0.in_conv.weight" if light else "conv_in.weight")
    factor = FACTORS[inside]
    count = shapes.count("body.")
    if light:  # of the last level, which is as wide as the one before, nothing is told
        channels = [shapes.rows(f"body.{i}.out_conv.weight") for i in range(count - 1)]
    else:
        channels = [shapes.rows(f"body.{i}.resnets.0.block1.weight") for i in range(count)]
    return {
        "in_channels": inside // factor**2,
        "channels": channels,
        "num_res_blocks": shapes.count("body.0.resnets."),
        "downscale_factor": factor,
        "adapter_type": "light_adapter" if light else "full_adapter_xl" if factor == 16 else "full_adapter",
    }


def _module(config: Config) -> nn.Module:
    kind: Any = T2IAdapter
    module: nn.Module = kind(**config)
    return module


T2I = Recipe(("",), _config, _module, lambda tensors, config: _names(tensors), settings)
