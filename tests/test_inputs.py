"""Pictures that users give: whatever it is, it becomes one that every worker reads, or a sentence says why not."""

import base64
import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pipelines import needs
from pipelines.request import Control, GenerationRequest, Region, Start
from webui.inputs import BadPicture, Inputs

RGB = PIL.Image.new("RGB", (8, 6), (200, 10, 30))


def encoded(picture: PIL.Image.Image, form: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path / ".inputs", tmp_path)


def kept(inputs: Inputs, data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(inputs.data(inputs.keep(data).id)))


def turned(picture: PIL.Image.Image) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    return encoded(picture, "JPEG", exif=exif)


DEEP_GREY = PIL.Image.fromarray((np.arange(48).reshape(6, 8) * 1365).astype(np.uint16))


@pytest.mark.parametrize(
    ("make", "mode", "size"),
    [
        (lambda: encoded(RGB), "RGB", (8, 6)),
        (lambda: encoded(RGB.convert("L")), "L", (8, 6)),
        (lambda: encoded(RGB.convert("1")), "L", (8, 6)),
        (lambda: encoded(RGB.convert("CMYK"), "JPEG"), "RGB", (8, 6)),
        (lambda: encoded(RGB.quantize(4), "GIF", save_all=True, append_images=[RGB.quantize(2)]), "RGB", (8, 6)),
        (lambda: encoded(RGB.convert("RGBA")), "RGB", (8, 6)),
        (lambda: encoded(PIL.Image.new("RGBA", (8, 6), (1, 2, 3, 0))), "RGBA", (8, 6)),
        (lambda: encoded(PIL.Image.new("LA", (8, 6), (1, 9))), "RGBA", (8, 6)),
        (lambda: encoded(DEEP_GREY), "L", (8, 6)),
        (lambda: encoded(PIL.Image.fromarray(np.full((6, 8), 0.5, np.float32)), "TIFF"), "L", (8, 6)),
        (lambda: turned(RGB), "RGB", (6, 8)),
    ],
)
def test_every_kind_of_picture_can_be_read(
    inputs: Inputs, make: Callable[[], bytes], mode: str, size: tuple[int, int]
) -> None:
    found = kept(inputs, make())
    found.load()
    assert (found.mode, found.size) == (mode, size)
    assert found.getexif().get(0x0112, 1) == 1


def test_16_bits_keep_their_range(inputs: Inputs) -> None:
    levels = np.asarray(kept(inputs, encoded(DEEP_GREY)))
    assert levels.min() == 0
    assert levels.max() == round(47 * 1365 / 257)


def test_a_picture_that_is_ready_is_kept_byte_for_byte(inputs: Inputs) -> None:
    for data in (encoded(RGB), encoded(RGB, "JPEG"), encoded(RGB, "WEBP")):
        first, again = inputs.keep(data), inputs.keep(data)
        assert first == again
        assert inputs.data(first.id) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no picture"),
        (b"hello", "no picture"),
        (encoded(RGB)[:50], "damaged"),
        (png_of_size(40_000, 100), "damaged"),
        (png_of_size(40_000, 40_000), "too large"),
        (png_of_size(9000, 9000), "9000 x 9000 pixels is too large"),
    ],
)
def test_what_cannot_be_used_says_why(inputs: Inputs, data: bytes, reason: str) -> None:
    with pytest.raises(BadPicture, match=reason):
        inputs.keep(data)


def test_names(inputs: Inputs, tmp_path: Path) -> None:
    data = encoded(RGB)
    text = base64.b64encode(data).decode()
    name = inputs.keep(data).id
    (tmp_path / "2026-01-01").mkdir()
    (tmp_path / "2026-01-01" / "00001-7.png").write_bytes(data)
    for asked in (name, text, f"data:image/png;base64,{text}", "2026-01-01/00001-7.png"):
        assert inputs.named(asked) == name
    for bad in ("", "x!", "sha256:" + "0" * 64, "../secret.png", ".inputs/a.png", "2026-01-01/none.png"):
        with pytest.raises(BadPicture):
            inputs.named(bad)
    outside = tmp_path.parent / "outside.png"
    outside.write_bytes(data)
    with pytest.raises(BadPicture, match="no picture"):
        inputs.named("../outside.png")


def test_what_no_job_holds_goes_after_a_day(inputs: Inputs) -> None:
    used, old, young = (inputs.keep(encoded(PIL.Image.new("L", (4, side)))).id for side in (1, 2, 3))
    for name in (used, old):
        path = inputs._path(name.removeprefix("sha256:"))
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
    inputs.forget_unused({used})
    assert inputs.data(used)
    assert inputs.data(young)
    with pytest.raises(BadPicture, match="not there any more"):
        inputs.data(old)


def test_pictures_of_a_request_are_found_and_renamed() -> None:
    request = GenerationRequest(
        start=Start(image="a", mask="b"),
        controls=(Control(model="canny", image="c"), Control(model="depth")),
        regions=(Region(prompt="image", mask="d"),),
    )
    assert needs.pictures(request) == {"a", "b", "c", "d"}
    renamed = needs.with_pictures(request, str.upper)
    assert renamed.start is not None
    assert (renamed.start.image, renamed.start.mask) == ("A", "B")
    assert [control.image for control in renamed.controls] == ["C", None]
    assert renamed.regions[0].mask == "D"
    assert renamed.regions[0].prompt == "image"
    plain = GenerationRequest(prompt="a")
    assert needs.with_pictures(plain, str.upper) is plain
