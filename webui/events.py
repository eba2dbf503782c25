"""What happened, numbered and kept: whoever was away asks for everything since the last number that they saw."""

import asyncio
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import JsonValue

from pipelines.frozen import Frozen
from webui.db import Database

KEEP = 20_000
"""So many events are kept; a client that was away for longer starts from the present state."""

EventType = Literal[
    "blocked", "queued", "started", "picture", "skipped", "done", "failed", "cancelled", "interrupted", "note"
]


class LoggedEvent(Frozen):
    seq: int
    type: EventType
    job: int
    at: float
    data: dict[str, JsonValue]


class Watcher:
    """One client's bell. It says only that something changed, so a slow client skips, never lags."""

    def __init__(self) -> None:
        self._bell = asyncio.Event()

    def ring(self) -> None:
        self._bell.set()

    async def wait(self) -> None:
        await self._bell.wait()
        self._bell.clear()


class EventLog:
    """Lives in the event loop's thread."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._watchers: set[Watcher] = set()

    def append(self, type_: EventType, job: int, data: dict[str, Any] | None = None) -> None:
        """Number an event and keep it, as part of the transaction that it tells of."""
        self._db.execute(
            "INSERT INTO events (type, job, at, data) VALUES (?, ?, ?, ?)",
            type_,
            job,
            time.time(),
            json.dumps(data or {}),
        )
        self.changed()

    def changed(self) -> None:
        """Ring for everyone: an event was kept, or something passing (a step, a preview) is new."""
        for watcher in self._watchers:
            watcher.ring()

    def since(self, seq: int, limit: int = 500) -> list[LoggedEvent]:
        rows = self._db.execute("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT ?", seq, limit)
        return [LoggedEvent(**{**dict(row), "data": json.loads(row["data"])}) for row in rows]

    def span(self) -> tuple[int, int]:
        """The number before the oldest kept event, and that of the newest."""
        newest = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        oldest = self._db.execute("SELECT min(seq) AS seq FROM events")[0]["seq"]
        last = newest[0]["seq"] if newest else 0
        return (oldest - 1 if oldest else last), last

    def prune(self) -> None:
        self._db.execute("DELETE FROM events WHERE seq <= ?", self.span()[1] - KEEP)

    @contextmanager
    def watch(self) -> Generator[Watcher, None, None]:
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
