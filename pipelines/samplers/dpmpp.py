"""DPM-Solver++ over several steps, and its stochastic forms: Lu et al. 2022, 'DPM-Solver++: Fast Solver for Guided
Sampling of Diffusion Probabilistic Models'.

Each step is the exact one for some x0, `slope`, that is extrapolated from the last x0: `Step.towards`. With eta above
0 a share of the noise is taken away and replaced by that of a Brownian path: section 5 there, SDE-DPM-Solver++.
"""

import math
from functools import partial

import torch
from torch import Tensor

from pipelines.samplers.walk import Denoise, Step, Walk


def dpmpp_2m(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Algorithm 2. A line through the last two x0, taken at the middle of the step."""
    before: tuple[Tensor, Step] | None = None
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        x = _stochastic(walk, step, x, x0 if before is None else _middle(step, x0, *before))
        before = x0, step
    return x


def dpmpp_2m_heun(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """The same with the line integrated exactly over the step, as the slopes in Heun's method are averaged."""
    before: tuple[Tensor, Step] | None = None
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        slope = x0
        if before is not None and not step.is_last:
            first, _ = _integrals(walk, step)
            slope = torch.lerp(before[0], x0, 1 + first * step.h / before[1].h)
        x = _stochastic(walk, step, x, slope)
        before = x0, step
    return x


def dpmpp_3m(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """A parabola through the last three x0, integrated exactly: as k-diffusion does (Crowson 2023), which for eta 0 is
    the third-order multistep solver of the paper's appendix.
    """
    past: list[tuple[Tensor, Step]] = []
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        slope = x0 if step.is_last or not past else _parabola(walk, step, x0, past)
        x = _stochastic(walk, step, x, slope)
        past = [(x0, step), *past[:1]]
    return x


def dpmpp_sde(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """One step with a look at its middle, where noise has been added too: algorithm 1 in ancestral form, as in
    k-diffusion (Crowson 2022).
    """
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        if step.shrink:
            half = step.to(step.within(0.5))
            ahead = walk.ancestral(half, x, x0, partial(walk.noise.between, half.sigma, half.following))
            x0 = denoise(ahead, half.following)
        x = walk.ancestral(step, x, x0, partial(walk.noise.between, step.sigma, step.following))
    return x


def _middle(step: Step, x0: Tensor, before: Tensor, last: Step) -> Tensor:
    if step.is_last:
        return x0
    return torch.lerp(before, x0, 1 + step.h / (2 * last.h))


def _parabola(walk: Walk, step: Step, x0: Tensor, past: list[tuple[Tensor, Step]]) -> Tensor:
    first, second = _integrals(walk, step)
    (x1, last), *older = past
    r = last.h / step.h
    slope = (x0 - x1) / r
    if not older:
        return x0 + slope * first
    x2, last_but_one = older[0]
    r2 = last_but_one.h / step.h
    slope_before = (x1 - x2) / r2
    bend = (slope - slope_before) / (r + r2)
    return x0 + (slope + bend * r) * first - bend * second


def _integrals(walk: Walk, step: Step) -> tuple[float, float]:
    """Of a line, and of a parabola, over the step, weighted as the exact solution weighs x0; in units of what a
    constant gets. From pure noise nothing but the present counts: there the step has no end in h.
    """
    shrunk = step.shrink ** (1 + walk.eta)
    length = step.h * (1 + walk.eta)
    line = 1 - (1 - shrunk) / length
    return line / (1 - shrunk), (line / length - 0.5) / (1 - shrunk)


def _stochastic(walk: Walk, step: Step, x: Tensor, slope: Tensor) -> Tensor:
    kept: float = step.shrink**walk.eta
    x = step.towards(x, slope, kept)
    if not walk.eta or step.is_last:
        return x
    noise = walk.noise.between(step.sigma, step.following)
    return x + noise * (step.following * math.sqrt(1 - kept**2) * walk.options.s_noise)
