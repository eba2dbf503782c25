"""Walks for tests of samplers, with pictures of normally distributed numbers: all answers can be written down."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipelines.request import Sampling
from pipelines.samplers import SAMPLERS, Denoise, Noise, NoiseLevels, OnStep, Sigmas, Walk

SD1 = NoiseLevels.of_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
MEAN, SPREAD = 0.3, 0.7


@dataclass(frozen=True)
class Gaussian:
    """The ideal denoiser for pictures of normally distributed numbers: E[x0 | x], by Bayes."""

    mean: float = MEAN
    flow: bool = False

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        signal = self.signal(sigma)
        return self.mean + signal * SPREAD**2 / self.spread(sigma) ** 2 * (x - signal * self.mean)

    def signal(self, sigma: float) -> float:
        return 1 - sigma if self.flow else 1.0

    def spread(self, sigma: float) -> float:
        """Of x at this noise level."""
        return math.hypot(self.signal(sigma) * SPREAD, sigma)

    def exact(self, x: Tensor, sigma: float, following: float) -> Tensor:
        """Where the probability flow goes from x."""
        moved = (x - self.signal(sigma) * self.mean) * (self.spread(following) / self.spread(sigma))
        return self.signal(following) * self.mean + moved


gaussian = Gaussian()


class NoNoise:
    """For samplers that draw none."""

    def __call__(self) -> Tensor:
        raise AssertionError("this sampler draws no noise")

    def between(self, sigma: float, following: float) -> Tensor:
        raise AssertionError("this sampler draws no noise")


def nothing(index: int, x0: Tensor) -> None:
    """Hears of every step."""


def solve(
    name: str,
    sigmas: Sequence[float],
    x: Tensor,
    denoise: Denoise = gaussian,
    noise: Noise | None = None,
    **options: Any,
) -> Tensor:
    """From x along the noise levels. `options`: of Sampling, and `on_step`."""
    on_step: OnStep = options.pop("on_step", nothing)
    asked = Sampling(**options)
    walk = Walk(
        sigmas if isinstance(sigmas, Sigmas) else Sigmas(sigmas),
        noise or NoNoise(),
        on_step,
        asked,
        SAMPLERS[name].eta(asked),
        SD1,
    )
    return SAMPLERS[name].solve(denoise, x, walk)


@dataclass
class Axes:
    """Noise whose draws are unit vectors, each along an axis of its own.

    A denoiser without a mean is linear, so that a solver's result is the list of what each draw counts in it: the sum
    of their squares is the exact variance, without a draw.
    """

    size: int
    used: int = 1
    """The first axis is the noise that a picture begins with."""
    places: Sequence[float] = ()
    """Where a path is asked for, if it is asked for."""
    asked: set[float] = field(default_factory=set)

    def __call__(self) -> Tensor:
        self.used += 1
        return torch.eye(self.size, dtype=torch.float64)[self.used - 1]

    def between(self, sigma: float, following: float) -> Tensor:
        self.asked |= {sigma, following}
        way = torch.zeros(self.size, dtype=torch.float64)
        for n, (high, low) in enumerate(zip(self.places, self.places[1:], strict=False)):
            if following <= low and high <= sigma:
                way[self.used + n] = math.sqrt((high - low) / (sigma - following))
        return way
