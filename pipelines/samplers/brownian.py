"""The path of a Brownian motion, one an image: the noise of solvers of stochastic differential equations.

The path is that of torchsde's BrownianTree, and so A1111's, from the same seed: halves of halves of the whole stretch,
each middle drawn when it is needed from a seed of its own. torchsde itself can't draw as an NVIDIA card does, and takes
more than twice as long, since it goes from increment to increment, not from point to point.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

DIGITS = 6
"""Places are told apart to a millionth."""
POOL = 24
REMEMBERED = 4

Drawn = Callable[[int], Tensor]
"""Noise of unit variance from a seed."""


class BrownianPath:
    def __init__(self, start: float, end: float, seed: int, drawn: Drawn) -> None:
        self._start, self._end = round(start, DIGITS), round(end, DIGITS)
        self._seed, self._drawn = seed, drawn
        whole = np.random.SeedSequence(seed, pool_size=POOL).generate_state(3)[0]
        self._whole = drawn(int(whole)) * math.sqrt(end - start)
        self._middles: dict[tuple[int, int], Tensor] = {}
        self._points: dict[float, Tensor] = {}

    def between(self, place: float, other: float) -> Tensor:
        """The way from one place to the other, brought to unit variance."""
        return (self.at(other) - self.at(place)) / math.sqrt(abs(other - place))

    def at(self, place: float) -> Tensor:
        """How far the path has come from its start."""
        place = min(max(round(place, DIGITS), self._start), self._end)
        if place not in self._points:
            self._points[place] = self._found(place)
            if len(self._points) > REMEMBERED:
                del self._points[next(iter(self._points))]
        return self._points[place]

    def _found(self, place: float) -> Tensor:
        left, right, before, after = self._start, self._end, torch.zeros_like(self._whole), self._whole
        key, depth, passed = 0, 0, {}
        while left < place < right:
            middle = round((left + right) / 2, DIGITS)
            at_middle = self._middles.get((key, depth))
            if at_middle is None:
                at_middle = self._middle((left, middle, right), (before, after), (key, depth))
            passed[key, depth] = at_middle
            if place < middle:
                right, after, key = middle, at_middle, 2 * key
            else:
                left, before, key = middle, at_middle, 2 * key + 1
            depth += 1
        self._middles = passed
        return before if place == left else after

    def _middle(self, places: tuple[float, float, float], ends: tuple[Tensor, Tensor], node: tuple[int, int]) -> Tensor:
        """A Brownian bridge between two known points."""
        left, middle, right = places
        seeds = np.random.SeedSequence(self._seed, spawn_key=node, pool_size=POOL).generate_state(4)
        share = (middle - left) / (right - left)
        spread = math.sqrt((middle - left) * (right - middle) / (right - left))
        return ends[0].lerp(ends[1], share) + self._drawn(int(seeds[0])) * spread
