"""The gallery: pages over everything in outputs/, thumbnails, and nothing but pictures."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
import pytest

from pipelines.errors import PipelineError
from webui.library import THUMBNAIL, Library, NotAPicture
from webui.outputs import PictureInfo


def add(root: Path, name: str, age: int = 0, size: tuple[int, int] = (32, 16)) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, "teal").save(root / name)
    os.utime(root / name, (1_700_000_000 - age, 1_700_000_000 - age))


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path, tmp_path / ".cache")


def ids(pictures: list[PictureInfo]) -> list[str]:
    return [picture.id for picture in pictures]


def test_pages_are_newest_first_and_complete(library: Library, tmp_path: Path) -> None:
    for age in range(25):
        add(tmp_path, f"2026-01-{age % 3 + 1:02}/{age:05}-1.png", age)
    seen: list[str] = []
    after = None
    while True:
        page = library.page(10, after)
        assert page.total == 25
        seen += ids(page.pictures)
        if (after := page.next) is None:
            break
    assert seen == [f"2026-01-{age % 3 + 1:02}/{age:05}-1.png" for age in range(25)]


def test_a_picture_that_comes_or_goes_is_noticed(library: Library, tmp_path: Path) -> None:
    add(tmp_path, "a/1.png")
    assert ids(library.page(10).pictures) == ["a/1.png"]
    add(tmp_path, "b/deep/2.webp", age=5)
    assert ids(library.page(10).pictures) == ["a/1.png", "b/deep/2.webp"]
    (tmp_path / "a/1.png").unlink()
    assert ids(library.page(10).pictures) == ["b/deep/2.webp"]


def test_only_pictures_are_listed_and_sent(library: Library, tmp_path: Path) -> None:
    add(tmp_path, "a/1.png")
    add(tmp_path, ".hidden/2.png")
    (tmp_path / "a/page.html").write_text("<script>")
    (tmp_path / "a/broken.png").write_text("no picture")
    (tmp_path / "a/link.png").symlink_to("/etc/passwd")
    assert ids(library.page(10).pictures) == ["a/1.png"]
    for name in ("a/page.html", ".hidden/2.png", "../x.png", "/etc/passwd", "a/none.png", "a/link.png", "a", ""):
        with pytest.raises(NotAPicture):
            library.path(name)
    with pytest.raises(NotAPicture):
        library.info("a/broken.png")


def test_thumbnails_are_small_and_follow_the_file(library: Library, tmp_path: Path) -> None:
    add(tmp_path, "a/1.png", size=(1024, 512))
    first = library.thumbnail("a/1.png")
    with PIL.Image.open(first) as small:
        assert small.size == (THUMBNAIL, THUMBNAIL // 2)
        assert small.format == "WEBP"
    assert library.thumbnail("a/1.png") == first
    stamp = first.stat().st_mtime_ns
    add(tmp_path, "a/1.png", age=9, size=(512, 512))
    second = library.thumbnail("a/1.png")
    assert second != first
    assert first.stat().st_mtime_ns == stamp, "a known thumbnail is not made again"


def test_a_picture_that_is_cut_off_is_no_server_error(library: Library, tmp_path: Path) -> None:
    add(tmp_path, "a/1.png", size=(512, 512))
    whole = (tmp_path / "a/1.png").read_bytes()
    (tmp_path / "a/1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotAPicture):
        library.thumbnail("a/1.png")
    assert len(library.page(10).pictures) <= 1


def test_one_thumbnail_for_many_who_ask_at_once(library: Library, tmp_path: Path) -> None:
    for number in range(10):
        add(tmp_path, f"a/{number}.png", size=(300, 300))
        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(library.thumbnail, [f"a/{number}.png"] * 4))) == 1


def test_a_broken_link_harms_nobody_else(library: Library, tmp_path: Path) -> None:
    add(tmp_path, "a/1.png")
    (tmp_path / "a/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a/self.png").symlink_to(tmp_path / "a/self.png")
    assert ids(library.page(10).pictures) == ["a/1.png"]
    with pytest.raises(NotAPicture):
        library.path("a/self.png")


def test_a_bad_cursor_is_named(library: Library) -> None:
    with pytest.raises(PipelineError, match="cursor"):
        library.page(10, "nonsense")


def test_ten_thousand_pictures_are_read_once(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second page reads no folder: 10,000 entries are cheap then."""
    add(tmp_path, "a/00000-1.png")
    content = (tmp_path / "a/00000-1.png").read_bytes()
    for number in range(1, 10_000):
        (tmp_path / "a" / f"{number:05}-1.png").write_bytes(content)
    time.sleep(0.01)
    first = library.page(100)
    assert first.total == 10_000
    reads: list[str] = []
    real = os.scandir

    def counting(path: Path) -> object:
        reads.append(str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", counting)
    assert len(library.page(100, first.next).pictures) == 100
    assert reads == []
