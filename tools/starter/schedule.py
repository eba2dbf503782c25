"""How fast to learn when: a warm-up by steps, then constant, then a cosine to nearly nothing, by the clock."""

import math
from typing import Self

from pydantic import BaseModel, ConfigDict


class Clock(BaseModel):
    """A training's span in seconds since 1970. By the clock a pause costs steps, but the decay still ends in time."""

    model_config = ConfigDict(frozen=True)

    start: float
    deadline: float

    @classmethod
    def lasting(cls, now: float, minutes: float) -> Self:
        return cls(start=now, deadline=now + 60 * minutes)

    def progress(self, now: float) -> float:
        """0 at the start, 1 at the deadline and after it."""
        return min(1.0, max(0.0, (now - self.start) / (self.deadline - self.start)))


def rate_factor(progress: float, step: int, warmup: int = 150, constant: float = 0.4, floor: float = 0.02) -> float:
    """The share of the full learning rate, `step` steps after the (re)start; cosine as in SGDR (arXiv:1608.03983)."""
    falling = max(0.0, (progress - constant) / (1 - constant))
    cosine = 0.5 * (1 + math.cos(math.pi * falling))
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * cosine)
