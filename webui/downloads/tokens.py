"""Tokens for model sites, in a file of their own that only its owner may read. Never in jobs, logs or answers."""

import json
import logging
import os
import re
import threading
from pathlib import Path

from webui.downloads.types import BadSource, Service

log = logging.getLogger(__name__)

TOKEN = re.compile(r"[!-~]{8,500}")
"""Visible ASCII: a token goes into a header, so a line break in it would be a header of its own."""

SERVICES: tuple[Service, ...] = ("huggingface", "civitai")


class Tokens:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def get(self, service: Service) -> str | None:
        return self._read().get(service)

    def set(self, service: Service, token: str) -> None:
        """Raises BadSource, which does not repeat the token."""
        if not TOKEN.fullmatch(token := token.strip()):
            raise BadSource("This does not look like a token. Copy the whole of it, without spaces or line breaks.")
        with self._lock:
            self._write({**self._read(), service: token})

    def forget(self, service: Service) -> None:
        with self._lock:
            self._write({name: token for name, token in self._read().items() if name != service})

    def known(self) -> dict[Service, bool]:
        """Which are set: all that anybody is told."""
        tokens = self._read()
        return {service: service in tokens for service in SERVICES}

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_text("utf-8")) if self._file.exists() else {}
        except (OSError, ValueError):
            log.warning("%s cannot be read: set the tokens again", self._file)
            return {}
        return {str(name): str(token) for name, token in found.items()} if isinstance(found, dict) else {}

    def _write(self, tokens: dict[str, str]) -> None:
        """Atomic, and at no moment readable by others."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_name(f".{self._file.name}.part")
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(tokens, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._file)
