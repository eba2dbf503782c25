"""From the words of a pass to what its denoiser is told at each step. A text that is known is not encoded again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from pipelines.families.base import Cond, LoadedModel, Reading
from pipelines.prompt import Wording, read

KEPT = 64
"""So many sets of texts are remembered: half a megabyte each for SDXL."""


class TextCache:
    """By content: the networks that read, how they read, and the texts."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._known: OrderedDict[Hashable, Cond] = OrderedDict()

    def get(self, key: Hashable, encode: Callable[[], Cond]) -> Cond:
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = self._known[key] = encode()
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return found

    def clear(self) -> None:
        self._known.clear()


@dataclass(frozen=True)
class Told:
    """Rows of all texts of a pass, and which of them count at each step."""

    rows: Cond
    wording: Wording
    _at: dict[tuple[tuple[int, ...], int], Cond] = field(default_factory=dict, compare=False)

    @property
    def weights(self) -> tuple[float, ...]:
        return self.wording.weights

    @property
    def has_away(self) -> bool:
        return bool(self.wording.away)

    def at(self, step: int, count: int, away: bool = True) -> Cond:
        """For `count` images at once: all rows of the first prompt, then of the next; last what to stay away from."""
        lists = [term.by_step for term in self.wording.towards]
        if away and self.wording.away:
            lists.append(self.wording.away)
        picked = tuple(texts[min(step, len(texts) - 1)] for texts in lists)
        key = (picked, count)
        if key not in self._at:
            rows = self.rows.take([text for text in picked for _ in range(count)])
            self._at[key] = rows.sided(len(self.weights) * count)
        return self._at[key]


@torch.inference_mode()
def told(model: LoadedModel, wording: Wording, reading: Reading, cache: TextCache, dressed: str = "") -> Told:
    """`dressed`: names what else changes the reading networks, such as LoRAs."""
    networks = tuple(part.key for name, part in sorted(model.parts.items()) if name.startswith("text_encoder"))
    formats = tuple(str(part.dtype) for part in model.parts.values())
    key = (networks, formats, dressed, reading, wording.texts)
    return Told(
        cache.get(key, lambda: model.encode([read(text, reading.emphasis) for text in wording.texts], reading)), wording
    )
