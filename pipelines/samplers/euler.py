"""Steps along the slope at their beginning, and Heun's, which also look at the slope at their end."""

import math

import torch
from torch import Tensor

from pipelines.samplers.walk import Denoise, Step, Walk


def euler(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Karras et al. 2022, algorithm 2, without the second-order correction."""
    for planned in walk.steps():
        step, x = walk.churned(planned, x)
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        x = step.towards(x, x0)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Ancestral sampling in Euler steps. With eta 0 it is Euler's, with eta between them DDIM's: Song et al. 2020,
    'Denoising Diffusion Implicit Models', equation 12, is the same in these variables.
    """
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        x = walk.ancestral(step, x, x0)
    return x


def heun(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Karras et al. 2022, algorithm 2."""
    for planned in walk.steps():
        step, x = walk.churned(planned, x)
        x = heun_step(denoise, x, walk, step)
    return x


def heun_step(denoise: Denoise, x: Tensor, walk: Walk, step: Step) -> Tensor:
    x0 = denoise(x, step.sigma)
    walk.on_step(step.index, x0)
    ahead = step.towards(x, x0)
    if step.is_last:
        return ahead
    slope = (x - x0) / step.sigma
    slope_ahead = (ahead - denoise(ahead, step.following)) / step.following
    return x + torch.lerp(slope, slope_ahead, 0.5) * (step.following - step.sigma)


def ddim_cfgpp(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Chung et al. 2024, 'CFG++: Manifold-constrained Classifier Free Guidance', algorithm 1: to the x0 of guidance,
    and back to the next level with the noise that the model sees without the prompt.
    """
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        unguided = walk.unguided()
        seen = (x - (x0 if unguided is None else unguided) * step.signal) / step.sigma
        fresh = walk.fresh(step)
        x = x0 * step.next_signal + seen * (step.following * math.sqrt(1 - fresh**2))
        x = walk.renewed(step, x, fresh)
    return x
