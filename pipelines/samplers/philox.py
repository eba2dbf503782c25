"""Random numbers as an NVIDIA card draws them, on any machine: those of `torch.randn(..., device="cuda")`.

PyTorch counts with Philox: Salmon et al. 2011, 'Parallel Random Numbers: As Easy as 1, 2, 3'. Each element has a
thread and a counter of its own; each call raises the offset of all of them. This holds while a card has a thread for
every element: up to about 100,000 of them, a latent of SDXL has 65,536. Beyond that cards differ among each other.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint32]

ROUNDS = 10
FACTORS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
TO_ONE = np.float32(2.0**-32)
TO_CIRCLE = np.float32(2.0**-32 * 2 * math.pi)


class Philox:
    """Of one image."""

    def __init__(self, seed: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._offset = 0

    def randn(self, shape: Sequence[int]) -> Tensor:
        """The next noise, fp32. Box and Muller's transform, of which CUDA's first number is used."""
        count = math.prod(shape)
        counter = [np.zeros(count, np.uint32) for _ in range(4)]
        counter[0] += np.uint32(self._offset)
        counter[2] = np.arange(count, dtype=np.uint32)
        self._offset += 1
        radius, angle, *_ = philox(counter, self._key)
        uniform = radius.astype(np.float32) * TO_ONE + TO_ONE / 2
        turned = angle.astype(np.float32) * TO_CIRCLE + TO_CIRCLE / 2
        drawn: NDArray[np.float32] = np.sqrt(np.log(uniform) * np.float32(-2)) * np.sin(turned)
        return torch.from_numpy(drawn.reshape(tuple(shape)))


def philox(counter: Sequence[Words], key: tuple[int, int]) -> tuple[Words, ...]:
    """Philox 4x32 with ten rounds: four words for each counter of four words."""
    first, second, third, fourth = counter
    for n in range(ROUNDS):
        keys = [np.uint32((word + n * step) & 0xFFFFFFFF) for word, step in zip(key, KEY_STEPS, strict=True)]
        one, two = first * FACTORS[0], third * FACTORS[1]
        first, second = _high(two) ^ second ^ keys[0], two.astype(np.uint32)
        third, fourth = _high(one) ^ fourth ^ keys[1], one.astype(np.uint32)
    return first, second, third, fourth


def _high(product: NDArray[np.uint64]) -> Words:
    return (product >> np.uint64(32)).astype(np.uint32)
