"""Linear multistep methods: the slopes of the last steps, extrapolated over the next one. One call a step."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipelines.samplers.walk import Denoise, Walk

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth for even steps, the newest slope first."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)


def lms(denoise: Denoise, x: Tensor, walk: Walk, order: int = 4) -> Tensor:
    """Adams-Bashforth for steps of any lengths: a polynomial in sigma through the last four slopes, integrated.
    Katherine Crowson's, in k-diffusion 2022.
    """
    past: list[tuple[float, Tensor]] = []
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        past = [(step.sigma, (x - x0) / step.sigma), *past[: order - 1]]
        x = x + _sum(
            extrapolation([sigma for sigma, _ in past], step.sigma, step.following), [each for _, each in past]
        )
    return x


def ipndm(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Improved PNDM: Zhang and Chen 2022, 'Fast Sampling of Diffusion Models with Exponential Integrator', appendix:
    Adams-Bashforth as if the steps were even, with lower orders at the beginning. The last step goes to x0.
    """
    past: list[Tensor] = []
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        if step.is_last:
            return x0
        past = [(x - x0) / step.sigma, *past[:3]]
        x = x + _sum(ADAMS[len(past) - 1], past) * (step.following - step.sigma)
    return x


def plms(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Pseudo linear multistep: Liu et al. 2022, 'Pseudo Numerical Methods for Diffusion Models on Manifolds', as in
    Stable Diffusion (Rombach et al. 2022): the first step is Heun's, the others are as those above.
    """
    past: list[Tensor] = []
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        past = [(x - x0) / step.sigma, *past[:3]]
        slope = _sum(ADAMS[len(past) - 1], past)
        if step.index == 0 and not step.is_last:
            ahead = step.towards(x, x0)
            slope = torch.lerp(slope, (ahead - denoise(ahead, step.following)) / step.following, 0.5)
        x = x + slope * (step.following - step.sigma)
    return x


def deis(denoise: Denoise, x: Tensor, walk: Walk, order: int = 3) -> Tensor:
    """Zhang and Chen 2022, 'Fast Sampling of Diffusion Models with Exponential Integrator', section 3.2: the noise that
    the model sees, as a polynomial in log(sigma / signal), integrated over sigma / signal. At most three points.
    """
    past: list[tuple[float, Tensor]] = []
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        if math.isinf(step.h):
            x = step.towards(x, x0)
            continue
        start = math.log(step.sigma / step.signal)
        past = [(start, (x - x0 * step.signal) / step.sigma), *past[: order - 1]]
        weights = extrapolation([place for place, _ in past], start, start - step.h, math.exp)
        x = (x / step.signal + _sum(weights, [each for _, each in past])) * step.next_signal
    return x


def extrapolation(
    places: Sequence[float], start: float, end: float, density: Callable[[float], float] = lambda place: 1.0
) -> list[float]:
    """The integral of `density` times the polynomial that is 1 at one place and 0 at the others, for each of them.

    By Gauss and Legendre, which is exact for polynomials up to degree 15.
    """
    points = [start + (end - start) * (node + 1) / 2 for node in NODES.tolist()]
    loads = [load * (end - start) / 2 * density(point) for load, point in zip(WEIGHTS.tolist(), points, strict=True)]

    def basis(k: int, point: float) -> float:
        return math.prod((point - other) / (places[k] - other) for j, other in enumerate(places) if j != k)

    return [sum(load * basis(k, point) for load, point in zip(loads, points, strict=True)) for k in range(len(places))]


def _sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0] * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = torch.add(total, tensor, alpha=weight)
    return total
