"""Two buffers on the device through which layers pass: one computes while the next one's weights arrive.

On CUDA the copies run on a stream of their own, from pinned memory. Only events tie the two streams together: the
processor runs ahead without waiting, and no memory is allocated in a step. On other devices the copies come in line.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor

ALIGN = 256
CHUNK_BYTES = 2**28
"""Pinned memory comes in powers of two: taken in such chunks, none of it is wasted."""


def room_for(tensors: Sequence[Tensor]) -> int:
    """Bytes that these take in a buffer."""
    return sum(-(-tensor.nbytes // ALIGN) * ALIGN for tensor in tensors)


@dataclass
class Slot:
    buffer: Tensor
    holds: Hashable | None = None
    busy: bool = False
    arrived: Any = None
    """CUDA event: the copy is done. None off CUDA."""
    left: Any = field(default=None)
    """CUDA event: the layer that was here has computed."""


class Ring:
    """Weights of layers on their way through. `source(key)` gives a layer's tensors in RAM."""

    def __init__(
        self,
        device: torch.device,
        size_bytes: int,
        source: Callable[[Any], Sequence[Tensor]],
        moved: Callable[[int], None],
    ) -> None:
        self._device, self._source, self._moved = device, source, moved
        self._slots = [Slot(torch.empty(size_bytes, dtype=torch.uint8, device=device)) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._next: dict[Hashable, Hashable] = {}
        self._last: Hashable | None = None

    @property
    def size_bytes(self) -> int:
        return sum(slot.buffer.nbytes for slot in self._slots)

    def take(self, key: Hashable) -> list[Tensor]:
        """The tensors on the device, valid until `give_back`. Begins to fetch what came after this layer last time."""
        slot = self._slot_with(key) or self._fetch(key)
        slot.busy = True
        if slot.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.arrived)
        if self._last is not None:
            self._next[self._last] = key
        self._last = key
        after = self._next.get(key)
        if after is not None and after != key and self._slot_with(after) is None:
            self._fetch(after)
        return self._views(slot, key)

    def give_back(self, key: Hashable) -> None:
        slot = self._slot_with(key)
        if slot is None:
            return
        slot.busy, slot.holds = False, None
        if self._stream is not None:
            slot.left = torch.cuda.current_stream(self._device).record_event()

    def _slot_with(self, key: Hashable) -> Slot | None:
        return next((slot for slot in self._slots if slot.holds == key), None)

    def _fetch(self, key: Hashable) -> Slot:
        idle = [slot for slot in self._slots if not slot.busy]
        slot = next((slot for slot in idle if slot.holds is None), idle[0])
        slot.holds = key
        views = self._views(slot, key)
        if self._stream is None:
            self._copy(views, key)
            return slot
        if slot.left is not None:
            self._stream.wait_event(slot.left)
        with torch.cuda.stream(self._stream):
            self._copy(views, key)
            slot.arrived = self._stream.record_event()
        return slot

    def _copy(self, views: list[Tensor], key: Hashable) -> None:
        for view, tensor in zip(views, self._source(key), strict=True):
            view.copy_(tensor, non_blocking=True)
            self._moved(tensor.nbytes)

    def _views(self, slot: Slot, key: Hashable) -> list[Tensor]:
        views, start = [], 0
        for tensor in self._source(key):
            views.append(slot.buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
            start += room_for([tensor])
        return views


class PinnedPages:
    """Page-locked copies of weights in RAM: the device fetches them at full speed, beside other work."""

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._start = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """The same numbers where the device reaches them fast. As it is, if RAM is too short for a second copy."""
        if (
            not self._pinned
            or tensor.is_pinned()
            or psutil.virtual_memory().available < 4 * max(tensor.nbytes, CHUNK_BYTES)
        ):
            return tensor
        if self._start + tensor.nbytes > len(self._chunk):
            size = -(-tensor.nbytes // CHUNK_BYTES) * CHUNK_BYTES
            self._chunk, self._start = torch.empty(size, dtype=torch.uint8, pin_memory=True), 0
        place = self._chunk[self._start : self._start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._start += room_for([tensor])
        return place.copy_(tensor)
