"""Schedules: which noise levels the steps visit, from the highest down. The last level, 0, is added by the caller."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from pipelines.errors import PipelineError
from pipelines.request import Sampling
from pipelines.samplers.levels import Floats, NoiseLevels
from pipelines.samplers.walk import PLAIN


@dataclass(frozen=True)
class Reach:
    """What a schedule goes through: the model's noise levels, and how far up and down."""

    levels: NoiseLevels
    low: float
    high: float
    rho: float = 0.0
    """Of the curve; 0: the schedule's own."""

    @classmethod
    def of(cls, levels: NoiseLevels, options: Sampling = PLAIN) -> Self:
        """Raises PipelineError if the levels that are asked for do not fit."""
        low, high = options.sigma_min or levels.low, options.sigma_max or levels.high
        if low >= high:
            raise PipelineError(
                f"The schedule has no room between the noise levels {low:g} and {high:g}: give a smaller sigma min "
                f"or a greater sigma max. This model's own go from {levels.low:.4g} to {levels.high:.4g}."
            )
        if levels.flow and high > 1:
            raise PipelineError(f"A flow model has no noise level {high:g}: give a sigma max of at most 1, or 0.")
        return cls(levels, low, high, options.rho)

    @property
    def last(self) -> int:
        """The training step of the most noise."""
        return len(self.levels.sigmas) - 1

    def at(self, steps: NDArray[Any]) -> Floats:
        """The noise levels of training steps, between whole ones too."""
        return np.array([self.levels.sigma(step) for step in steps])

    def even(self, count: int, high: float, low: float) -> Floats:
        """Training steps at even distances, both ends included."""
        return self.at(np.linspace(self.levels.step(high), self.levels.step(low), count))


Schedule = Callable[[int, Reach], Floats]


def uniform(steps: int, reach: Reach) -> Floats:
    """Training steps at even distances, both ends included: `get_sigmas` of k-diffusion. Knows no other ends."""
    return reach.at(np.linspace(reach.last, 0, steps))


def normal(steps: int, reach: Reach) -> Floats:
    """The same between the noise levels that are asked for."""
    return reach.even(steps, reach.high, reach.low)


def karras(steps: int, reach: Reach) -> Floats:
    """Karras et al. 2022, equation 5."""
    rho = reach.rho or 7.0
    ramp: Floats = np.linspace(reach.high ** (1 / rho), reach.low ** (1 / rho), steps)
    return ramp**rho


def exponential(steps: int, reach: Reach) -> Floats:
    """Even distances in log sigma: the limit of Karras' schedule for rho to infinity."""
    return np.exp(np.linspace(math.log(reach.high), math.log(reach.low), steps))


def polyexponential(steps: int, reach: Reach) -> Floats:
    """A power of even distances in log sigma (k-diffusion, Crowson 2022); with rho 1 the same as exponential."""
    ramp: Floats = np.linspace(1, 0, steps) ** (reach.rho or 1.0)
    return np.exp(ramp * math.log(reach.high / reach.low) + math.log(reach.low))


def sgm_uniform(steps: int, reach: Reach) -> Floats:
    """Training steps at even distances as in Stability's generative-models: the lowest level is left out."""
    return reach.even(steps + 1, reach.high, reach.low)[:-1]


def kl_optimal(steps: int, reach: Reach) -> Floats:
    """Even distances in arctan sigma: Sabour et al. 2024, 'Align Your Steps', theorem 3.1. As A1111 spaces them, for
    one step more, whose place the picture itself takes here.
    """
    angles: Floats = np.linspace(math.atan(reach.high), math.atan(reach.low), steps + 1)[:-1]
    return np.tan(angles)


def align_your_steps(steps: int, reach: Reach) -> Floats:
    """Sabour et al. 2024, 'Align Your Steps'. The model's levels for ten steps, for others between them in log sigma:
    https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html
    """
    known = np.log(reach.levels.aligned)
    return np.exp(np.interp(np.linspace(0, len(known) - 1, steps), np.arange(len(known)), known))


def simple(steps: int, reach: Reach) -> Floats:
    """Every n-th entry of the training table, from its end, without interpolation."""
    if steps > reach.last:
        return uniform(steps, reach)
    return reach.at(reach.last - np.floor(np.arange(steps) * ((reach.last + 1) / steps)))


def ddim(steps: int, reach: Reach) -> Floats:
    """Every n-th training step from the second: Song et al. 2020, as Stable Diffusion counts them (Rombach et al.
    2022). Where the steps do not divide the table, they are spread over the whole of it.
    """
    if steps > reach.last:
        return uniform(steps, reach)
    return reach.at(np.floor(1 + np.arange(steps)[::-1] * ((reach.last + 1) / steps)))


def turbo(steps: int, reach: Reach) -> Floats:
    """The end of each of even stretches of training: Sauer et al. 2023, 'Adversarial Diffusion Distillation'."""
    if steps > reach.last:
        return uniform(steps, reach)
    return reach.at(np.rint(np.arange(steps, 0, -1) * ((reach.last + 1) / steps) - 1))


def beta(steps: int, reach: Reach) -> Floats:
    """Lee et al. 2024, 'Beta Sampling is All You Need': more steps at both ends, by quantiles of Beta(0.6, 0.6)."""
    shares = betaincinv(0.6, 0.6, 1 - np.arange(steps) / steps)
    low, high = reach.levels.step(reach.low), reach.levels.step(reach.high)
    return reach.at(low + shares * (high - low))


SCHEDULES: Mapping[str, Schedule] = {
    "Uniform": uniform,
    "Karras": karras,
    "Exponential": exponential,
    "Polyexponential": polyexponential,
    "SGM Uniform": sgm_uniform,
    "KL Optimal": kl_optimal,
    "Align Your Steps": align_your_steps,
    "Simple": simple,
    "Normal": normal,
    "DDIM": ddim,
    "Beta": beta,
    "Turbo": turbo,
}
