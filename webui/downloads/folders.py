"""Where a model goes and under what name; looks before it writes, and never overwrites."""

import errno
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipelines.types import Kind
from webui.downloads.types import BadSource, DownloadFailed, Mode, NoRoom

FOLDERS: dict[Kind, str] = {
    Kind.CHECKPOINT: "Stable-diffusion",
    Kind.LORA: "Lora",
    Kind.EMBEDDING: "embeddings",
    Kind.VAE: "VAE",
    Kind.TEXT_ENCODER: "text_encoder",
    Kind.CONTROLNET: "ControlNet",
    Kind.T2I_ADAPTER: "ControlNet",
    Kind.IP_ADAPTER: "ControlNet",
    Kind.UPSCALER: "ESRGAN",
    Kind.FACE_RESTORER: "GFPGAN",
    Kind.IMAGE_ENCODER: "clip_vision",
    Kind.PREPROCESSOR: "ControlNetPreprocessor",
}
"""A1111's names."""

UNSORTED = "Unsorted"
"""For what nobody has named and no header has told."""

SUFFIXES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
"""Windows opens devices by these names, with any suffix."""

FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
NAME_BYTES = 200
"""Most file systems stop at 255; `.part` and the like come on top."""

FULL = (errno.ENOSPC, errno.EDQUOT)

FreeBytes = Callable[[Path], int]


def folder_of(kind: Kind | None) -> str:
    return FOLDERS.get(kind, UNSORTED) if kind else UNSORTED


def safe_name(name: str) -> str:
    """A name that is one file on every system, and nothing else. Raises BadSource if nothing is left of it."""
    text = unicodedata.normalize("NFC", name)
    text = "".join("_" if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") else letter for letter in text)
    text = FORBIDDEN.sub("_", text).strip(" .")
    if RESERVED.fullmatch(text):
        text = f"_{text}"
    stem, suffix = PurePosixPath(text).stem, PurePosixPath(text).suffix
    if len(suffix.encode()) > 20:
        stem, suffix = text, ""
    text = stem.encode()[: NAME_BYTES - len(suffix.encode())].decode(errors="ignore").rstrip(" .") + suffix
    if not text.strip("_"):
        raise BadSource(f"{name[:80]!r} cannot be the name of a file. Give another name.")
    return text


def safe_path(path: str) -> str:
    """A path below a folder, as a source gives it. Raises BadSource for one that would leave it."""
    try:
        safe = all(segment == safe_name(segment) for segment in path.split("/"))
    except BadSource:
        safe = False
    if not safe:
        raise BadSource(f"The source has a file named {path[:80]!r}, which is not written to this disk.")
    return path


def free_bytes(folder: Path) -> int:
    """Of the disk on which this folder lies or will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 100_000_000 else f"{size / 1e6:.1f} MB"


def check_room(folder: Path, needed: int, margin: int, free: FreeBytes) -> None:
    """Raises NoRoom, with numbers."""
    if (left := free(folder)) < needed + margin:
        raise NoRoom(
            f"This needs {gigabytes(needed)}, and {gigabytes(margin)} are to stay free, but the disk of {folder} has "
            f"{gigabytes(left)} left. Free some space, then press Resume."
        )


def readable(error: OSError, path: Path) -> NoRoom | DownloadFailed:
    if error.errno in FULL:
        return NoRoom("The disk is full. What has come is kept: free some space, then press Resume.")
    return DownloadFailed(f"{path} cannot be read or written: {error.strerror or error}. Mend that, then press Resume.")


def place(part: Path, target: Path) -> None:
    """Give a finished file or folder its name. Raises DownloadFailed if that is taken; OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.is_dir():
        if target.exists():
            raise taken(target)
        part.rename(target)
        return
    try:
        os.link(part, target)  # the only rename that refuses to overwrite on every POSIX system
    except FileExistsError as error:
        raise taken(target) from error
    except OSError:  # a disk without hard links, or another disk
        if target.exists():
            raise taken(target) from None
        _move(part, target)
    else:
        part.unlink()


def _move(part: Path, target: Path) -> None:
    try:
        part.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f"{target.name}.part")
        try:
            shutil.copyfile(part, beside)
            beside.rename(target)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        part.unlink()


def taken(target: Path) -> DownloadFailed:
    return DownloadFailed(
        f"{target.parent.name}/{target.name} is there already, and it is not known to be the same. "
        "Rename or delete it, or add this under another name."
    )


def link(original: Path, target: Path, mode: Mode) -> bool:
    """Make the target show the original's content without a copy. False if that cannot be done here."""
    if mode == "copy":
        return False
    if target.exists():
        raise taken(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for make in (_hard_link, os.symlink):
        try:
            make(original, target)
        except OSError:
            continue
        return True
    return False


def _hard_link(original: Path, target: Path) -> None:
    os.link(original.resolve(), target)


@contextmanager
def as_named(part: Path, name: str) -> Generator[Path, None, None]:
    """The unfinished file under the name that it will have, since suffixes say how a file is read."""
    if part.name == name or part.is_dir():
        yield part
        return
    folder = part.with_name(f".{name}.check")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    named = folder / name
    linked = link(part, named, "auto")
    try:
        if not linked:  # a disk without links
            part.rename(named)
        yield named
    finally:
        if not linked and named.exists():
            named.rename(part)
        shutil.rmtree(folder, ignore_errors=True)


def discard(path: Path) -> None:
    """Delete an unfinished file or folder, and the folder of its check."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    shutil.rmtree(path.with_name(f".{path.name.removesuffix('.part')}.check"), ignore_errors=True)
