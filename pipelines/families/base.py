"""What a model family must be able to do: the seam between our sampling loop and diffusers' modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import PIL.Image
import torch
from torch import Tensor

from pipelines.prompt import Span
from pipelines.request import Emphasis
from pipelines.samplers import NoiseLevels

if TYPE_CHECKING:
    from pipelines.loading.parts import Part


@dataclass(frozen=True)
class Cond:
    """What the denoiser is told, one row a prompt: token features, and pooled ones where the family has them."""

    tokens: Tensor
    pooled: Tensor | None = None
    away: tuple[bool, ...] = ()
    """Which rows say what to stay away from; empty: none of them."""

    ROWS: ClassVar[tuple[str, ...]] = ("tokens", "pooled", "away")
    """The fields that have an entry for each row."""

    def take(self, rows: Sequence[int]) -> Self:
        """These rows, in this order; a row may come more than once."""
        taken: dict[str, Any] = {}
        for name in self.ROWS:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                taken[name] = value[list(rows)]
            elif value:
                taken[name] = tuple(value[row] for row in rows)
        return replace(self, **taken)

    def repeated(self, count: int) -> Self:
        """Each row `count` times, one after another: a, a, b, b."""
        return self.take([row for row in range(len(self.tokens)) for _ in range(count)])

    def sided(self, towards: int) -> Self:
        """The first so many rows are drawn towards, the others stayed away from."""
        return replace(self, away=tuple(row >= towards for row in range(len(self.tokens))))


@dataclass(frozen=True)
class Reading:
    """How prompts are read."""

    clip_skip: int = 0
    """CLIP's layers to stop before, from 1; 0: as the family does."""
    emphasis: Emphasis = "Original"


PLAIN = Reading()


class LoadedModel(Protocol):
    device: torch.device
    levels: NoiseLevels
    vae: torch.nn.Module
    parts: Mapping[str, "Part"]
    """The networks by diffusers' names; `placement.py` decides where their weights lie."""

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        """One row for each prompt, all of the same length."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]: ...

    def predict(self, x: Tensor, sigma: float, cond: Cond) -> Tensor:
        """The clean latents x0 that the model sees in x at noise level sigma, in fp32; as many rows as `cond` has."""
        ...

    def to_latent(self, pixels: Tensor) -> Tensor:
        """[n, 3, height, width] from 0 to 1 -> [n, channels, height / 8, width / 8], without the encoder's noise."""
        ...

    def decode(self, latent: Tensor) -> PIL.Image.Image:
        """The picture of one latent [channels, height, width]."""
        ...
