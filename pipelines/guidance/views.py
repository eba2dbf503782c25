"""What the network has seen in one step: from which guidance is made."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Views:
    """All are x0, [images, channels, height, width]."""

    x: Tensor
    """What was looked at: x0 and noise of this level."""
    sigma: float
    towards: Tensor
    """With the prompt; with several, what they say together."""
    away: Sequence[Tensor]
    """One, with the negative prompt; empty where it was not asked."""
    perturbed: Tensor | None
    """With the prompt, by a network that was made worse; None: not asked."""

    def velocity(self, x0: Tensor, flow: bool) -> Tensor:
        """The same as v = alpha noise - sigma x0 (Salimans and Ho 2022), or as noise - x0 of flow matching."""
        if flow:
            return (self.x - x0) / self.sigma
        root = math.sqrt(1 + self.sigma**2)
        return self.x / (self.sigma * root) - x0 * (root / self.sigma)

    def from_velocity(self, velocity: Tensor, flow: bool) -> Tensor:
        if flow:
            return self.x - velocity * self.sigma
        root = math.sqrt(1 + self.sigma**2)
        return self.x / root**2 - velocity * (self.sigma / root)


Change = Callable[[Views, Tensor], Tensor]
"""What was seen, and the x0 that was made of it so far -> the x0 that is made of it."""


def axes(x: Tensor) -> list[int]:
    """All but that of the images."""
    return list(range(1, x.ndim))
