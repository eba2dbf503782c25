"""Pictures that users give: checked, brought into a form that every worker reads, and kept in outputs/.inputs by hash.

A job names them by `sha256:...`: it can be made again after a crash, and the same picture is kept once.
"""

import base64
import binascii
import hashlib
import io
import logging
import re
import struct
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageOps, UnidentifiedImageError

from pipelines.errors import PipelineError
from pipelines.frozen import Frozen
from webui.outputs import write_atomically

log = logging.getLogger(__name__)

PREFIX = "sha256:"
MOST_PIXELS = 8192 * 8192
READY = ("RGB", "RGBA", "L")
"""What a worker is given: 8 bits a channel."""
KEPT_FORMATS = ("PNG", "JPEG", "WEBP")
"""A file of these is kept as it came where its pixels are ready as well."""
GONE = "A picture is not there any more. Give it again."
KEEP_SECONDS = 24 * 3600
"""So long a picture stays that no job holds: it may be in a form that was not sent yet."""

_DATA_URL = re.compile(r"data:[\w/+.-]*;base64,")
_ID = re.compile(r"sha256:[0-9a-f]{64}")


class BadPicture(PipelineError): ...


class InputInfo(Frozen):
    id: str
    width: int
    height: int


class Inputs:
    def __init__(self, folder: Path, outputs: Path) -> None:
        """`outputs`: where pictures lie that may be named by their path there."""
        self._folder, self._outputs = folder, outputs

    def keep(self, data: bytes) -> InputInfo:
        """Raises BadPicture with what is wrong."""
        picture, ready = opened(data)
        if not ready:
            buffer = io.BytesIO()
            picture.save(buffer, "PNG", compress_level=1)
            data = buffer.getvalue()
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if path.exists():
            path.touch()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        return InputInfo(id=PREFIX + name, width=picture.width, height=picture.height)

    def named(self, text: str) -> str:
        """The id of a picture that is given as base64, a data URL, a path in outputs/, or as an id. Raises BadPicture.

        A path is told from base64 by its suffix: base64 has no dot.
        """
        if _ID.fullmatch(text):
            if not self._path(text.removeprefix(PREFIX)).is_file():
                raise BadPicture(GONE)
            return text
        if "." in text[-6:] and len(text) < 1000:
            return self.keep(self._output(text)).id
        try:
            data = base64.b64decode(_DATA_URL.sub("", text[:100], count=1) + text[100:], validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadPicture(
                "A picture is given as base64, as a data URL, or by its path in outputs/; this is none of them."
            ) from error
        return self.keep(data).id

    def data(self, name: str) -> bytes:
        """The file of an id. Raises BadPicture."""
        if not _ID.fullmatch(name):
            raise BadPicture(f"{name[:80]!r} is no id of a picture.")
        try:
            return self._path(name.removeprefix(PREFIX)).read_bytes()
        except OSError as error:
            raise BadPicture(GONE) from error

    def size(self, name: str) -> tuple[int, int]:
        """Width and height of a picture that is kept. Raises BadPicture."""
        with PIL.Image.open(io.BytesIO(self.data(name))) as picture:
            return picture.size

    def forget_unused(self, used: Collection[str]) -> None:
        """Remove what no job holds and nobody gave lately."""
        limit = time.time() - KEEP_SECONDS
        for path in self._folder.glob("*/*"):
            try:
                if PREFIX + path.name not in used and path.stat().st_mtime < limit:
                    path.unlink()
            except OSError as error:
                log.warning("%s cannot be removed: %s", path, error)

    def _output(self, name: str) -> bytes:
        path = (self._outputs / name).resolve()
        inside = path.relative_to(self._outputs).parts if path.is_relative_to(self._outputs) else (".",)
        if any(part.startswith(".") for part in inside) or not path.is_file():
            raise BadPicture(f"There is no picture {name!r} in outputs/.")
        return path.read_bytes()

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest


def opened(data: bytes) -> tuple[PIL.Image.Image, bool]:
    """Upright, 8 bits, RGB, RGBA or L; and whether the file can be used as it is. Raises BadPicture."""
    try:
        picture = PIL.Image.open(io.BytesIO(data))
        if picture.width * picture.height > MOST_PIXELS:
            raise BadPicture(
                f"A picture of {picture.width} x {picture.height} pixels is too large: "
                f"{MOST_PIXELS // 2**20} megapixels are the most. Make it smaller first."
            )
        picture.load()  # of a film, the first picture
        upright = ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        raise BadPicture("This is no picture: PNG, JPEG, WebP, GIF, BMP and TIFF can be read.") from error
    except PIL.Image.DecompressionBombError as error:
        raise BadPicture(f"This picture is too large: {MOST_PIXELS // 2**20} megapixels are the most.") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, IndexError, OverflowError) as error:
        raise BadPicture(f"This picture is damaged and cannot be read ({error}).") from error
    turned = picture.getexif().get(0x0112, 1) != 1
    ready = eight_bits(upright)
    as_it_is = not turned and ready.mode == picture.mode and picture.format in KEPT_FORMATS
    return ready, as_it_is


def eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """An alpha channel that hides nothing is dropped."""
    if picture.mode in ("1", "L"):
        return picture.convert("L")
    if picture.mode == "F" or picture.mode.startswith("I"):
        return _scaled(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    found = picture.convert("RGBA")
    return found.convert("RGB") if found.getchannel("A").getextrema() == (255, 255) else found


def _scaled(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Grey of 16 or 32 bits: up to 255 it is meant as it is, up to 65,535 as 16 bits; fractions up to 1 as shares."""
    levels = np.asarray(picture, dtype=np.float64)
    top = float(np.nan_to_num(levels).max(initial=0.0))
    factor = 255 if picture.mode == "F" and top <= 1 else 1 if top <= 255 and picture.mode != "I;16" else 1 / 257
    return PIL.Image.fromarray(np.nan_to_num(levels * factor).clip(0, 255).round().astype(np.uint8))
