"""Noise that belongs to an image and not to its batch: image k of a batch is the single image of seed + k."""

from collections.abc import Sequence

import torch
from torch import Tensor


class ImageNoise:
    """One generator an image, on the CPU, so that every device draws the same; each call gives the next noise."""

    def __init__(self, shape: Sequence[int], seeds: Sequence[int], device: torch.device) -> None:
        self._shape = tuple(shape)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device

    def __call__(self) -> Tensor:
        drawn = [torch.randn(self._shape, generator=generator) for generator in self._generators]
        return torch.stack(drawn).to(self._device)
