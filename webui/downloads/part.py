"""The unfinished file `name.part`: grows, knows its SHA-256, survives a crash. Blocking; call it in threads."""

import hashlib
import os
import threading
from pathlib import Path
from typing import BinaryIO

BLOCK = 8 * 2**20
SYNC_BYTES = 64 * 2**20
"""After so many bytes the disk is asked to really write them, so that a power cut costs seconds, not the file."""

PAGES = (b"<!doctype html", b"<html", b"<?xml")


class Part:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        """Bytes that are in the file and in the sum."""

        self._sum = hashlib.sha256()
        self._unsynced = 0
        self._old_bytes = 0
        self._closed = False
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()  # a cancelled task leaves its thread behind: closing waits for it

    def open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self._closed:
                return
            number = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            self._file = open(number, "r+b", buffering=0)  # noqa: PTH123, SIM115
            self._old_bytes = os.fstat(number).st_size

    def read_on(self) -> bool:
        """Take the next block of what an earlier run left into the sum. False at the end."""
        with self._lock:
            if self._file is None:
                return False
            block = self._file.read(min(BLOCK, self._old_bytes - self.size))
            self._sum.update(block)
            self.size += len(block)
            return bool(block)

    def restart(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.seek(0)
                self._file.truncate()
                self.size, self._sum = 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append. On OSError, as for a full disk, size and sum say what was written all the same."""
        rest = memoryview(data)
        with self._lock:
            while rest and self._file is not None:
                count = self._file.write(rest) or 0
                self._sum.update(rest[:count])
                self.size += count
                self._unsynced += count
                rest = rest[count:]
            if self._unsynced >= SYNC_BYTES:
                self._sync()

    def close(self) -> None:
        """For good, even if a thread that nobody waits for any more is about to open it."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                try:
                    self._sync()
                finally:
                    self._file.close()
                    self._file = None

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()

    def is_page(self) -> bool:
        """HTML or XML: a site's apology where a model should be."""
        with self.path.open("rb") as file:
            return file.read(256).lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(PAGES)

    def _sync(self) -> None:
        if self._file is not None and self._unsynced:
            os.fsync(self._file.fileno())
            self._unsynced = 0
