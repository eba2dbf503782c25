"""Page-locked memory for weights at home: a card fetches them from there at the full speed of its bus.

From the pages of a file a copy runs at a third of that, since the driver carries it over in pieces. torch's own pool of
locked memory gives powers of two; ordinary memory that is locked afterwards has the size that is asked for.
"""

import contextlib
import logging
import mmap
import sys
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Locker(Protocol):
    """What the driver does, by address and size."""

    def lock(self, place: int, size_bytes: int) -> bool:
        """False: it refuses."""
        ...

    def unlock(self, place: int) -> None: ...


class Pins:
    """Hands out locked memory. Where the system refuses it (a limit, WSL, an old driver), it is not asked again."""

    def __init__(self, locker: Locker) -> None:
        self._locker = locker
        self._refused = False

    def allocate(self, size_bytes: int) -> Tensor | None:
        """Unlocked with its last view: no copy from it may be under way then, see `Fitter.release`.

        None: it is not to be had, and weights are to stay in their file.
        """
        if self._refused:
            return None
        pages = _Pages(-1, size_bytes) if sys.platform == "win32" else _Pages(-1, size_bytes, flags=PRIVATE)
        memory = torch.frombuffer(pages, dtype=torch.uint8)
        place = memory.data_ptr()
        if self._locker.lock(place, size_bytes):
            pages.at_end = partial(self._locker.unlock, place)
            return memory
        self._refused = True
        log.warning("RAM cannot be locked for the card: checkpoints that come back take a moment longer")
        return None


PRIVATE = 0 if sys.platform == "win32" else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class _Pages(mmap.mmap):
    """Memory that can say goodbye: torch holds on to it for as long as there is a view."""

    at_end: Callable[[], None] | None = None

    def __del__(self) -> None:
        if self.at_end is not None:
            self.at_end()


class CudaLocker:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def lock(self, place: int, size_bytes: int) -> bool:
        if int(torch.cuda.cudart().cudaHostRegister(place, size_bytes, 0)) == 0:  # type: ignore[no-untyped-call]
            return True
        with contextlib.suppress(RuntimeError):  # else the next kernel would be blamed for it
            torch.ones(1, device=self._device).add_(1)
            torch.cuda.synchronize(self._device)
        return False

    def unlock(self, place: int) -> None:
        torch.cuda.cudart().cudaHostUnregister(place)  # type: ignore[no-untyped-call]


def pins_for(device: torch.device) -> Pins | None:
    """None: this device has no use for it."""
    return Pins(CudaLocker(device)) if device.type == "cuda" else None
