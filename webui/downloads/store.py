"""Downloads in SQLite, so that they survive a restart: what was asked for, what it came to, and how far it is."""

import json
import time
from collections.abc import Iterable
from pathlib import PurePosixPath
from sqlite3 import Row

from pydantic import ValidationError

from pipelines.types import Kind
from webui.db import Database
from webui.downloads.types import UNFINISHED, Download, DownloadState, Mode, Plan

COLUMNS = ", ".join(name for name in Download.model_fields if name != "plan")
KEEP = 200
"""So many ended downloads are remembered. The models stay, of course."""


class DownloadStore:
    def __init__(self, db: Database) -> None:
        self._db = db
        self._all: list[Download] | None = None  # pages ask many times a second

    def add(self, source: str, name: str, wishes: tuple[str | None, str | None], kind: Kind | None, mode: Mode) -> int:
        """`wishes`: the name and the SHA-256 that the user gave."""
        rows = self._write(
            "INSERT INTO downloads (source, name, asked_name, asked_sha256, kind, mode, state, created)"
            " VALUES (?, ?, ?, ?, ?, ?, 'queued', ?) RETURNING id",
            source,
            name,
            *wishes,
            kind,
            mode,
            time.time(),
        )
        return int(rows[0]["id"])

    def get(self, number: int) -> Download | None:
        rows = self._db.execute("SELECT * FROM downloads WHERE id = ?", number)
        return _download(rows[0]) if rows else None

    def all(self) -> list[Download]:
        """Newest first, without their plans, which can be long."""
        if self._all is None:
            rows = self._db.execute(f"SELECT {COLUMNS}, NULL AS plan FROM downloads ORDER BY id DESC LIMIT 500")
            self._all = [_download(row) for row in rows]
        return self._all

    def unfinished(self) -> list[Download]:
        marks = ", ".join("?" for _ in UNFINISHED)
        rows = self._db.execute(f"SELECT * FROM downloads WHERE state IN ({marks}) ORDER BY id", *sorted(UNFINISHED))
        return [_download(row) for row in rows]

    def next(self) -> Download | None:
        rows = self._db.execute("SELECT * FROM downloads WHERE state = 'queued' ORDER BY id LIMIT 1")
        return _download(rows[0]) if rows else None

    def set_state(self, number: int, state: DownloadState, message: str = "") -> None:
        ended = time.time() if state in (DownloadState.DONE, DownloadState.FAILED, DownloadState.CANCELLED) else None
        self._write(
            "UPDATE downloads SET state = ?, message = ?, finished = ? WHERE id = ?", state, message, ended, number
        )

    def set_received(self, number: int, received: int, total: int | None) -> None:
        self._write("UPDATE downloads SET received = ?, total = ? WHERE id = ?", received, total, number)

    def set_plan(self, number: int, plan: Plan | None, kind: Kind | None, target: str | None) -> None:
        """`target`: path below the models folder; None as long as the plan is open."""
        if plan is None or target is None:
            self._write("UPDATE downloads SET plan = NULL WHERE id = ?", number)
            return
        self._write(
            "UPDATE downloads SET plan = ?, kind = ?, target = ?, name = ? WHERE id = ?",
            plan.model_dump_json(),
            kind,
            target,
            PurePosixPath(target).name,
            number,
        )

    def set_validator(self, number: int, path: str, validator: str) -> None:
        """What the server calls this state of a file; "" to forget it."""
        with self._db.transaction():
            if download := self.get(number):
                validators = {**download.validators, path: validator}
                self._write("UPDATE downloads SET validators = ? WHERE id = ?", json.dumps(validators), number)

    def requeue(self) -> None:
        """At the start: what ran when Inkstone ended goes on."""
        self._write("UPDATE downloads SET state = 'queued' WHERE state = 'running'")

    def delete(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._write("DELETE FROM downloads WHERE id = ?", number)

    def prune(self) -> None:
        self._write(
            "DELETE FROM downloads WHERE state IN ('done', 'cancelled') AND id NOT IN"
            " (SELECT id FROM downloads ORDER BY id DESC LIMIT ?)",
            KEEP,
        )

    def _write(self, sql: str, *values: object) -> list[Row]:
        self._all = None
        return self._db.execute(sql, *values)


def _download(row: Row) -> Download:
    try:
        plan = Plan.model_validate_json(row["plan"]) if row["plan"] else None
    except ValidationError:  # written by another version: it is made anew
        plan = None
    return Download.model_validate({**dict(row), "plan": plan, "validators": json.loads(row["validators"])})
