"""Noise that belongs to an image and not to its batch: image k of a batch is the single image of seed + k."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pipelines.request import Noise
from pipelines.samplers.brownian import BrownianPath
from pipelines.samplers.philox import Philox

PLAIN = Noise()
PARALLEL = 0.9995


class Source(Protocol):
    """Of one image; each call gives the next noise."""

    def randn(self, shape: Sequence[int]) -> Tensor: ...


class TorchSource:
    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)

    def randn(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self._generator, device=self._generator.device)


CPU = torch.device("cpu")
SOURCES: Mapping[str, Callable[[int, torch.device], Source]] = {
    "CPU": lambda seed, device: TorchSource(seed, CPU),
    "GPU": TorchSource,
    "NV": lambda seed, device: Philox(seed),
}


@dataclass
class ImageNoise:
    """One source of noise an image. In what comes first a variation may be mixed, and another size kept."""

    shape: Sequence[int]
    """[channels, height, width] of a latent."""
    seeds: Sequence[int]
    device: torch.device
    options: Noise = PLAIN
    variations: Sequence[int] = ()
    """A variation seed for each image."""
    resized: Sequence[int] | None = None
    """Shape of the latent whose noise is kept in the middle; None: as it is."""
    span: tuple[float, float] = (0.0, 1.0)
    """The lowest and the highest noise level between which paths are asked for."""

    def __post_init__(self) -> None:
        self._sources = [self._source(seed) for seed in self.seeds]
        self._is_first = True

    def __call__(self) -> Tensor:
        if not self._is_first:
            return self._together([source.randn(self.shape) for source in self._sources])
        self._is_first = False
        first = self._together([self._first(image) for image in range(len(self.seeds))])
        if self.options.delta:
            self._sources = [self._source(seed + self.options.delta) for seed in self.seeds]
        return first

    def between(self, sigma: float, following: float) -> Tensor:
        return self._together([path.between(sigma, following) for path in self._paths])

    @cached_property
    def _paths(self) -> list[BrownianPath]:
        low, high = self.span
        return [BrownianPath(low, high, seed, self._fresh) for seed in self.seeds]

    def _fresh(self, seed: int) -> Tensor:
        return self._source(seed).randn(self.shape)

    def _source(self, seed: int) -> Source:
        return SOURCES[self.options.rng](seed, self.device)

    def _together(self, noises: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(noises)).to(self.device)

    def _first(self, image: int) -> Tensor:
        """As in A1111: of another size, it is drawn by itself, and what it doesn't cover comes from the image's own."""
        own, seed = self._sources[image], self.seeds[image]
        resized = self.resized is not None and tuple(self.resized) != tuple(self.shape)
        shape = self.resized if self.resized is not None and resized else self.shape
        noise = self._source(seed).randn(shape) if resized else own.randn(shape)
        if strength := self.options.variation_strength:
            noise = slerp(noise, self._source(self.variations[image]).randn(shape), strength)
        return pasted(noise, own.randn(self.shape)) if resized else noise


def slerp(noise: Tensor, other: Tensor, share: float) -> Tensor:
    """From one noise to the other along a great circle, so that its variance stays: Shoemake 1985. As in A1111 each
    column of pixels, [channels, height, width] along the height, goes its own way.
    """
    along: Tensor = (noise / noise.norm(dim=-2, keepdim=True) * (other / other.norm(dim=-2, keepdim=True))).sum(
        -2, keepdim=True
    )
    if along.mean() > PARALLEL:
        return torch.lerp(noise, other, share)
    angle = along.acos()
    mixed: Tensor = noise * ((1 - share) * angle).sin() + other * (share * angle).sin()
    return mixed / angle.sin()


def pasted(noise: Tensor, ground: Tensor) -> Tensor:
    """Noise of another size into the middle of that of this size, cut where it is larger. Rounded as in A1111."""
    here, there = [], []
    for own, other in zip(ground.shape[-2:], noise.shape[-2:], strict=True):
        before = (own - other) // 2
        length = other if before >= 0 else other + 2 * before
        here.append(slice(max(before, 0), max(before, 0) + length))
        there.append(slice(max(-before, 0), max(-before, 0) + length))
    result = ground.clone()
    result[..., here[0], here[1]] = noise[..., there[0], there[1]]
    return result
