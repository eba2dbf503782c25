"""Where the weights of a model that is being loaded shall lie in RAM: three homes, decided part by part.

- memory into which they are cast, or copied for a card; that of a model that made room, if the sizes match
- for a card: memory that the driver has locked, which it reads at the full speed of the bus
- their file, where RAM is too short for a copy; layers cast their own for each call then, see `placement.py`
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import psutil
from torch import Tensor

from pipelines.loading.arena import fits
from pipelines.loading.checkpoint import Draft
from pipelines.loading.pinned import Pins

MOST_OF_FREE = 0.8
"""So much of the RAM that is free when a model is loaded may become casts of its weights."""


class Home(NamedTuple):
    draft: Draft
    memory: Tensor | None
    """Taken over, or locked. None: what has to be cast gets memory of its own."""


class Homes:
    def __init__(
        self, pins: Pins | None = None, free_bytes: Callable[[], int] = lambda: psutil.virtual_memory().available
    ) -> None:
        """`pins`: of a card. `free_bytes`: of RAM."""
        self._pins, self._free_bytes = pins, free_bytes

    def choose(self, drafts: Sequence[Draft], pieces: list[Tensor], within_budget: bool) -> dict[str, Home]:
        """By name of the part. `pieces`: memory of models that are gone; what is taken of it is removed from the list.
        `within_budget`: copies of all weights for the card are none too many."""
        memory: dict[str, Tensor] = {}
        for draft in drafts:
            size = draft.locked_bytes if draft.mapped and self._pins else draft.memory_bytes
            match = next((i for i, piece in enumerate(pieces) if fits(piece, size)), None)
            if size and match is not None:
                memory[draft.source.part] = pieces.pop(match)
        if self._pins and within_budget:
            memory |= self._locked(self._pins, [draft for draft in drafts if draft.source.part not in memory])
        cast = self._room_to_cast(drafts, memory)
        return {
            name: Home(draft if name in cast else replace(draft, mapped=True), memory.get(name))
            for name, draft in ((draft.source.part, draft) for draft in drafts)
        }

    @staticmethod
    def _locked(pins: Pins, drafts: Sequence[Draft]) -> dict[str, Tensor]:
        made = {draft.source.part: pins.allocate(draft.locked_bytes) for draft in drafts if draft.mapped}
        return {name: piece for name, piece in made.items() if piece is not None}

    def _room_to_cast(self, drafts: Sequence[Draft], memory: dict[str, Tensor]) -> set[str]:
        """The largest parts go without first: of these, half of the bytes are saved."""
        left = int(self._free_bytes() * MOST_OF_FREE)
        chosen: set[str] = set()
        for draft in sorted(drafts, key=lambda draft: draft.memory_bytes):
            left -= 0 if draft.source.part in memory else draft.memory_bytes
            if left >= 0:
                chosen.add(draft.source.part)
        return chosen
