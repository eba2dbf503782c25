"""What is remembered of model files between runs, in SQLite: findings and SHA-256 sums. It may be deleted."""

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic_core import from_json, to_json

from pipelines.library.detect import Finding
from pipelines.types import Kind

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS meta (id INTEGER PRIMARY KEY CHECK (id = 0), rules TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS findings (id INTEGER PRIMARY KEY, json TEXT NOT NULL UNIQUE)",
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, "
    "finding INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS sums (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, "
    "sha256 TEXT NOT NULL) WITHOUT ROWID",
)

CHUNK_BYTES = 4 * 2**20
RULES = ("adapters.py", "detect.py", "diffusers_folder.py", "look.py", "network_folder.py", "signatures.py", "headers")
"""Findings depend on these: with other ones, files are looked at again."""


class Key(NamedTuple):
    """A file as it was when it was looked at: with any other size or time it is another one."""

    path: str
    size: int
    mtime_ns: int


class Memory:
    """Never raises for faults of its own: a damaged file is made anew, one that can't be written is done without."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.Lock()

    def findings(self) -> dict[Key, Finding]:
        """All that is known, if it was found by the same rules."""
        rules = fingerprint()

        def work(db: sqlite3.Connection) -> dict[Key, Finding]:
            if db.execute("SELECT rules FROM meta").fetchone() != (rules,):
                db.execute("DELETE FROM files")
                db.execute("DELETE FROM findings")
                db.execute("INSERT OR REPLACE INTO meta VALUES (0, ?)", (rules,))
                return {}
            known = {number: _finding(text) for number, text in db.execute("SELECT id, json FROM findings")}
            rows = db.execute("SELECT path, size, mtime_ns, finding FROM files").fetchall()
            decode = os.fsdecode
            return {Key(decode(path), size, mtime): known[number] for path, size, mtime, number in rows}

        return self._run(work, {})

    def remember(self, found: Mapping[Key, Finding], gone: Iterable[str] = ()) -> None:
        """Write down what is new and forget the files that are gone; their sums stay, since disks come back."""
        distinct = {id(finding): finding for finding in found.values()}
        texts = {number: to_json(finding._asdict()).decode() for number, finding in distinct.items()}

        def work(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR IGNORE INTO findings (json) VALUES (?)", {(text,) for text in texts.values()})
            numbers = dict(db.execute("SELECT json, id FROM findings").fetchall())
            rows = [
                (os.fsencode(key.path), key.size, key.mtime_ns, numbers[texts[id(finding)]])
                for key, finding in found.items()
            ]
            db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
            db.executemany("DELETE FROM files WHERE path = ?", [(os.fsencode(path),) for path in gone])

        self._run(work, None)

    def sums(self) -> dict[Key, str]:
        def work(db: sqlite3.Connection) -> dict[Key, str]:
            rows = db.execute("SELECT path, size, mtime_ns, sha256 FROM sums").fetchall()
            return {Key(os.fsdecode(path), size, mtime): digest for path, size, mtime, digest in rows}

        return self._run(work, {})

    def add_sum(self, key: Key, digest: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            row = (os.fsencode(key.path), key.size, key.mtime_ns, digest)
            db.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?)", row)

        self._run(work, None)

    def _run(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """One transaction, in a connection of its own: any thread may call, and a second process shares the file."""
        if self._file is None:
            return otherwise
        with self._lock:
            for last in (False, True):
                try:
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.closing(sqlite3.connect(self._file, timeout=5)) as db, db:
                        db.execute("PRAGMA synchronous = OFF")  # only a cache: speed counts more than a power cut
                        for statement in SCHEMA:
                            db.execute(statement)
                        return work(db)
                except (sqlite3.Error, OSError, KeyError, ValueError, TypeError) as error:
                    if last or _not_its_fault(error):
                        log.warning("The cache of models %s cannot be used: %s", self._file, error)
                        break
                    log.warning("The cache of models is damaged (%s) and is made anew", error)
                    with contextlib.suppress(OSError):
                        self._file.unlink()
        return otherwise


def sha256_of(files: Iterable[str | Path], stop: threading.Event) -> str | None:
    """Of the contents, one after another. Rests as long as it works, so that pictures come first. None: stopped."""
    digest = hashlib.sha256()
    for name in files:
        with open(name, "rb", buffering=0) as file:  # noqa: PTH123 - may be bytes that are no UTF-8
            while True:
                began = time.perf_counter()
                chunk = file.read(CHUNK_BYTES)
                if not chunk:
                    break
                digest.update(chunk)
                if stop.wait(min(time.perf_counter() - began, 0.2)):
                    return None
    return digest.hexdigest()


def fingerprint() -> str:
    """Of the rules by which models are known."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for rule in RULES:
        path = here / rule
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _not_its_fault(error: Exception) -> bool:
    """Locked by another process, on a full or read-only disk: deleting would not help."""
    words = ("lock", "readonly", "full", "unable to open", "permission")
    return isinstance(error, OSError) or any(word in str(error).lower() for word in words)


def _finding(text: str) -> Finding:
    given = from_json(text)
    return Finding(**{**given, "kind": Kind(given["kind"])})
