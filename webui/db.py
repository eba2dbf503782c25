"""The one SQLite file: connection, transactions, migrations. Threads take turns; a commit is on the disk."""

import sqlite3
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError

MIGRATIONS = (
    """
    CREATE TABLE jobs (
      id INTEGER PRIMARY KEY AUTOINCREMENT,
      state TEXT NOT NULL,
      task TEXT NOT NULL,              -- the frozen request, JSON
      model TEXT NOT NULL,             -- the checkpoint as it was at submit, JSON
      created REAL NOT NULL,           -- seconds since 1970
      started REAL,
      finished REAL,
      attempts INTEGER NOT NULL DEFAULT 0,
      error TEXT,
      message TEXT);
    CREATE INDEX jobs_by_state ON jobs (state, id);
    CREATE TABLE units (
      job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
      unit INTEGER NOT NULL,
      state TEXT NOT NULL,             -- waiting | saving | done | skipped
      path TEXT,                       -- of the picture, relative to outputs/
      width INTEGER, height INTEGER, seed INTEGER, infotext TEXT,
      PRIMARY KEY (job, unit)) WITHOUT ROWID;
    CREATE INDEX units_by_path ON units (path);
    CREATE TABLE events (
      seq INTEGER PRIMARY KEY AUTOINCREMENT,
      type TEXT NOT NULL,
      job INTEGER NOT NULL,
      at REAL NOT NULL,
      data TEXT NOT NULL);
    CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    ALTER TABLE jobs ADD COLUMN checkpoint TEXT NOT NULL DEFAULT '';  -- path: jobs of one checkpoint run together
    ALTER TABLE jobs ADD COLUMN awaits INTEGER;                       -- a blocked job: the download that it waits for
    ALTER TABLE jobs ADD COLUMN notes TEXT NOT NULL DEFAULT '[]';     -- what was done in another way than asked, JSON
    """,
    """
    CREATE TABLE downloads (
      id INTEGER PRIMARY KEY AUTOINCREMENT,
      source TEXT NOT NULL,            -- as the user meant it: owner/name, an address, a path
      name TEXT NOT NULL,              -- of the file or folder, as far as it is known
      asked_name TEXT,
      asked_sha256 TEXT,
      kind TEXT,
      mode TEXT NOT NULL,              -- of a path: auto | link | copy
      state TEXT NOT NULL,             -- queued | running | paused | done | failed | cancelled
      message TEXT NOT NULL DEFAULT '',
      plan TEXT,                       -- the files to fetch, JSON; NULL: to be found out
      target TEXT,                     -- path below the models folder
      validators TEXT NOT NULL DEFAULT '{}',  -- file -> what its server calls this state of it, JSON
      received INTEGER NOT NULL DEFAULT 0,
      total INTEGER,
      created REAL NOT NULL,
      finished REAL);
    CREATE INDEX downloads_by_state ON downloads (state, id);
    """,
    """
    ALTER TABLE jobs ADD COLUMN files TEXT NOT NULL DEFAULT '{}';  -- what else the request names, JSON
    """,
)
"""Each takes the database from version n to n + 1 (`PRAGMA user_version`). Never change one that was released."""


class Database:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._depth = 0
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._migrate(path)

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """All or nothing. A transaction inside another one joins it."""
        with self._lock:
            outermost, self._depth = self._depth == 0, self._depth + 1
            try:
                if outermost:
                    self._db.execute("BEGIN IMMEDIATE")
                yield
                if outermost:
                    self._db.execute("COMMIT")
            except BaseException:
                if outermost and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def execute(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Run one statement and return all its rows."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def execute_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with self._lock:
            self._db.executemany(sql, rows)

    def fact(self, key: str) -> str | None:
        """A single remembered value, such as the last worker's greeting."""
        rows = self.execute("SELECT value FROM facts WHERE key = ?", key)
        return rows[0]["value"] if rows else None

    def remember(self, key: str, value: str) -> None:
        """What is known already is not written again: a commit waits for the disk."""
        self.execute(
            "INSERT INTO facts VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
            key,
            value,
        )

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _migrate(self, path: Path) -> None:
        version = self.execute("PRAGMA user_version")[0][0]
        if version > len(MIGRATIONS):
            raise PipelineError(
                f"{path} was written by a newer Inkstone. Update this one, or choose another data folder."
            )
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            self._db.executescript(f"BEGIN;{script};PRAGMA user_version = {number};COMMIT")
