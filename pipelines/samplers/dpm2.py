"""Second-order steps that ask the model a second time, at the middle of the step."""

import math

from torch import Tensor

from pipelines.samplers.walk import Denoise, Step, Walk


def dpm_2(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """DPM-Solver-2 as k-diffusion has it (Crowson 2022): the slope at the middle in log sigma, after Karras et al.
    2022, algorithm 2, with the midpoint rule instead of Heun's. With eta, to below the next level, and noise up to it.
    """
    for planned in walk.steps():
        step, x = walk.churned(planned, x)
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        fresh = walk.fresh(step)
        shrink = step.shrink * math.sqrt(1 - fresh**2)
        if shrink:
            half = step.to(step.within(0.5, shrink))
            ahead = half.towards(x, x0)
            x = _along(step, x, (ahead, denoise(ahead, half.following), half), shrink)
            x = walk.renewed(step, x, fresh)
        else:
            x = walk.ancestral(step, x, x0)
    return x


def _along(step: Step, x: Tensor, middle: tuple[Tensor, Tensor, Step], shrink: float) -> Tensor:
    """d(x / signal) / d(sigma / signal) is the noise that the model sees, for flows too."""
    ahead, x0, half = middle
    seen = (ahead - x0 * half.next_signal) / half.following
    ratio = step.sigma / step.signal
    return (x / step.signal + seen * (ratio * (shrink - 1))) * step.next_signal


def dpmpp_2s_ancestral(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """DPM-Solver++(2S): Lu et al. 2022, 'DPM-Solver++', algorithm 1 with r = 1/2, to below the next level, and noise
    up to it.
    """
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        shrink = step.shrink * math.sqrt(1 - walk.fresh(step) ** 2)
        if shrink:
            half = step.to(step.within(0.5, shrink))
            x0 = denoise(half.towards(x, x0), half.following)
        x = walk.ancestral(step, x, x0)
    return x
