"""For models that were distilled to draw in a few steps."""

import math

from torch import Tensor

from pipelines.samplers.walk import Denoise, Walk

GAMMA = 0.3
"""TCD's share of noise: what its authors draw with."""


def lcm(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Luo et al. 2023, 'Latent Consistency Models', algorithm 3: to the picture, and back with fresh noise to the next
    level; for flows as well. (Their skip connection counts below step 1 only and is left out.)
    """
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        x = x0 if step.is_last else x0 * step.next_signal + walk.noise() * (step.following * walk.options.s_noise)
    return x


def tcd(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Zheng et al. 2024, 'Trajectory Consistency Distillation', algorithm 4, strategic stochastic sampling: down to a
    training step below the next one, the fewer the greater eta is (their gamma), and up again with fresh noise.
    """
    if walk.levels is None:
        raise ValueError("TCD counts in training steps: it needs the model's noise levels")
    for step in walk.steps():
        x0 = denoise(x, step.sigma)
        walk.on_step(step.index, x0)
        if step.is_last:
            return x0
        below = walk.levels.sigma((1 - min(1.0, walk.eta)) * walk.levels.step(step.following))
        x = step.to(below).towards(x, x0)
        if below < step.following:
            x = x + walk.noise() * (math.sqrt(step.following**2 - below**2) * walk.options.s_noise)
    return x
