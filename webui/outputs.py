"""Finished pictures become files here, and nowhere else: outputs/2026-11-22/00001-1234.png, whole or not at all."""

import errno
import io
import os
import re
import threading
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

import PIL.ExifTags
import PIL.Image
from PIL.PngImagePlugin import PngInfo
from pydantic import computed_field

from pipelines.errors import PipelineError
from pipelines.frozen import Frozen

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
"""What the gallery shows and what is ever sent from outputs/."""


class DiskFull(PipelineError): ...


class PictureInfo(Frozen):
    """A picture in outputs/. Its id is its path there; the infotext is None where nobody has read the file for it."""

    id: str
    width: int
    height: int
    seed: int | None = None
    infotext: str | None = None
    job: int | None = None
    unit: int | None = None

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented form, which mypy does not know
    @property
    def url(self) -> str:
        return f"/api/v1/images/{quote(self.id)}"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def thumbnail(self) -> str:
        return f"/api/v1/thumbnails/{quote(self.id)}"


class Outputs:
    def __init__(self, root: Path, image_format: Literal["png", "jpeg", "webp"], quality: int) -> None:
        self.root = root
        self._format, self._quality = image_format, quality
        root.mkdir(parents=True, exist_ok=True)

    def folder(self) -> str:
        """Today's, relative to the root."""
        return date.today().isoformat()

    def highest_number(self, folder: str) -> int:
        """Of the pictures that lie in this folder; 0 if there is none."""
        path = self.root / folder
        numbers = (number_of(entry.name) for entry in os.scandir(path)) if path.is_dir() else ()
        return max(numbers, default=0)

    def name(self, folder: str, number: int, seed: int) -> str:
        return f"{folder}/{number:05}-{seed}{SUFFIXES[self._format]}"

    def write(self, relative: str, png: bytes, infotext: str) -> tuple[int, int]:
        """Write the picture with its infotext and return its width and height. Atomic: temp file, fsync, replace."""
        picture = PIL.Image.open(io.BytesIO(png))
        path = self.root / relative
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self._encode(picture, path.suffix, infotext))
        except OSError as error:
            raise _readable(error, path) from error
        return picture.size

    def recover(self, relative: str) -> tuple[int, int] | None:
        """After a crash: width and height of the picture if it was written, None if not. Half a file is removed."""
        path = self.root / relative
        for part in path.parent.glob(f".{path.name}.*.part"):
            part.unlink(missing_ok=True)
        try:
            with PIL.Image.open(path) as picture:
                return picture.size
        except (OSError, ValueError):
            return None

    def _encode(self, picture: PIL.Image.Image, suffix: str, infotext: str) -> bytes:
        """In the format of the name: it was reserved before the setting may have changed."""
        buffer = io.BytesIO()
        options: dict[str, Any] = {}
        if suffix == ".png":
            chunk = PngInfo()
            chunk.add_text("parameters", infotext)
            options = {"pnginfo": chunk}
        else:
            options = {"exif": user_comment(infotext), "quality": self._quality}
        picture.save(buffer, PIL.Image.registered_extensions()[suffix], **options)
        return buffer.getvalue()


def number_of(name: str) -> int:
    match = re.match(r"(\d+)-", PurePosixPath(name).name)
    return int(match[1]) if match else 0


def user_comment(text: str) -> PIL.Image.Exif:
    """EXIF with the text in UserComment, marked as Unicode and in UTF-16 big endian, as A1111 writes it.

    EXIF holds 65,533 bytes in all, so a longer text is cut; the queue's history keeps the whole of it.
    """
    exif = PIL.Image.Exif()
    comment = b"UNICODE\0" + text.encode("utf-16-be")[:65_000]
    exif.get_ifd(PIL.ExifTags.IFD.Exif)[PIL.ExifTags.Base.UserComment] = comment
    return exif


def read_infotext(picture: PIL.Image.Image) -> str | None:
    """From the PNG chunk `parameters` or the EXIF UserComment."""
    if isinstance(text := picture.info.get("parameters"), str):
        return text
    comment = picture.getexif().get_ifd(PIL.ExifTags.IFD.Exif).get(PIL.ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8:].decode("utf-16-be", errors="replace")
    return None


def write_atomically(path: Path, content: bytes) -> None:
    """Nobody ever sees half a file, not even after a power cut, and two threads may write the same one."""
    part = path.with_name(f".{path.name}.{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _readable(error: OSError, path: Path) -> PipelineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"The disk is full: {path.name} could not be saved. Free some space, then press Retry.")
    return PipelineError(f"{path} could not be written: {error.strerror}. Mend that, then press Retry.")
