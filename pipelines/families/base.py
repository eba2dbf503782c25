"""What a model family must be able to do: the seam between our sampling loop and diffusers' modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import PIL.Image
import torch
from torch import Tensor

from pipelines.prompt import Span
from pipelines.samplers import NoiseLevels

if TYPE_CHECKING:
    from pipelines.loading.parts import Part


@dataclass(frozen=True)
class Cond:
    """What the denoiser is told, one row a prompt: token features, and pooled ones where the family has them."""

    tokens: Tensor
    pooled: Tensor | None = None

    def repeated(self, count: int) -> "Cond":
        """Each row `count` times, one after another: a, a, b, b."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, 0)
        return Cond(self.tokens.repeat_interleave(count, 0), pooled)


class LoadedModel(Protocol):
    device: torch.device
    levels: NoiseLevels
    vae: torch.nn.Module
    parts: Mapping[str, "Part"]
    """The networks by diffusers' names; `placement.py` decides where their weights lie."""

    def encode(self, prompts: Sequence[Sequence[Span]]) -> Cond:
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
