"""The noise levels of flow matching: sigma runs from 1, pure noise, to 0, and a shift says where the steps are spent.

Esser et al. 2024, 'Scaling Rectified Flow Transformers', section 5.3.2: larger pictures need more noise to lose as
much, so their levels are shifted up, by a fixed factor or by one that grows with the size.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from pipelines.samplers.levels import Floats, NoiseLevels

TRAINING_STEPS = 1000
PATCH = 2
"""Latents to a token of the transformer, along a side: in all families."""

ShiftFor = Callable[[int, int], float]
"""(tokens of the picture, steps) -> factor by which the odds of noise, sigma / (1 - sigma), grow."""


class FlowLevels(NoiseLevels):
    """Without `fitted`, the levels are those of a picture of 1024 x 1024 pixels in 20 steps."""

    flow = True

    def __init__(
        self, shift_for: ShiftFor, terminal: float = 0.0, last: float | None = None, size: tuple[int, int] = (4096, 20)
    ) -> None:
        """`last`: where the makers' schedule ends before it is shifted; None: at 1 / steps. `terminal`: to where it is
        stretched then. `size`: tokens and steps."""
        self._shift_for, self._terminal, self._last = shift_for, terminal, last
        self._shift = shift_for(*size)
        self.sigmas: Floats = shifted(np.arange(1, TRAINING_STEPS + 1) / TRAINING_STEPS, self._shift)

    def sigma(self, step: float) -> float:
        return float(shifted(np.asarray((step + 1) / TRAINING_STEPS), self._shift))

    def step(self, sigma: float) -> float:
        return float(shifted(np.asarray(sigma), 1 / self._shift)) * TRAINING_STEPS - 1

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        return x0 * (1 - sigma) + noise * sigma

    def fitted(self, shape: Sequence[int], steps: int) -> "FlowLevels":
        height, width = (math.ceil(side / PATCH) for side in shape[-2:])
        return FlowLevels(self._shift_for, self._terminal, self._last, (height * width, steps))

    def own_schedule(self, steps: int) -> Floats:
        """Even steps, shifted: diffusers' FlowMatchEulerDiscreteScheduler as the makers' pipelines call it."""
        last = 1 / steps if self._last is None else self._last
        visited = shifted(np.linspace(1, last, steps), self._shift)
        if self._terminal and steps > 1:
            visited = 1 - (1 - visited) * (1 - self._terminal) / (1 - visited[-1])
        return visited


def shifted(sigmas: Floats, factor: float) -> Floats:
    """Esser et al. 2024, equation 23. Rounding must not lift pure noise above 1."""
    moved: Floats = np.minimum(factor * sigmas / (1 + (factor - 1) * sigmas), 1.0)
    return moved


def fixed(factor: float) -> ShiftFor:
    return lambda tokens, steps: factor


def growing(base: float = 0.5, most: float = 1.15, most_tokens: int = 4096) -> ShiftFor:
    """The log of the factor is a line over the tokens, `base` at 256: Flux.1's and Qwen-Image's schedulers."""
    slope = (most - base) / (most_tokens - 256)
    return lambda tokens, steps: math.exp(base + slope * (tokens - 256))


def flux2(tokens: int, steps: int) -> float:
    """FLUX.2's own fit over size and steps; above 4300 tokens the steps do not count."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(at_200)
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return math.exp(at_200 + slope * (steps - 200))
