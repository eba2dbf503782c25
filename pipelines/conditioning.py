"""From the words of a pass to what its denoiser is told at each step. A text that is known is not encoded again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch

from pipelines.families.base import Cond, LoadedModel, Reading
from pipelines.prompt import Wording, read
from pipelines.prompt.wording import joined

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
    """Of the first image."""
    each: tuple[Wording, ...] = ()
    """Of each image, where they differ: the same number of prompts with the same weights."""
    regions: tuple["Told", ...] = ()
    """Of each region of the request."""
    nothing: Cond | None = None
    """An empty text, one row, where somebody needs it."""
    _at: dict[tuple[int, ...], Cond] = field(default_factory=dict, compare=False)

    @property
    def weights(self) -> tuple[float, ...]:
        return self.wording.weights

    @property
    def has_away(self) -> bool:
        return bool(self.wording.away)

    def at(self, step: int, count: int, away: bool = True) -> Cond:
        """For `count` images at once: all rows of the first prompt, then of the next; last what to stay away from."""
        if self.each and len(self.each) != count:
            raise ValueError(f"{len(self.each)} images have prompts of their own, {count} were asked about")
        picked = [each.at(step, away) for each in self.each or (self.wording,) * count]
        key = tuple(text for texts in zip(*picked, strict=True) for text in texts)
        if key not in self._at:
            self._at[key] = self.rows.take(key).sided(len(self.weights) * count)
        return self._at[key]


@torch.inference_mode()
def told(
    model: LoadedModel, wordings: Sequence[Wording], reading: Reading, cache: TextCache, dressed: str = ""
) -> Told:
    """`wordings`: one for all images, or one for each. `dressed`: names what else changes the reading networks, such
    as LoRAs."""
    wordings = joined(wordings)
    texts = wordings[0].texts
    networks = tuple(part.key for name, part in sorted(model.parts.items()) if name.startswith("text_encoder"))
    formats = tuple(str(part.dtype) for part in model.parts.values())
    family = (type(getattr(model, "inner", model)).__qualname__, model.reader)  # two may share a network
    key = (family, networks, formats, dressed, reading, texts)
    rows = cache.get(key, lambda: model.encode([read(text, reading.emphasis) for text in texts], reading))
    return Told(rows, wordings[0], wordings if len(wordings) > 1 else ())
