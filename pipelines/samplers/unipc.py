"""UniPC: a predictor, and a corrector that makes use of what the model says anyhow at the place predicted."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.samplers.walk import Denoise, Step, Walk

Point = tuple[float, Tensor]
"""A half log of the signal-to-noise ratio, counted from the present, and the x0 that was seen there."""


def unipc(denoise: Denoise, x: Tensor, walk: Walk, order: int = 3) -> Tensor:
    """Zhao et al. 2023, 'UniPC: A Unified Predictor-Corrector Framework', algorithms 1 and 2 for predictions of x0,
    with B(h) = h, which the authors recommend without strong guidance and A1111 takes.

    The order grows with what is known, and falls again at the end.
    """
    past: list[tuple[Step, Tensor]] = []
    start = x
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        if past and not math.isinf(past[0][0].h):
            last, used = past[0][0], min(order, len(past), walk.count - step.index + 1)
            x = _moved(last, start, _points(past[:used]), x0)
        start, past = x, [(step, x0), *past[: order - 1]]
        used = min(order, len(past), walk.count - step.index)
        x = _moved(step, x, _points(past[:used]), None)
    return x


def _points(past: Sequence[tuple[Step, Tensor]]) -> list[Point]:
    """The present first. What was seen in pure noise lies infinitely far away and counts no more."""
    places, points = 0.0, []
    for n, (step, x0) in enumerate(past):
        places -= step.h if n else 0.0
        if not math.isinf(places):
            points.append((places, x0))
    return points


def _moved(step: Step, x: Tensor, points: Sequence[Point], ahead: Tensor | None) -> Tensor:
    """Over a step, from where `points` begin; with `ahead`, x0 seen at its end, this is the corrector."""
    (_, x0), *others = points
    if math.isinf(step.h) or (not others and ahead is None):
        return step.towards(x, x0)
    places = [place / step.h for place, _ in others] + ([1.0] if ahead is not None else [])
    seen = [each for _, each in others] + ([ahead] if ahead is not None else [])
    slope = x0
    for place, rho, each in zip(places, _weights(step.h, places), seen, strict=True):
        slope = torch.add(slope, each - x0, alpha=rho / place)
    return step.towards(x, slope)


def _weights(h: float, places: Sequence[float]) -> list[float]:
    """Theorem 3.1: the sums over rho_m r_m^(n-1) are n! phi_(n+1)(h) h^n / B(h). One of them is 1/2 for every h, as in
    the authors' program. In units of what a constant x0 gets.
    """
    constant = -math.expm1(-h)
    if len(places) == 1:
        return [0.5 * h / constant]
    phi, wanted = 1 - constant / h, []
    for n in range(1, len(places) + 1):
        wanted.append(phi / h * math.factorial(n))
        phi = 1 / math.factorial(n + 1) - phi / h
    return [float(rho) * h / constant for rho in np.linalg.solve(np.vander(places, increasing=True).T, wanted)]
