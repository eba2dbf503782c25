"""Solvers: the ways from noise to a picture, one pure function each, over `denoise(x, sigma) -> x0`.

All work in the variables of Karras et al. 2022: x = x0 + sigma * noise, so dx/dsigma = (x - x0) / sigma.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> x0, the clean picture that the model sees in x at noise level sigma."""
DrawNoise = Callable[[], Tensor]
"""Fresh noise of unit variance in the shape of x."""
OnStep = Callable[[int, Tensor], None]
"""(index from 0, x0), called as soon as the model has spoken; it may raise to leave the loop."""
Solver = Callable[[Denoise, Tensor, Sequence[float], DrawNoise, OnStep], Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: DrawNoise, on_step: OnStep) -> Tensor:
    """Karras et al. 2022, algorithm 2, without churn and without the second-order correction."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        on_step(i, x0)
        x = torch.lerp(x0, x, following / sigma)  # x + (following - sigma) * (x - x0) / sigma
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: DrawNoise, on_step: OnStep) -> Tensor:
    """Ancestral sampling in Euler steps: go below the next level and add noise up to it.

    The split is that of k-diffusion (Crowson 2022): up^2 = next^2 (now^2 - next^2) / now^2, down^2 = next^2 - up^2,
    which is the posterior variance of Ho et al. 2020, equation 7, in these variables.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        on_step(i, x0)
        up = following * math.sqrt(max(0.0, 1 - (following / sigma) ** 2))
        down = math.sqrt(following**2 - up**2)
        x = torch.lerp(x0, x, down / sigma)
        if following > 0:
            x = x + noise() * up
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: DrawNoise, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022, 'DPM-Solver++', algorithm 2, with alpha = 1 and lambda = -log sigma."""
    before: Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        on_step(i, x0)
        slope = x0
        if before is not None and following > 0:
            # r = h_before / h: a line through the last two x0, taken at the middle of the step
            r = math.log(sigmas[i - 1] / sigma) / math.log(sigma / following)
            slope = torch.lerp(before, x0, 1 + 1 / (2 * r))
        x = torch.lerp(slope, x, following / sigma)
        before = x0
    return x
