"""Which models are there? A table of all files in the models folders, known by content and not by folder."""

import difflib
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipelines.errors import BadModel, ModelNotFound
from pipelines.library.companions import companions
from pipelines.library.detect import Finding
from pipelines.library.diffusers_folder import CARD, denoiser_of
from pipelines.library.hashes import Key, Memory, sha256_of
from pipelines.library.headers import SUFFIXES
from pipelines.library.reading import read_all
from pipelines.library.walk import Entry, Walk, readable
from pipelines.types import Format, Kind, ModelInfo

log = logging.getLogger(__name__)

TELL_SECONDS = 30.0
"""So often are new sums told of while many are computed."""

YOUNG_NS = 5 * 10**9
"""A broken file that changed so lately is probably still being written: it is looked at again with every scan."""

HASH_DIGITS = 8
"""Shorter ones are names."""

__all__ = ["CARD", "Registry"]


class Made(NamedTuple):
    """A row of the table, and what it was made from."""

    entry: Entry
    found: Finding
    info: ModelInfo


class Registry:
    """The models by name. Any thread may call anything; `scan` swaps whole tables."""

    def __init__(self, folders: Iterable[Path], cache: Path | None = None) -> None:
        """`folders`: models folders, or those of applications with `models/` inside. `cache`: an SQLite file that
        remembers what was found and the SHA-256 sums, since finding out reads gigabytes."""
        self._roots = tuple(folder.resolve() for folder in folders)
        self._memory = Memory(cache)
        self._models: tuple[ModelInfo, ...] = ()
        self._entries: dict[str, tuple[Entry, Finding]] = {}  # by path, of the last scan
        self._known: dict[Key, Finding] | None = None  # from the cache, until the first scan
        self._sums: dict[Key, str] = {}
        self._made: dict[str, Made] = {}
        self._folders: dict[str, int] = {}
        self._complaints: set[str] = set()
        self._scanning, self._hashing, self._lock = threading.Lock(), threading.Lock(), threading.Lock()
        self.on_change: Callable[[], None] = lambda: None
        """Called after a scan or a sum that changed the table, in the thread that made it."""

    # Finding

    def scan(self) -> bool:
        """Look again: quick where nothing has changed. Never raises for a file's faults. True: the table is another."""
        with self._scanning, no_collector():
            if self._known is None:
                self._known, self._sums = self._memory.findings(), self._memory.sums()
            walk = Walk(self._complaints)
            entries = {entry.path: entry for entry in walk.entries(self._roots)}
            findings = self._findings(entries)
            self._entries = {path: (entry, findings[path]) for path, entry in entries.items()}
            changed = self._publish()
            self._folders = walk.folders
        if changed:
            self.on_change()
        return changed

    def stale(self) -> bool:
        """Is another scan worth it? Looks only at the folders, and at files that were not whole yet."""
        if any(_mtime(folder) != mtime for folder, mtime in self._folders.items()):
            return True
        broken = [entry for entry, found in list(self._entries.values()) if found.kind == Kind.BROKEN]
        return any(not entry.detail and _mtime(entry.path) != entry.mtime_ns for entry in broken if not entry.is_folder)

    def _findings(self, entries: dict[str, Entry]) -> dict[str, Finding]:
        """Path -> what it is: as it was in the last scan, as the cache says, or read anew."""
        known = self._known or {}
        found: dict[str, Finding] = {}
        unread: list[Entry] = []
        young = time.time_ns() - YOUNG_NS
        for path, entry in entries.items():
            before = self._entries.get(path)
            if before and before[0] == entry and (before[1].kind != Kind.BROKEN or entry.ctime_ns < young):
                found[path] = before[1]
            elif not entry.settings and (finding := known.get(Key(path, entry.size, entry.mtime_ns))):
                found[path] = finding  # the cache does not know of settings beside a file, which are few
            else:
                unread.append(entry)
        fresh = {entry: finding for entry, finding in zip(unread, read_all(unread), strict=True)}
        found |= {entry.path: finding for entry, finding in fresh.items()}
        sound = {
            _key(entry): finding
            for entry, finding in fresh.items()
            if finding.kind != Kind.BROKEN and not entry.settings
        }
        gone = (self._entries.keys() or {key.path for key in known}) - entries.keys()
        if sound or gone:
            self._memory.remember(sound, gone)
        self._known = {}
        return found

    def _publish(self) -> bool:
        """Make the table from the entries. Of two models of a kind with the same name the one in the earlier folder
        counts. Those that did not change stay the same objects."""
        with self._lock:
            table: dict[tuple[Kind, str], ModelInfo] = {}
            made: dict[str, Made] = {}
            folders: dict[str, Path] = {}  # a path is made twice as fast from its folder
            for path, (entry, found) in self._entries.items():
                digest = self._sums.get(_key(entry)) if self._sums else None
                old = self._made.get(path)
                if old is None or old[0] != entry or old[1] is not found or old[2].sha256 != digest:
                    top, _, leaf = path.rpartition(os.sep)
                    folder = folders[top] = folders.get(top) or Path(top)
                    old = Made(entry, found, _info(entry, found, digest, folder / leaf))
                made[path] = old
                info = old.info
                winner = table.setdefault((info.kind, info.name), info)
                if info is not winner or info.kind == Kind.BROKEN:
                    self._tell(info, winner)
            models = tuple(table.values())
            changed = models != self._models
            self._models, self._made = models, made
        return changed

    def _tell(self, info: ModelInfo, winner: ModelInfo) -> None:
        """In the log, once for each file."""
        key = f"{info.path} {info.size_bytes} {info.detail}"
        if key in self._complaints:
            return
        self._complaints.add(key)
        if info is not winner:
            log.warning("%s is hidden by %s, which has the same name", info.path, winner.path)
        else:
            log.warning("%s: %s", info.path, info.detail)

    # Sums

    def hash_all(self, stop: threading.Event | None = None) -> None:
        """Compute the missing SHA-256 sums, the newest files first: call it in a thread. A second call at the same
        time returns at once."""
        if not self._hashing.acquire(blocking=False):
            return
        try:
            told = time.monotonic()
            entries = sorted(self._entries.values(), key=lambda pair: pair[0].mtime_ns, reverse=True)
            for entry, found in entries:
                if found.kind in (Kind.BROKEN, Kind.UNKNOWN) or _key(entry) in self._sums:
                    continue
                if not self._hash(entry, stop or threading.Event()):
                    return
                if time.monotonic() - told > TELL_SECONDS:  # who listens reads the whole list again
                    told = time.monotonic()
                    self.on_change()
            self.on_change()
        finally:
            self._hashing.release()

    def _hash(self, entry: Entry, stop: threading.Event) -> bool:
        """False: stopped."""
        key, path = _key(entry), Path(entry.path)
        try:
            digest = sha256_of(denoiser_of(path) if entry.is_folder else [entry.path], stop)
            if digest is None:
                return False
            if not entry.is_folder and _mtime(entry.path) != entry.mtime_ns:
                return True  # written while it was read: the next scan sees another file
        except (OSError, BadModel) as error:
            log.warning("%s cannot be hashed: %s", entry.name, error)
            return True
        self._memory.add_sum(key, digest)
        with self._lock:
            self._sums[key] = digest
            self._models = tuple(
                info.model_copy(update={"sha256": digest}) if info.path == path else info for info in self._models
            )
        return True

    # Looking up

    def models(self) -> list[ModelInfo]:
        """Of every kind, unknown and broken ones too."""
        return list(self._models)

    def all(self, kind: Kind = Kind.CHECKPOINT) -> list[ModelInfo]:
        """Those of a kind, the user's own folders first."""
        return [info for info in self._models if info.kind == kind]

    def get(self, name: str) -> ModelInfo:
        """The checkpoint of this name, stem, title or hash; the first one for an empty name."""
        return self.find(Kind.CHECKPOINT, name)

    def find(self, kind: Kind, name: str, family: str = "") -> ModelInfo:
        """As `get`, of any kind; with a family, only what was made for it or for any."""
        models = [info for info in self.all(kind) if not family or info.family in ("", family)]
        words = kind.replace("_", " ")
        if not models:
            raise ModelNotFound(f"There is no {words} in {' or '.join(map(str, self._roots))}. Put one there.")
        if not name:
            return models[0]
        for matches in _WAYS:
            for info in models:
                if matches(info, name):
                    return info
        raise ModelNotFound(f"There is no {words} named {name!r}. {_nearest(name, models)}{self._elsewhere(name)}")

    def companions(
        self, info: ModelInfo, vae: str = "Automatic", text_encoders: tuple[str, ...] = ()
    ) -> dict[str, ModelInfo]:
        """The files that give what the checkpoint's own does not hold. Raises ModelNotFound with what is missing."""
        return companions(info, vae, text_encoders, self._models, self.find)

    def _elsewhere(self, name: str) -> str:
        """What else has this name: a broken file, or one of another kind."""
        for info in self._models:
            if info.name == name or _stem(info.name) == name:
                return f" {info.name} is {info.kind.replace('_', ' ')}. {info.detail}".rstrip()
        return ""


@contextmanager
def no_collector() -> Generator[None, None, None]:
    """Tens of thousands of objects are made at once and all are kept: looking for garbage among them takes as long as
    half of the scan."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


_WAYS: tuple[Callable[[ModelInfo, str], bool], ...] = (
    lambda info, name: info.name == name,
    lambda info, name: info.title == name,
    lambda info, name: _stem(info.name) == name,
    lambda info, name: _stem(info.name).rpartition("/")[2] == name or info.name.rpartition("/")[2] == name,
    lambda info, name: len(name) >= HASH_DIGITS and (info.sha256 or "").startswith(name.lower()),
    lambda info, name: _untitled(name) in (info.name, _stem(info.name)),
    lambda info, name: name.lower() in (info.name.lower(), _stem(info.name).lower()),
    lambda info, name: name.lower() == _stem(info.name).rpartition("/")[2].lower(),
)
"""How a name fits, the strictest way first."""


def _untitled(name: str) -> str:
    """Without the hash of A1111's titles."""
    return name.rpartition(" [")[0] if name.endswith("]") else name


def _stem(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return stem if f".{suffix.lower()}" in SUFFIXES else name


def _nearest(name: str, models: list[ModelInfo]) -> str:
    names = [info.name for info in models]
    if len(names) > 5:
        near = difflib.get_close_matches(_stem(name), [_stem(known) for known in names], n=3, cutoff=0.4)
        names = [known for known in names if _stem(known) in near][:5]
    return f"There are: {', '.join(names)}." if names else f"There are {len(models)} others."


def _info(entry: Entry, found: Finding, digest: str | None, path: Path) -> ModelInfo:
    form = Format.DIFFUSERS if entry.is_folder else SUFFIXES[entry.path[entry.path.rfind(".") :].lower()]
    fields = found._asdict() | {
        "name": entry.name,
        "format": form,
        "path": Path(readable(entry.path)) if entry.detail else path,
        "size_bytes": entry.size,
        "sha256": digest,
        "companions": {},
    }
    return ModelInfo.model_validate(fields)


def _key(entry: Entry) -> Key:
    return Key(entry.path, entry.size, entry.mtime_ns)


def _mtime(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return -1
