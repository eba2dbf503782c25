"""What the flow-matching transformers have in common: velocities, pictures cut into patches, autoencoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import PipelineError
from pipelines.families.base import PLAIN, Asides, Cond, Reading
from pipelines.loading.parts import Part
from pipelines.loading.quantised import compute_in
from pipelines.prompt import Reader, Span
from pipelines.samplers import NoiseLevels


@dataclass(frozen=True)
class PaddedCond(Cond):
    """Prompts of several lengths: row i has `lengths[i]` tokens, what follows in `tokens` is filled up with zeros."""

    lengths: tuple[int, ...] = ()

    ROWS: ClassVar[tuple[str, ...]] = (*Cond.ROWS, "lengths")

    @classmethod
    def of(cls, rows: Sequence[Tensor], notes: tuple[str, ...] = ()) -> "PaddedCond":
        """From token features [tokens, width] of each prompt."""
        padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        return cls(padded, notes=notes, lengths=tuple(len(row) for row in rows))

    @property
    def mask(self) -> Tensor | None:
        """[rows, tokens], true where there is a token; None if all rows are full."""
        if set(self.lengths) == {self.tokens.shape[1]}:
            return None
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return places[None] < torch.tensor(self.lengths, device=self.tokens.device)[:, None]


class FlowModel:
    """The half of `LoadedModel` that is the same for all of them. x = (1 - sigma) x0 + sigma noise, and the network
    gives dx / dsigma = noise - x0, so x0 = x - sigma * velocity (Lipman et al. 2022; Esser et al. 2024, section 2).
    """

    levels: NoiseLevels
    reader: Reader

    def __init__(self, parts: Mapping[str, Part], device: torch.device) -> None:
        self.parts, self.device, self.asides = parts, device, Asides()
        self.transformer: Any = parts["transformer"].module
        self.vae: Any = parts["vae"].module
        for part in parts.values():
            compute_in(part.module, part.dtype)

    def chunks_of(self, spans: Sequence[Span], reading: Reading = PLAIN) -> int:
        return 1

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """x: [n, channels, height, width], sides even; sigma: [n]. Both in the transformer's type or better."""
        raise NotImplementedError

    def predict(self, x: Tensor, sigma: float, cond: Cond) -> Tensor:
        height, width = x.shape[-2:]
        even = functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate")  # whole patches, for every size
        levels = torch.full((len(x),), sigma, device=self.device)
        velocity = self.velocity(even.to(self.device), levels, cond)[..., :height, :width]
        return x - velocity.float() * sigma

    def beside(self, picture: Tensor, mask: Tensor, hidden: float = 1.0) -> Tensor | None:
        return None

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return (self.channels, height // self.scale, width // self.scale)

    @property
    def channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def scale(self) -> int:
        """Pixels of a picture to one of its latent, along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def from_vae(self, latent: Tensor) -> Tensor:
        """What the autoencoder gives -> what the transformer was trained on, [n, channels, height, width]."""
        config = self.vae.config
        scaled: Tensor = (latent - config.shift_factor) * config.scaling_factor
        return scaled

    def to_vae(self, latent: Tensor) -> Tensor:
        config = self.vae.config
        scaled: Tensor = latent / config.scaling_factor + config.shift_factor
        return scaled

    def to_latent(self, pixels: Tensor) -> Tensor:
        pixels = (pixels * 2 - 1).to(self.device, self.parts["vae"].dtype)
        return self.from_vae(self.encoded(pixels).float())

    def encoded(self, pixels: Tensor) -> Tensor:
        latent: Tensor = self.vae.encode(pixels).latent_dist.mode()
        return latent

    def decoded(self, latent: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(latent, return_dict=False)[0]
        return pixels

    def decode(self, latent: Tensor) -> PIL.Image.Image:
        scaled = self.to_vae(latent[None].float().to(self.device)).to(self.parts["vae"].dtype)
        return picture(self.decoded(scaled)[0].float())


def picture(pixels: Tensor) -> PIL.Image.Image:
    """[3, height, width] from -1 to 1. Raises PipelineError for invalid numbers."""
    if not pixels.isfinite().all():
        raise PipelineError(
            "The picture came out as invalid numbers (NaN). Lower the CFG scale and the weights in the prompt; "
            "if it stays so, the model's files are damaged or need full precision."
        )
    levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return PIL.Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def patches(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, h / 2 * w / 2, c * 4]: a token for 2 x 2, its channels outermost."""
    n, channels, height, width = x.shape
    cut = x.reshape(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(n, height // 2 * (width // 2), channels * 4)


def from_patches(tokens: Tensor, height: int, width: int) -> Tensor:
    """The other way; height and width of the latent."""
    cut = tokens.reshape(len(tokens), height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cut.reshape(len(tokens), -1, height, width)


def places(height: int, width: int, axes: Sequence[int], device: torch.device) -> Tensor:
    """[height * width, axes]: row and column of each token, in those two of `axes` = (how many, row, column)."""
    count, row, column = axes
    grid = torch.zeros(height, width, count, device=device)
    grid[..., row] = torch.arange(height, device=device)[:, None]
    grid[..., column] = torch.arange(width, device=device)[None]
    return grid.reshape(-1, count)
