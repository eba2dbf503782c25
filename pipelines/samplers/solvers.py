"""Solvers: the ways from noise to a picture, one pure function each, over `denoise(x, sigma) -> x0`.

All work in the variables of Karras et al. 2022: x = x0 + sigma * noise, so dx/dsigma = (x - x0) / sigma. Flow models
have x = (1 - sigma) * x0 + sigma * noise, for which that is the same; what is not the same says so.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipelines.samplers.levels import Sigmas

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
    if _is_flow(sigmas):
        return _flow_ancestral(denoise, x, sigmas, noise, on_step)
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        on_step(i, x0)
        up = following * math.sqrt(max(0.0, 1 - (following / sigma) ** 2))
        down = math.sqrt(following**2 - up**2)
        x = torch.lerp(x0, x, down / sigma)
        if following > 0:
            x = x + noise() * up
    return x


def _flow_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: DrawNoise, on_step: OnStep) -> Tensor:
    """The same posterior for x / (1 - sigma), whose noise level is sigma / (1 - sigma), written without a pole at 1."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        on_step(i, x0)
        kept = (following / sigma) ** 2 * (1 - sigma) / (1 - following)
        x = x * kept + x0 * (1 - following - kept * (1 - sigma))
        if following > 0:
            fresh = (following * (1 - sigma) / (sigma * (1 - following))) ** 2
            x = x + noise() * (following * math.sqrt(1 - fresh))
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: DrawNoise, on_step: OnStep) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022, 'DPM-Solver++', algorithm 2, with alpha = 1 and lambda = -log sigma.

    For a flow, alpha = 1 - sigma: lambda = log((1 - sigma) / sigma), and a step is the same line from x to x0.
    """
    before: Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        on_step(i, x0)
        slope = x0
        if before is not None and following > 0:
            # r = h_before / h: a line through the last two x0, taken at the middle of the step
            r = _log_ratio(sigmas, i - 1) / _log_ratio(sigmas, i)
            slope = torch.lerp(before, x0, 1 + 1 / (2 * r))
        x = torch.lerp(slope, x, following / sigma)
        before = x0
    return x


def _is_flow(sigmas: Sequence[float]) -> bool:
    return isinstance(sigmas, Sigmas) and sigmas.flow


def _log_ratio(sigmas: Sequence[float], i: int) -> float:
    """How much lambda, half the log of the signal-to-noise ratio, grows in step i; without end from pure noise."""
    sigma, following = sigmas[i], sigmas[i + 1]
    if not _is_flow(sigmas):
        return math.log(sigma / following)
    if sigma >= 1:
        return math.inf
    return math.log(sigma * (1 - following) / (following * (1 - sigma)))
