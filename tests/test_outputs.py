"""Pictures on disk: whole or not at all, with their infotext, and a full disk that says so."""

import errno
import io
import os
from pathlib import Path
from typing import Literal

import PIL.Image
import pytest

from webui.outputs import DiskFull, Outputs, number_of, read_infotext

TEXT = "a cat, 猫\nSteps: 1, Seed: 2, Size: 8x8"


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((64, 48), 50).convert("RGB").save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(("image_format", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_the_infotext_can_be_read_back(
    image_format: Literal["png", "jpeg", "webp"], suffix: str, tmp_path: Path
) -> None:
    outputs = Outputs(tmp_path, image_format, 92)
    name = outputs.name("2026-01-02", 3, 77)
    assert name == f"2026-01-02/00003-77{suffix}"
    assert outputs.write(name, png(), TEXT) == (64, 48)
    with PIL.Image.open(tmp_path / name) as picture:
        assert read_infotext(picture) == TEXT
        if image_format == "png":
            with PIL.Image.open(io.BytesIO(png())) as original:
                assert picture.size == original.size
    assert outputs.highest_number("2026-01-02") == 3


def test_png_pixels_are_untouched(tmp_path: Path) -> None:
    original = png()
    Outputs(tmp_path, "png", 92).write("a/1-1.png", original, TEXT)
    with PIL.Image.open(tmp_path / "a/1-1.png") as ours, PIL.Image.open(io.BytesIO(original)) as theirs:
        assert ours.tobytes() == theirs.tobytes()


def test_a_full_disk_says_so_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # the only way to a full disk that needs no root
    with pytest.raises(DiskFull, match="Free some space, then press Retry"):
        Outputs(tmp_path, "png", 92).write("a/1-1.png", png(), TEXT)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = Outputs(tmp_path, "png", 92)
    outputs.write("a/1-1.png", png(), TEXT)
    before = (tmp_path / "a/1-1.png").read_bytes()

    def die(_: Path, __: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        outputs.write("a/1-1.png", png(), "other")
    assert (tmp_path / "a/1-1.png").read_bytes() == before
    assert outputs.highest_number("a") == 1, "what the crash left behind is not counted"


def test_a_name_that_was_reserved_keeps_its_format(tmp_path: Path) -> None:
    Outputs(tmp_path, "jpeg", 92).write("a/1-1.png", png(), TEXT)
    with PIL.Image.open(tmp_path / "a/1-1.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_a_text_that_is_too_long_for_exif_is_cut(image_format: Literal["jpeg", "webp"], tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, image_format, 92)
    name = outputs.name("a", 1, 1)
    outputs.write(name, png(), "x" * 41_000)
    with PIL.Image.open(tmp_path / name) as picture:
        text = read_infotext(picture)
    assert text
    assert set(text) == {"x"}


def test_after_a_crash_only_whole_pictures_count(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, "png", 92)
    outputs.write("a/1-1.png", png(), TEXT)
    (tmp_path / "a/2-1.png").write_bytes(png()[:30])
    part = tmp_path / "a/.1-1.png.123.part"
    part.touch()
    assert outputs.recover("a/1-1.png") == (64, 48)
    assert outputs.recover("a/2-1.png") is None
    assert outputs.recover("a/3-1.png") is None
    assert not part.exists()


@pytest.mark.parametrize(
    ("name", "number"), [("00012-5.png", 12), ("cat.png", 0), (".00003-1.png.part", 0), ("9-.webp", 9)]
)
def test_number_of(name: str, number: int) -> None:
    assert number_of(name) == number
