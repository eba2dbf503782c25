"""Token merging: places of the picture that are alike share one place in self-attention, which then takes less time.
Bolya and Hoffman 2023, 'Token Merging for Fast Stable Diffusion'.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.control.attention_hooks import Ask, Inner, attending, attends_to_itself
from pipelines.guidance.networks import unet_for
from pipelines.samplers import Denoise
from pipelines.scene import Scene

STRIDE = 2
"""Of 2 x 2 places, the first one stays and takes others in: equation 2 and section 4.1, without randomness."""


@contextmanager
def merged(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    """A feature. Only in the finest level that has attention: there the time goes."""
    share = scene.request.guidance.token_merging
    unet = unet_for(scene, "Token merging") if share else None
    if unet is None:
        yield denoise
        return
    attending_levels = [level for level, block in enumerate(unet.down_blocks) if getattr(block, "attentions", None)]
    coarse = 2 ** attending_levels[0] if attending_levels else 1

    def hook(ask: Ask, inner: Inner) -> Tensor:
        height, width = (-(-side // coarse) for side in ask.call.x.shape[-2:])
        if ask.context is not None or ask.hidden.shape[1] != height * width or min(height, width) < STRIDE:
            return inner(ask)
        merge = merge_of(ask.hidden, height, width, share)
        return merge.apart(inner(replace(ask, hidden=merge.together(ask.hidden))))

    with attending(scene.model, hook, attends_to_itself):
        yield denoise


class Merge(NamedTuple):
    """Which places go into which, row by row."""

    staying: Tensor
    """[places]: those that others may go into, the same in all rows."""
    alone: Tensor
    """[rows, n]: those that stay beside them, too."""
    gone: Tensor
    """[rows, m]"""
    into: Tensor
    """[rows, m]: the place of each among the staying ones."""

    def together(self, x: Tensor) -> Tensor:
        """[rows, places, width] -> first those alone, then the others, each the mean of all that it has taken in."""
        staying = x[:, self.staying].scatter_reduce(1, _wide(self.into, x), _picked(x, self.gone), "mean")
        return torch.cat([_picked(x, self.alone), staying], 1)

    def apart(self, x: Tensor) -> Tensor:
        """The other way: a place that went into another one gets what that one has."""
        count, rows = self.alone.shape[1], len(x)
        alone, staying = x[:, :count], x[:, count:]
        out = x.new_empty(rows, len(self.staying) + count + self.gone.shape[1], x.shape[-1])
        out[:, self.staying] = staying
        out.scatter_(1, _wide(self.alone, x), alone)
        return out.scatter_(1, _wide(self.gone, x), _picked(staying, self.into))


def merge_of(x: Tensor, height: int, width: int, share: float) -> Merge:
    """[rows, height * width, width of a token]: of those that may go, the ones that are most like one that stays."""
    staying, leaving = _grid(height, width, x.device)
    normed = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    scores = normed[:, leaving] @ normed[:, staying].transpose(1, 2)
    best, into = scores.max(-1)
    count = min(len(leaving), math.floor(height * width * share))
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone = order[:, :count]
    return Merge(staying, leaving[order[:, count:]], leaving[gone], into.gather(1, gone))


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The numbers of the places that stay in any case, and of the others."""
    stays = torch.zeros(height, width, dtype=torch.bool, device=device)
    stays[: height // STRIDE * STRIDE : STRIDE, : width // STRIDE * STRIDE : STRIDE] = True
    return stays.flatten().nonzero()[:, 0], (~stays).flatten().nonzero()[:, 0]


def _wide(index: Tensor, x: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, x.shape[-1])


def _picked(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _wide(index, x))
