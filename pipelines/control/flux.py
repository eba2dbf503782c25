"""ControlNets of Flux.1, Union too: a short transformer that follows a picture and adds to the blocks of the long one.

The picture is told as latents; XLabs' networks have a little network of their own for it.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pipelines.control.preprocessors import union_type
from pipelines.control.units import Speaker, Told, Unit, mismatch, picked, spread
from pipelines.errors import PipelineError
from pipelines.families.base import Call
from pipelines.families.flow import patches
from pipelines.loading.parts import Part
from pipelines.loading.recipes.flux_controlnet import FLUX_CONTROLNET
from pipelines.scene import Scene

BLOCKS = {
    "controlnet_block_samples": "transformer_blocks",
    "controlnet_single_block_samples": "single_transformer_blocks",
}
"""What is told -> the blocks of the long transformer that it is added to."""


@contextmanager
def flux_controlnet(scene: Scene, unit: Unit) -> Generator[Speaker, None, None]:
    """Raises PipelineError where it does not fit the checkpoint."""
    if unit.soft and unit.control.mode != "Balanced":
        scene.kit.note(f"For Flux, {unit.control.mode!r} does not make layers of {unit.info.name} count less and less.")
    latents = scene.model.to_latent(unit.hint.pixels.clamp(min=0))  # before the transformer takes its place
    with scene.kit.network("controlnet", FLUX_CONTROLNET, unit.info) as part:
        config: Any = part.module.config
        transformer: Any = scene.model.parts["transformer"].module
        sizes = ("attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim")
        if config.in_channels != latents.shape[1] * 4 or any(config[s] != transformer.config[s] for s in sizes):
            raise mismatch(unit.info)
        counts = {told: len(getattr(transformer, blocks)) for told, blocks in BLOCKS.items()}
        yield FluxControlNet(unit, part, latents, counts)


class FluxControlNet:
    def __init__(self, unit: Unit, part: Part, latents: Tensor, counts: dict[str, int]) -> None:
        """`counts`: of the long transformer's blocks, by what is told them."""
        self.unit = unit
        self._network: Any = part.module
        self._dtype, self._counts = part.dtype, counts
        modes: int | None = part.module.config.num_mode  # type: ignore[union-attr, assignment]
        self._mode = None if modes is None else _mode(unit, modes)
        own = self._network.input_hint_block is not None
        self._repeats = own
        self._hint = (unit.hint.pixels.clamp(min=0) * 2 - 1).to(latents.device) if own else latents
        self._hint = self._hint.to(part.dtype)

    def told(self, call: Call) -> Told:
        rows = self.unit.rows(call)
        if not rows:
            return {}
        asked = picked(call, rows)
        told = {name: value for name, value in asked.told.items() if name != "joint_attention_kwargs"}
        if not self._network.config.guidance_embeds:
            told["guidance"] = None
        if self._mode is not None:
            told["controlnet_mode"] = torch.full((len(rows), 1), self._mode, device=asked.x.device)
        found = self._network(
            hidden_states=patches(asked.x).to(self._dtype),
            controlnet_cond=self._seen(len(rows), asked.x.shape[-2:]),
            conditioning_scale=self.unit.control.weight,
            timestep=asked.step,
            **told,
            return_dict=False,
        )
        named = zip(BLOCKS, found, strict=True)
        return {name: self._stretched(name, samples, rows, len(call.x)) for name, samples in named if samples}

    def _seen(self, rows: int, size: Sequence[int]) -> Tensor:
        """Of the latents' size, which is even: whole patches."""
        hint = self._hint
        if self._network.input_hint_block is None:
            height, width = size
            down, right = height - hint.shape[-2], width - hint.shape[-1]
            hint = patches(torch.nn.functional.pad(hint, (0, right, 0, down), mode="replicate"))
        return hint.expand(rows, *hint.shape[1:])

    def _stretched(self, name: str, samples: Sequence[Tensor], rows: Sequence[int], count: int) -> list[Tensor]:
        """One for each block of the long transformer: neighbours get the same, or XLabs' in turn."""
        full = [spread(sample, rows, count) for sample in samples]
        blocks = self._counts[name]
        interval = math.ceil(blocks / len(full))
        return [full[i % len(full)] if self._repeats else full[i // interval] for i in range(blocks)]


def _mode(unit: Unit, modes: int) -> int:
    row = union_type(unit.control.union_type, unit.module)
    if row.flux is None or row.flux >= modes:
        raise PipelineError(f"{unit.info.name} does not know pictures of the kind {row.name!r}: choose another one.")
    return row.flux
