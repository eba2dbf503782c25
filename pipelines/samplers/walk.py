"""What a solver is given: the denoiser, where to begin, and the walk: noise levels, fresh noise, whom to tell.

All solvers work on x = signal * x0 + sigma * noise: Karras et al. 2022 have signal 1, flow models 1 - sigma. What is
common to both is `noise / signal`, the ratio; a step's `shrink` says how much of it is left, which is exp(-h) for the
h of Lu et al. 2022, 'DPM-Solver++'.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pipelines.request import Sampling
from pipelines.samplers.levels import NoiseLevels, Sigmas

PLAIN = Sampling()

Denoise = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> x0, the clean picture that the model sees in x at noise level sigma."""
OnStep = Callable[[int, Tensor], None]
"""(index from 0, x0), called as soon as the model has spoken; it may raise to leave the loop."""


class Noise(Protocol):
    """Of unit variance, in the shape of x; each image has its own."""

    def __call__(self) -> Tensor:
        """The next fresh noise."""
        ...

    def between(self, sigma: float, following: float) -> Tensor:
        """How a Brownian path moves from one noise level to the next, brought to unit variance.

        The same two levels give the same noise, and levels between them a part of it: a solver of stochastic
        differential equations then converges to one picture as its steps grow finer.
        """
        ...


@dataclass(frozen=True)
class Step:
    """From one noise level to the next."""

    sigma: float
    following: float
    flow: bool = False
    index: int = 0

    @property
    def signal(self) -> float:
        return 1 - self.sigma if self.flow else 1.0

    @property
    def next_signal(self) -> float:
        return 1 - self.following if self.flow else 1.0

    @property
    def is_last(self) -> bool:
        """To the picture itself."""
        return self.following == 0

    @cached_property
    def shrink(self) -> float:
        """exp(-h): which share of noise / signal is left; 0 from pure noise and to the picture itself."""
        return self.following * self.signal / (self.sigma * self.next_signal)

    @cached_property
    def h(self) -> float:
        """How much half the log of the signal-to-noise ratio grows; without end where `shrink` is 0."""
        return -math.log(self.shrink) if self.shrink else math.inf

    def to(self, level: float) -> "Step":
        """From here to another level."""
        return Step(self.sigma, level, self.flow, self.index)

    def within(self, share: float, shrink: float | None = None) -> float:
        """The level after this share of the step, measured in h; of a step that shrinks by so much if it is given."""
        left: float = (self.shrink if shrink is None else shrink) ** share
        ratio = self.sigma / self.signal * left
        return ratio / (1 + ratio) if self.flow else ratio

    def towards(self, x: Tensor, x0: Tensor, kept: float = 1.0) -> Tensor:
        """The exact solution for a constant x0, of which a share `kept` of the noise in x is still left at the end:
        Lu et al. 2022, equation 9 and, with fresh noise to be added, equation 18.
        """
        weight = self.following / self.sigma * kept
        if not self.flow or kept == 1:
            return torch.lerp(x0, x, weight)  # x + (following - sigma) * (x - x0) / sigma, if all is kept
        return x * weight + x0 * (self.next_signal * (1 - self.shrink * kept))


def no_unguided() -> Tensor | None:
    return None


@dataclass(frozen=True)
class Walk:
    sigmas: Sigmas
    """From where the picture stands, down to 0; or to a level from which another checkpoint goes on. Of a picture to
    start from, only the last part of a schedule."""
    noise: Noise
    on_step: OnStep
    options: Sampling = PLAIN
    eta: float = 0.0
    """Which share of the noise is fresh after a step: what was asked for, else the sampler's own."""
    levels: NoiseLevels | None = None
    """The model's, for samplers that count in training steps."""
    unguided: Callable[[], Tensor | None] = no_unguided
    """What the model saw in the last x without its prompt, if it was asked."""

    @property
    def count(self) -> int:
        return len(self.sigmas) - 1

    @property
    def is_whole(self) -> bool:
        """It ends at the picture."""
        return self.sigmas[-1] == 0

    @property
    def lowest(self) -> float:
        """The last level with noise in it."""
        return self.sigmas[-2] if self.is_whole else self.sigmas[-1]

    @property
    def flow(self) -> bool:
        return self.sigmas.flow

    def steps(self) -> Iterator[Step]:
        for index in range(self.count):
            yield Step(self.sigmas[index], self.sigmas[index + 1], self.flow, index)

    def step(self, index: int) -> Step:
        return Step(self.sigmas[index], self.sigmas[index + 1], self.flow, index)

    def ancestral(self, step: Step, x: Tensor, x0: Tensor, noise: Callable[[], Tensor] | None = None) -> Tensor:
        """Go below the next level and add noise up to it: k-diffusion's ancestral step (Crowson 2022).

        With eta 1 it is the posterior of Ho et al. 2020, equation 7; with eta 0 nothing is added.
        """
        fresh = self.fresh(step)
        x = step.towards(x, x0, math.sqrt(1 - fresh**2))
        return self.renewed(step, x, fresh, noise)

    def fresh(self, step: Step) -> float:
        """Which share of the next noise an ancestral step adds anew."""
        return min(1.0, self.eta * math.sqrt(max(0.0, 1 - step.shrink**2)))

    def renewed(self, step: Step, x: Tensor, fresh: float, noise: Callable[[], Tensor] | None = None) -> Tensor:
        if not fresh or step.is_last:
            return x
        return x + (noise or self.noise)() * (step.following * fresh * self.options.s_noise)

    def churned(self, step: Step, x: Tensor) -> tuple[Step, Tensor]:
        """A little up before the step: Karras et al. 2022, algorithm 2. Off unless asked for."""
        options = self.options
        if not options.s_churn or not options.s_tmin <= step.sigma <= (options.s_tmax or math.inf):
            return step, x
        above = step.sigma * (1 + min(options.s_churn / self.count, math.sqrt(2) - 1))
        above = min(above, 1.0) if self.flow else above
        return Step(above, step.following, self.flow, step.index), self.lifted(x, step.sigma, above)

    def lifted(self, x: Tensor, sigma: float, above: float) -> Tensor:
        """With fresh noise, from one level up to a higher one."""
        if above <= sigma:
            return x
        kept = (1 - above) / (1 - sigma) if self.flow else 1.0
        added = math.sqrt(above**2 - (sigma * kept) ** 2) * self.options.s_noise
        return x * kept + self.noise() * added


Solver = Callable[[Denoise, Tensor, Walk], Tensor]
