"""Which files are models? A walk over the models folders of A1111, Forge, ComfyUI and InvokeAI; links are followed."""

import logging
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipelines.library.headers import SUFFIXES
from pipelines.types import Kind

log = logging.getLogger(__name__)

INDEX = "model_index.json"

FOLDERS: dict[str, Kind | None] = {
    **dict.fromkeys(("stable-diffusion", "checkpoints", "diffusion_models", "unet", "main"), Kind.CHECKPOINT),
    **dict.fromkeys(("lora", "loras", "lycoris", "locon"), Kind.LORA),
    **dict.fromkeys(("embeddings", "embedding", "textual_inversion"), Kind.EMBEDDING),
    "vae": Kind.VAE,
    **dict.fromkeys(("text_encoder", "text_encoders", "clip"), Kind.TEXT_ENCODER),
    **dict.fromkeys(("controlnet", "control_net"), Kind.CONTROLNET),
    **dict.fromkeys(("t2iadapter", "t2i_adapter", "t2i"), Kind.T2I_ADAPTER),
    **dict.fromkeys(("ipadapter", "ip_adapter"), Kind.IP_ADAPTER),
    **dict.fromkeys(("esrgan", "realesrgan", "swinir", "dat", "hat", "upscale_models", "spandrel"), Kind.UPSCALER),
    **dict.fromkeys(("gfpgan", "codeformer", "facerestore_models"), Kind.FACE_RESTORER),
    **dict.fromkeys(("clip_vision", "clipvision", "image_encoder"), Kind.IMAGE_ENCODER),
    **dict.fromkeys(("controlnetpreprocessor", "annotators", "preprocessor"), Kind.PREPROCESSOR),
    **dict.fromkeys(("vae-approx", "vae_approx"), None),
}
"""Names of folders, in small letters -> what is expected there. None: not looked into."""

PLACE: dict[str, str] = {
    Kind.CHECKPOINT: "models/Stable-diffusion",
    Kind.LORA: "models/Lora",
    Kind.EMBEDDING: "models/embeddings",
    Kind.VAE: "models/VAE",
    Kind.TEXT_ENCODER: "models/text_encoder",
    Kind.CONTROLNET: "models/ControlNet",
    Kind.T2I_ADAPTER: "models/T2IAdapter",
    Kind.IP_ADAPTER: "models/IPAdapter",
    Kind.UPSCALER: "models/ESRGAN",
    Kind.FACE_RESTORER: "models/GFPGAN",
    Kind.IMAGE_ENCODER: "models/clip_vision",
    Kind.PREPROCESSOR: "models/ControlNetPreprocessor",
}
"""Where we tell the user to put a file."""

GROUPS = {"autoimport", "any", "sd-1", "sd-2", "sdxl", "sdxl-refiner", "sd-3", "flux", "flux2", "z-image", "qwen-image"}
"""InvokeAI sorts by family first."""

BESIDE = ("embeddings", "autoimport")
"""Lie beside `models` in A1111 and InvokeAI."""

SETTINGS = ".yaml"
"""Of a checkpoint, as A1111 has them: the same name, beside it."""

SKIPPED = {"__pycache__", "node_modules"}


class Entry(NamedTuple):
    """A file or diffusers folder that may be a model."""

    path: str
    name: str
    """Below its kind's folder, with slashes."""

    size: int
    mtime_ns: int
    ctime_ns: int
    is_folder: bool
    detail: str = ""
    """Why it cannot be read, if the walk knows already."""

    settings: str = ""
    """The .yaml beside it, if there is one,"""

    settings_ns: int = 0
    """and when that was changed."""


class Tree(NamedTuple):
    """A folder to walk, and the one that names are relative to."""

    top: str
    base: str


def trees(folder: Path) -> Iterator[Tree]:
    """A models folder itself, or what an application's folder has of them."""
    if (folder / "models").is_dir() and not any(
        (folder / name).is_dir() for name in ("Stable-diffusion", "checkpoints")
    ):
        yield Tree(str(folder / "models"), str(folder / "models"))
        yield from (Tree(str(folder / name), str(folder)) for name in BESIDE if (folder / name).is_dir())
    else:
        yield Tree(str(folder), str(folder))


class Walk:
    """One look at all folders. `folders` are those that were seen, with the time of their last change."""

    def __init__(self, complaints: set[str]) -> None:
        """`complaints`: folders about which the log says enough already."""
        self.folders: dict[str, int] = {}
        self._complaints = complaints
        self._seen: set[tuple[int, int]] = set()

    def entries(self, roots: Iterable[Path]) -> Iterator[Entry]:
        for root in roots:
            for tree in trees(root):
                yield from self._tree(tree)

    def _tree(self, tree: Tree) -> Iterator[Entry]:
        waiting = [tree.top]
        while waiting:
            folder = waiting.pop()
            children = self._children(folder)
            if any(child.name == INDEX for child in children) and folder != tree.base:
                yield self._diffusers(folder, tree.base)
                continue
            place = _place(os.path.relpath(folder, tree.base)) if folder != tree.base else ""
            below = []
            settings = {child.name[:-5]: child for child in children if child.name.endswith(SETTINGS)}
            for child in children:
                if _is_folder(child):
                    if _wanted(child.name):
                        below.append(child.path)
                    if _suffix(child.name):
                        yield _odd(
                            child, place, "It is a folder with the name of a file. Put what is inside beside it."
                        )
                elif _suffix(child.name):
                    entry = _entry(child, place)
                    yield _with_settings(entry, settings) if settings else entry
            waiting.extend(reversed(below))

    def _children(self, folder: str) -> list["os.DirEntry[str]"]:
        """Sorted. Empty for a folder that was seen already, through a link or a second root, or cannot be read."""
        try:
            status = Path(folder).stat()
            key = (status.st_dev, status.st_ino)
            if status.st_ino and key in self._seen:
                return []
            self._seen.add(key)
            self.folders[folder] = status.st_mtime_ns
            with os.scandir(folder) as found:
                return sorted(found, key=lambda child: child.name.lower())
        except OSError as error:
            self.folders.setdefault(folder, -1)
            if folder not in self._complaints:
                self._complaints.add(folder)
                log.warning("%s cannot be read: %s", folder, error.strerror)
            return []

    def _diffusers(self, folder: str, base: str) -> Entry:
        """Its size is that of all its files, its time a checksum over theirs: any change makes it another."""
        name = _place(os.path.relpath(folder, base))
        size, sums, waiting = 0, 0, [folder]
        while waiting:
            here = waiting.pop()
            children = self._again(here) if here == folder else self._children(here)
            for child in children:
                if _is_folder(child):
                    waiting.append(child.path)
                elif (status := _stat(child)) is not None:
                    size += status.st_size
                    sums = zlib.crc32(
                        repr((child.path, status.st_size, status.st_mtime_ns)).encode("utf-8", "replace"), sums
                    )
        return Entry(folder, name, size, sums, 0, True)

    @staticmethod
    def _again(folder: str) -> list["os.DirEntry[str]"]:
        try:
            with os.scandir(folder) as found:
                return sorted(found, key=lambda child: child.name)
        except OSError:
            return []


def _is_folder(child: "os.DirEntry[str]") -> bool:
    try:
        return child.is_dir()
    except OSError:
        return False


def _stat(child: "os.DirEntry[str]") -> os.stat_result | None:
    try:
        return child.stat()
    except OSError:
        return None


def _wanted(name: str) -> bool:
    low = name.lower()
    return not name.startswith(".") and low not in SKIPPED and FOLDERS.get(low, Kind.UNKNOWN) is not None


def _suffix(name: str) -> bool:
    return not name.startswith("._") and name[name.rfind(".") :].lower() in SUFFIXES


def _place(relative: str) -> str:
    """A folder's path with slashes, without the folder of its kind."""
    parts = relative.replace(os.sep, "/").split("/")
    if len(parts) > 1 and parts[0].lower() in GROUPS and parts[1].lower() in FOLDERS:
        parts = parts[1:]
    return "/".join(parts[1:] if parts[0].lower() in FOLDERS else parts)


def _entry(child: "os.DirEntry[str]", place: str) -> Entry:
    status = _stat(child)
    if status is None:
        return _odd(child, place, "It is a link that leads nowhere. Remove it, or put the file back.")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        return _odd(child, place, "It is no ordinary file. Remove it from the models.")
    name = f"{place}/{child.name}" if place else child.name
    if not name.isascii() and max(name) >= "\udc80":
        try:
            name.encode()
        except UnicodeEncodeError:
            return _odd(child, place, "Its name, or that of a folder around it, is not valid UTF-8. Rename it.")
    return Entry(child.path, name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, False)


def _with_settings(entry: Entry, settings: Mapping[str, "os.DirEntry[str]"]) -> Entry:
    found = settings.get(entry.path[entry.path.rfind(os.sep) + 1 : entry.path.rfind(".")])
    status = _stat(found) if found else None
    return entry._replace(settings=found.path, settings_ns=status.st_mtime_ns) if found and status else entry


def _odd(child: "os.DirEntry[str]", place: str, detail: str) -> Entry:
    status = _stat(child)
    size = status.st_size if status and not _is_folder(child) else 0
    name = f"{place}/{child.name}" if place else child.name
    return Entry(child.path, readable(name), size, 0, 0, False, detail)


def readable(name: str) -> str:
    """With a mark where a name is no UTF-8, so that it can be shown."""
    return os.fsencode(name).decode("utf-8", "replace")
