"""The gallery: everything that lies in outputs/, newest first, whoever put it there. The folder is the truth."""

import bisect
import hashlib
import io
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import PIL.ImageOps

from pipelines.errors import PipelineError
from webui.outputs import MEDIA_TYPES, PictureInfo, read_infotext, write_atomically

log = logging.getLogger(__name__)

THUMBNAIL = 256
"""Longer side in pixels."""


class NotAPicture(PipelineError): ...


class Entry(NamedTuple):
    """Sorts oldest first."""

    mtime_ns: int
    id: str


class Page(NamedTuple):
    pictures: list[PictureInfo]
    next: str | None
    total: int


class Library:
    def __init__(self, root: Path, cache: Path) -> None:
        self._root, self._thumbnails = root.resolve(), cache / "thumbnails"
        self._folders: dict[str, tuple[int, list[Entry], list[str]]] = {}  # folder -> its mtime, pictures, folders
        self._sizes: dict[Entry, tuple[int, int]] = {}

    def page(self, limit: int, after: str | None = None) -> Page:
        """The next pictures older than the cursor `after`, which is the `next` of the page before."""
        entries = sorted(self._scan(""))
        end = len(entries) if after is None else bisect.bisect_left(entries, _parse_cursor(after))
        shown = entries[max(0, end - limit) : end][::-1]
        following = f"{shown[-1].mtime_ns}:{shown[-1].id}" if end > limit else None
        return Page([info for entry in shown if (info := self._info(entry))], following, len(entries))

    def path(self, picture: str) -> Path:
        """The file behind an id. Raises NotAPicture for all that is not a picture inside outputs/."""
        # refused before the disk is asked: hidden files, and names like //host/share, which Windows would call
        odd = Path(picture).anchor or any(part.startswith(".") for part in Path(picture).parts)
        try:
            path = self._root if odd else (self._root / picture).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # not there, no name that a file could have, a link to itself
            path = self._root
        ours = path.is_relative_to(self._root)
        if not ours or path.suffix.lower() not in MEDIA_TYPES or not path.is_file():
            raise NotAPicture(f"There is no picture {picture[:200]!r}.")
        return path

    def info(self, picture: str) -> PictureInfo:
        """Size and infotext, read from the file."""
        with _open(self.path(picture)) as image:
            return PictureInfo(id=picture, width=image.width, height=image.height, infotext=read_infotext(image))

    def thumbnail(self, picture: str) -> Path:
        """A small WebP of the picture, made once for each state of the file."""
        path = self.path(picture)
        key = hashlib.sha256(f"{picture}:{path.stat().st_mtime_ns}".encode()).hexdigest()[:32]
        small = self._thumbnails / key[:2] / f"{key}.webp"
        if not small.exists():
            small.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(small, _shrink(path))
        return small

    def _info(self, entry: Entry) -> PictureInfo | None:
        """None for a file that is gone or broken since it was listed."""
        if entry not in self._sizes:
            try:
                with _open(self._root / entry.id) as image:
                    self._sizes[entry] = image.size
            except NotAPicture:
                return None
        width, height = self._sizes[entry]
        return PictureInfo(id=entry.id, width=width, height=height)

    def _scan(self, folder: str) -> Generator[Entry, None, None]:
        """A folder is read again only when its own mtime has changed, as it does when files come and go."""
        path = self._root / folder
        try:
            stamp = path.stat().st_mtime_ns
            known = self._folders.get(folder)
            if known is None or known[0] != stamp:
                known = self._folders[folder] = (stamp, *_read_folder(path, folder))
        except OSError as error:  # it went away a moment ago, or is not ours to read
            log.warning("The gallery leaves out %s: %s", path, error)
            return
        yield from known[1]
        for child in known[2]:
            yield from self._scan(child)


def _read_folder(path: Path, folder: str) -> tuple[list[Entry], list[str]]:
    pictures: list[Entry] = []
    folders: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(relative)
            elif Path(entry.name).suffix.lower() in MEDIA_TYPES:
                with suppress(OSError):  # a link to nowhere, or to itself
                    pictures.append(Entry(entry.stat().st_mtime_ns, relative))
    return pictures, folders


def _shrink(path: Path) -> bytes:
    buffer = io.BytesIO()
    with _open(path) as image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        image = PIL.ImageOps.exif_transpose(image)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.convert("RGBA" if image.has_transparency_data else "RGB").save(buffer, "webp", quality=80)
    return buffer.getvalue()


@contextmanager
def _open(path: Path) -> Generator[PIL.Image.Image, None, None]:
    """Covers the use of the picture too: Pillow reads when it must, and says in many ways that a file is broken."""
    try:
        with PIL.Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise NotAPicture(f"{path.name} cannot be read as a picture.") from error


def _parse_cursor(cursor: str) -> Entry:
    stamp, _, name = cursor.partition(":")
    if not stamp.isdecimal() or len(stamp) > 20:
        raise PipelineError(f"{cursor!r} is no cursor. Use the `next` of the page before.")
    return Entry(int(stamp), name)
