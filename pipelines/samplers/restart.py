"""Restart: Heun's steps, and from near the end back up with fresh noise, to walk the middle once more."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from pipelines.samplers.euler import heun_step
from pipelines.samplers.walk import Denoise, Step, Walk

BOTTOM, TOP = 0.1, 2.0
"""In noise / signal: from near the first back up to near the second. As in A1111; the paper tunes them by model."""
RHO = 7.0


def restart(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Xu et al. 2023, 'Restart Sampling for Improving Generative Processes', algorithm 1."""
    place = walk.sigmas[0]
    for index, (sigma, following) in enumerate(rounds(walk.sigmas, walk.flow)):
        x = walk.lifted(x, place, sigma)
        x = heun_step(denoise, x, walk, Step(sigma, following, walk.flow, index))
        place = following
    return x


def rounds(sigmas: Sequence[float], flow: bool) -> Iterator[tuple[float, float]]:
    """All steps, in A1111's numbers: of fewer than 20 none is repeated; from there on 9 walk the middle again, from 36
    on twice a quarter of them, and the schedule is thinned out by as many: the whole is as long as before.
    """
    count = len(sigmas) - 1
    times, again = (0, 0) if count < 20 else (1, 9) if count < 36 else (2, count // 4)
    down = _spread(sigmas[:-1], count - times * again)
    bottom, top = (_nearest(down, level / (1 + level) if flow else level) for level in (BOTTOM, TOP))
    if not times or top >= bottom:
        return pairwise(sigmas)
    middle = _spread([down[top], down[bottom]], again + 1)
    return iter(
        [
            *pairwise(down[: bottom + 1]),
            *pairwise(middle),
            *(pairwise(middle) if times > 1 else ()),
            *pairwise([*down[bottom:], sigmas[-1]]),
        ]
    )


def _spread(levels: Sequence[float], count: int) -> list[float]:
    """So many levels along the same curve: between two of them Karras' with rho 7."""
    ramp = np.interp(np.linspace(0, len(levels) - 1, count), np.arange(len(levels)), np.power(levels, 1 / RHO))
    spread: list[float] = (ramp**RHO).tolist()
    return spread


def _nearest(levels: Sequence[float], wanted: float) -> int:
    return min(range(len(levels)), key=lambda i: abs(levels[i] - wanted))
