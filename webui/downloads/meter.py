"""How far a running download is, and how fast it goes."""

import time
from collections import deque

WINDOW_SECONDS = 5.0


class Meter:
    def __init__(self, received: int, total: int | None) -> None:
        self.received, self.total = received, total
        self.message = ""
        self._samples: deque[tuple[float, int]] = deque(maxlen=1000)

    def take(self, received: int, total: int | None) -> None:
        if received < self.received:  # it began anew
            self._samples.clear()
        self.received, self.total = received, total
        now = time.monotonic()
        self._samples.append((now, received))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def bytes_per_second(self) -> float:
        """Over the last seconds."""
        if len(self._samples) < 2:
            return 0.0
        (since, before), (_, received) = self._samples[0], self._samples[-1]
        return (received - before) / max(time.monotonic() - since, 0.001)

    @property
    def seconds_left(self) -> float | None:
        speed = self.bytes_per_second
        return (self.total - self.received) / speed if self.total is not None and speed > 0 else None
