"""The small token table of training: only the rows of CLIP's 49,408 tokens that occur in captions, and back again."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]

CLIP_VOCABULARY = 49408
UNKNOWN = 0
"""The small row of every token that no caption holds; its vector stays zero."""


@dataclass(frozen=True)
class TokenTable:
    """`clip_ids[k]` is the CLIP token of small row k + 1; sorted, shape (n,)."""

    clip_ids: Ids

    @classmethod
    def of(cls, ids: Ids) -> "TokenTable":
        """The table of all tokens in `ids`, of any shape."""
        return cls(np.unique(ids))

    @property
    def rows(self) -> int:
        return len(self.clip_ids) + 1

    def compact(self, ids: Ids) -> Ids:
        """CLIP's token ids as rows of the small table."""
        place = np.searchsorted(self.clip_ids, ids).clip(max=len(self.clip_ids) - 1)
        return np.where(self.clip_ids[place] == ids, place + 1, UNKNOWN)

    def compact_rows(self, big: Tensor, spread: float = 0.02) -> Tensor:
        """The small table (rows, width) out of CLIP's (49408, width); rows that are zero there start as noise."""
        known = big[torch.from_numpy(self.clip_ids)]
        fresh = known.abs().sum(1, keepdim=True) == 0
        noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(0)) * spread
        return torch.cat([torch.zeros(1, big.shape[1]), torch.where(fresh, noise, known)])

    def expand_rows(self, small: Tensor) -> Tensor:
        """CLIP's table (49408, width) out of the small one (rows, width); tokens never seen are zero."""
        big = torch.zeros(CLIP_VOCABULARY, small.shape[1])
        big[torch.from_numpy(self.clip_ids)] = small[1:].float()
        return big
