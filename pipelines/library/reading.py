"""From files to findings, many at once: equal headers are looked at once, and reads overlap where the disk is slow."""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.errors import BadModel
from pipelines.library import beside, diffusers_folder
from pipelines.library.detect import Finding, refine, structure
from pipelines.library.headers import SUFFIXES, safetensors
from pipelines.library.headers import read_header as read_any
from pipelines.library.walk import Entry
from pipelines.types import Format, Kind

BATCH = 64
THREADS = 4
"""Reading waits for disks and networks; the thinking between is Python's and one thread's."""

KEPT_BYTES = 64 * 2**20
"""So many bytes of headers are kept for comparison during one scan."""

SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
PIECE = (
    "It is one of several pieces of a network, which can be used in a diffusers folder with its model_index.json. "
    "Put that folder here as a whole, or get the network as one file."
)

WORDS = (Kind.CHECKPOINT, Kind.VAE)
"""What the maker's words are read for: of these shapes do not tell all."""


class Seen:
    """What the headers of this scan were found to be. Trainers write the same names and shapes again and again."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Finding, int]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def finding(self, path: str, name: str) -> Finding:
        """Of a safetensors file. Raises OSError and BadModel."""
        raw = safetensors.read_raw(path)
        section = safetensors.tensor_section(raw.text)
        known = self._known.get(section)
        if known and known[1] == raw.data_bytes:
            found = known[0]
            return refine(found, safetensors.parse_metadata(raw.text), name) if found.kind in WORDS else found
        header = safetensors.parse(raw)
        found = structure(header)
        with self._lock:
            if self._bytes < KEPT_BYTES:
                self._known[section] = (found, raw.data_bytes)
                self._bytes += len(section)
        return refine(found, header.metadata, name)


def read_all(entries: Sequence[Entry]) -> list[Finding]:
    """In the same order. Never raises: what cannot be read is BROKEN with a sentence."""
    seen = Seen()
    batches = [entries[first : first + BATCH] for first in range(0, len(entries), BATCH)]
    if len(batches) <= 1:
        return [examine(entry, seen) for entry in entries]
    with ThreadPoolExecutor(THREADS, "models") as pool:
        return [
            found
            for batch in pool.map(lambda batch: [examine(entry, seen) for entry in batch], batches)
            for found in batch
        ]


def examine(entry: Entry, seen: Seen) -> Finding:
    """What one file or folder is, good or not."""
    if entry.detail:
        return Finding(Kind.BROKEN, detail=entry.detail)
    try:
        found = _examine(entry, seen)
        return beside.told(found, Path(entry.settings)) if entry.settings else found
    except BadModel as error:
        return Finding(Kind.BROKEN, detail=str(error))
    except OSError as error:
        return Finding(Kind.BROKEN, detail=f"It cannot be read: {error.strerror or error}. See who owns it.")
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        return Finding(Kind.BROKEN, detail=f"It is damaged: its header cannot be understood ({type(error).__name__}).")


def _examine(entry: Entry, seen: Seen) -> Finding:
    if entry.is_folder:
        return diffusers_folder.identify(Path(entry.path))
    if SHARD.search(entry.name):
        return Finding(Kind.UNKNOWN, detail=PIECE)
    if SUFFIXES[entry.path[entry.path.rfind(".") :].lower()] is Format.SAFETENSORS:
        return seen.finding(entry.path, entry.name)
    header = read_any(Path(entry.path))
    return refine(structure(header), header.metadata, entry.name)


def kind_of(path: Path) -> Kind:
    """What a file or a diffusers folder is, whether it is listed or not. Raises OSError and BadModel."""
    status = path.stat()
    entry = Entry(str(path), path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, path.is_dir())
    found = examine(entry, Seen())
    if found.kind is Kind.BROKEN:
        raise BadModel(found.detail)
    return found.kind
