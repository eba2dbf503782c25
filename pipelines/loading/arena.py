"""Memory for a whole network in one piece, which is written over when the next network of its size comes.

Measured with 3.5 GB, in CPU seconds (a virtual machine, Linux 6.18): filling fresh memory 2.5, nearly all of it the
system's page faults; filling it again 0.35. Huge pages (MADV_HUGEPAGE) made that 10 to 14: they are not asked for.
"""

import math

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector of a CPU."""
SLACK = 1.02
"""A piece that is at most this much too large is taken again."""


HALVES = (torch.float16, torch.bfloat16)
STRIDE = 2**18
"""Numbers that are cast at once: what passes through 32 bits stays in the cache."""


def padded(size_bytes: int) -> int:
    return math.ceil(size_bytes / ALIGNMENT) * ALIGNMENT


def allocate(size_bytes: int) -> Tensor:
    """Bytes with whatever is in them. So large a piece goes back to the system with the last view of it."""
    return torch.empty(size_bytes, dtype=torch.uint8)


def cast(weights: Tensor, into: Tensor) -> Tensor:
    """As `into.copy_(weights)`, which takes 2.6 times as long from one half precision to the other: torch has no vector
    instructions for that, and has them for the way by 32 bits, which is exact."""
    if {weights.dtype, into.dtype} != set(HALVES):
        return into.copy_(weights)
    wide = torch.empty(min(STRIDE, weights.numel()), dtype=torch.float32)
    for there, here in zip(torch.split(into.view(-1), STRIDE), torch.split(weights.reshape(-1), STRIDE), strict=True):
        there.copy_(wide[: len(here)].copy_(here))
    return into


def fits(memory: Tensor, size_bytes: int) -> bool:
    return size_bytes <= len(memory) <= size_bytes * SLACK


class Arena:
    """Hands out tensors from one piece of memory, one behind the other."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self._used = 0

    def tensor(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """With whatever stands there."""
        size = math.prod(shape) * dtype.itemsize
        piece = self.memory[self._used : self._used + size]
        self._used += padded(size)
        return piece.view(dtype).view(shape)
