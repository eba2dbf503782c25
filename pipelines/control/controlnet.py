"""ControlNets of U-Nets: a second encoder that follows a picture and adds to what the U-Net's own finds.

Zhang et al. 2023, 'Adding Conditional Control to Text-to-Image Diffusion Models'.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipelines.control.preprocessors import union_type
from pipelines.control.units import Speaker, Told, Unit, mismatch, picked, spread
from pipelines.errors import PipelineError
from pipelines.families.base import Call
from pipelines.loading.parts import Part
from pipelines.loading.recipes.controlnet import CONTROLNET
from pipelines.scene import Scene

BLACK = 0.0
"""What Union ControlNets were shown in place of pixels that are to be painted."""


@contextmanager
def controlnet(scene: Scene, unit: Unit) -> Generator[Speaker, None, None]:
    """Raises PipelineError where it does not fit the checkpoint."""
    with scene.kit.network("controlnet", CONTROLNET, unit.info) as part:
        config: Any = part.module.config
        _check(unit, config, scene.model.parts["unet"].module.config)
        union = _kind(unit, config.num_control_type) if "num_control_type" in config else None
        yield ControlNet(unit, part, scene.device, union)


class ControlNet:
    def __init__(self, unit: Unit, part: Part, device: torch.device, union: int | None) -> None:
        """`union`: its place in the network's table of kinds of pictures, if it has one."""
        self.unit = unit
        self._network: Any = part.module
        self._dtype, self._union = part.dtype, union
        pixels = unit.hint.pixels if union is None else unit.hint.pixels.clamp(min=BLACK)
        self._hint = pixels.to(device, part.dtype)

    def told(self, call: Call) -> Told:
        rows = self.unit.rows(call)
        if not rows:
            return {}
        part = picked(call, rows)
        *down, middle = self._asked(part)
        scales = self.unit.scales(len(down) + 1)
        down = [spread(each * scale, rows, len(call.x)) for each, scale in zip(down, scales, strict=False)]
        return {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": spread(middle * scales[-1], rows, len(call.x)),
        }

    def _asked(self, call: Call) -> list[Tensor]:
        """What it adds to each layer on the way down, and to the middle."""
        hint = self._hint.expand(len(call.x), -1, -1, -1)
        kind: Told = {"controlnet_cond": hint}
        if self._union is not None:
            chosen = torch.zeros(len(call.x), self._network.config.num_control_type, device=hint.device)
            chosen[:, self._union] = 1
            kind = {"controlnet_cond": [hint], "control_type": chosen, "control_type_idx": [self._union]}
        sizes = {"added_cond_kwargs": call.told["added_cond_kwargs"]} if "added_cond_kwargs" in call.told else {}
        down, middle = self._network(
            call.x.to(self._dtype), call.step, call.told["encoder_hidden_states"], **kind, **sizes, return_dict=False
        )
        found = [*down, middle]
        return [each.mean((2, 3), keepdim=True) for each in found] if self.unit.pooled else found


def _check(unit: Unit, config: Any, unet: Any) -> None:
    same = tuple(config.block_out_channels) == tuple(unet.block_out_channels)
    attends = any("CrossAttn" in kind for kind in config.down_block_types)
    if not same or (attends and config.cross_attention_dim != unet.cross_attention_dim):
        raise mismatch(unit.info)


def _kind(unit: Unit, kinds: int) -> int:
    row = union_type(unit.control.union_type, unit.module)
    if row.sdxl is None or row.sdxl >= kinds:
        raise PipelineError(
            f"{unit.info.name} does not know pictures of the kind {row.name!r}. Choose another union type, or the "
            "ProMax version of this ControlNet, which knows Tile and Inpaint."
        )
    return row.sdxl
