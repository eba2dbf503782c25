"""Sees new model files while the application runs: looks at the folders every few seconds, which works on any drive."""

import logging
import sqlite3
import threading

from pipelines.library.registry import Registry

log = logging.getLogger(__name__)

SECONDS = 3.0
FULL_EVERY = 40
"""Every so many looks all files are looked at: a file that was written over leaves its folder as it was."""


class Watcher:
    """Two daemon threads, one that looks and one that hashes what was found. Neither delays the end of the program."""

    def __init__(self, registry: Registry, seconds: float = SECONDS) -> None:
        self._registry, self._seconds = registry, seconds
        self._stop = threading.Event()
        self._found = threading.Event()
        self._threads = [
            threading.Thread(target=self._look, name="models-look", daemon=True),
            threading.Thread(target=self._hash, name="models-hash", daemon=True),
        ]

    def start(self) -> None:
        self._found.set()  # what the first scan found is not hashed yet
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Both threads end by themselves within a moment; nobody has to wait."""
        self._stop.set()
        self._found.set()

    def _look(self) -> None:
        looks = 0
        while not self._stop.wait(self._seconds):
            looks += 1
            try:
                if (looks % FULL_EVERY == 0 or self._registry.stale()) and self._registry.scan():
                    self._found.set()
            except (OSError, RuntimeError, ValueError, sqlite3.Error):
                log.exception("Looking for new models failed; it is tried again")

    def _hash(self) -> None:
        while not self._stop.is_set():
            self._found.wait()
            self._found.clear()
            self._registry.hash_all(self._stop)
