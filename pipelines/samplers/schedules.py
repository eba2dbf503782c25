"""Schedules: which noise levels the steps visit, from the highest down. The last level, 0, is added by the caller."""

from collections.abc import Callable

import numpy as np

from pipelines.samplers.levels import Floats, NoiseLevels

Schedule = Callable[[int, NoiseLevels], Floats]


def uniform(steps: int, levels: NoiseLevels) -> Floats:
    """Training steps at even distances, both ends included: `get_sigmas` of k-diffusion."""
    return np.array([levels.sigma(step) for step in np.linspace(len(levels.sigmas) - 1, 0, steps)])


def karras(steps: int, levels: NoiseLevels) -> Floats:
    """Karras et al. 2022, equation 5, with rho = 7."""
    rho = 7.0
    ramp: Floats = np.linspace(levels.high ** (1 / rho), levels.low ** (1 / rho), steps)
    return ramp**rho


def exponential(steps: int, levels: NoiseLevels) -> Floats:
    """Even distances in log sigma: the limit of Karras' schedule for rho to infinity."""
    return np.exp(np.linspace(np.log(levels.high), np.log(levels.low), steps))


def sgm_uniform(steps: int, levels: NoiseLevels) -> Floats:
    """Training steps at even distances as in Stability's generative-models: the lowest level is left out."""
    return np.array([levels.sigma(step) for step in np.linspace(len(levels.sigmas) - 1, 0, steps + 1)[:-1]])


def simple(steps: int, levels: NoiseLevels) -> Floats:
    """Every n-th entry of the training table, from its end, without interpolation."""
    stride = len(levels.sigmas) / steps
    return np.array([levels.sigmas[-1 - int(i * stride)] for i in range(steps)])
