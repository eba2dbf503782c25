"""Opens model files: tensors that are mapped from the disk, so that a name, a shape or a view costs no reading.

Pickles (.ckpt, .pt, .pth, .bin) are read as data alone, by the one call of torch.load in this program.
"""

import contextlib
import ctypes
import json
import mmap
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 -- only the error's name; nothing is unpickled with it
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from pipelines.errors import BadModel, ModelNotFound
from pipelines.library.headers import read_header
from pipelines.library.headers import safetensors as header
from pipelines.library.network_folder import weight_files
from pipelines.loading.parts import Tensors
from pipelines.types import ModelInfo

Stamp = tuple[tuple[str, int, int], ...]
"""Of each file: path, size, and when it was changed. Another stamp means other weights."""

EMBEDDING = "string_to_param"
"""Under this name textual inversions lie in A1111's files, one to a word."""

WRAPPERS = ("state_dict", "params_ema", "params", "params_g")
"""Trainers put the weights under such a name, beside the state of the training."""

METADATA = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)
"""What trainers leave beside the weights. It is dropped: these names stand for `Dropped`, not for what they say."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names in a safetensors header: https://github.com/huggingface/safetensors#format"""

NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000) if sys.platform == "linux" else 0
"""Python 3.11 does not name it; the number is that of x86 and ARM. With it, a file may be larger than the memory."""

PARTS_OF_NAME = re.compile(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:class|function) ([\w.]+)")


class Dropped:
    """Takes anything, does nothing, holds nothing."""

    def __new__(cls, *_: object) -> "Dropped":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...


def open_weights(path: Path) -> Tensors:
    """The tensors of a file, or of a network's folder in diffusers' layout. Raises BadModel and ModelNotFound."""
    if not path.exists():
        raise ModelNotFound(f"The model's files are gone: there is nothing at {path}. Refresh the list of models.")
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path) if path.is_dir() else [path]:
        if file.suffix.lower() not in READERS:
            raise BadModel(f"{file.name} is no model file: {', '.join(READERS)} are known.")
        tensors.update(READERS[file.suffix.lower()](file))
    return tensors


def stamp(path: Path) -> Stamp:
    """Raises ModelNotFound."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        found = [(file, file.stat()) for file in files]
    except OSError as error:
        raise ModelNotFound(f"The model's files are gone: there is nothing at {path}. Refresh the list.") from error
    return tuple((str(file), status.st_size, status.st_mtime_ns) for file, status in found)


def names_in(path: Path) -> frozenset[str]:
    """Of the tensors of a safetensors file, without opening any; empty for files of other kinds."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return frozenset()
    return frozenset(read_header(path).tensors)


def _safetensors(path: Path) -> Tensors:
    """By hand and not by the library, which maps a file so that the system must have memory for all of it."""
    try:
        raw = header.read_raw(path)
        header.parse(raw)  # checks every name, size and place
        entries: dict[str, Any] = json.loads(raw.text)
        pages = _mapped(path)
    except BadModel as error:
        raise BadModel(f"{_named(path)} cannot be read. {error}") from error
    except OSError as error:
        raise BadModel(f"{_named(path)} cannot be read ({first_line(error)}).") from error
    first = path.stat().st_size - raw.data_bytes
    entries.pop("__metadata__", None)
    unknown = sorted({entry["dtype"] for entry in entries.values()} - DTYPES.keys())
    if unknown:
        raise BadModel(f"{_named(path)} holds numbers of the type {unknown[0]}, which cannot be computed with.")
    return {name: _view(pages, first + entry["data_offsets"][0], entry) for name, entry in entries.items()}


def _mapped(path: Path) -> mmap.mmap:
    """To be written to by nobody, but if somebody does, the file stays as it is."""
    with path.open("rb") as file:
        if sys.platform == "win32":
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _view(pages: mmap.mmap, place: int, entry: dict[str, Any]) -> Tensor:
    dtype, shape = DTYPES[entry["dtype"]], torch.Size(entry["shape"])
    if not shape.numel():
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(pages, dtype=dtype, count=shape.numel(), offset=place).reshape(shape)


def _gguf(path: Path) -> Tensors:
    from pipelines.loading.gguf_file import read_gguf  # only who has such files needs its libraries

    return read_gguf(path)


def _pickle(path: Path) -> Tensors:
    try:
        with safe_globals([(Dropped, name) for name in METADATA]):
            content = torch.load(  # noqa: TID251 -- the only one, and it reads data alone
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, TypeError, AttributeError, IndexError) as error:
        raise BadModel(
            f"{_named(path)} is damaged or no torch file ({first_line(error)}). Download it again."
        ) from error
    return _flat(path, content)


def _refused(path: Path, reason: str) -> BadModel:
    if found := PARTS_OF_NAME.search(reason):
        return BadModel(
            f"{_named(path)} asks to run {found[1] or found[2]}, which weights never need, so it may be malicious. "
            "Only data is read, and nothing of it was run. Get the model as .safetensors."
        )
    return BadModel(f"{_named(path)} holds more than data, or is damaged. Get the model as .safetensors.")


def _flat(path: Path, content: Any) -> Tensors:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    tensors = content.items() if isinstance(content, Mapping) else ()
    found = {str(name): tensor.detach() for name, tensor in tensors if isinstance(tensor, Tensor)}
    if isinstance(content, Mapping) and isinstance(content.get(EMBEDDING), Mapping):
        rows = content[EMBEDDING].items()
        found |= {f"{EMBEDDING}.{name}": tensor.detach() for name, tensor in rows if isinstance(tensor, Tensor)}
    if not found:
        raise BadModel(f"{_named(path)} holds no weights that are known by name.")
    return found


READERS: dict[str, Callable[[Path], Tensors]] = {
    ".safetensors": _safetensors,
    ".gguf": _gguf,
    ".ckpt": _pickle,
    ".pt": _pickle,
    ".pth": _pickle,
    ".bin": _pickle,
}


def read_ahead(model: ModelInfo) -> None:
    """Ask the system to have the files at hand, which it does beside everything else. Not all systems can."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in (model.path, *(companion.path for companion in model.companions.values())):
        for file in _files(path):
            with contextlib.suppress(OSError), file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _files(path: Path) -> Iterator[Path]:
    """What `open_weights` will open of it; nothing where something is missing, which the load itself says."""
    folders = [folder for folder in path.iterdir() if folder.is_dir()] if path.is_dir() else []
    if not folders:
        yield path
    for folder in folders:
        with contextlib.suppress(BadModel, OSError):
            yield from weight_files(folder)


class Pages:
    """The memory in which files are mapped. What has been read can be let go of: the kernel reads it again if need be.

    Else a load would count twice for the resident memory of the process, as the file's pages and as the copy.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """`paths`: files that are open. Where there is no /proc (all but Linux), nothing is let go of."""
        wanted = {str(path.resolve()) for path in paths}
        maps = Path("/proc/self/maps")
        lines = maps.read_text("utf-8", "replace").splitlines() if sys.platform == "linux" and maps.exists() else []
        fields = [line.split(maxsplit=5) for line in lines]
        spans = [row[0].split("-") for row in fields if len(row) == 6 and row[5] in wanted]
        self._spans = [(int(start, 16), int(stop, 16)) for start, stop in spans]
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise if self._spans else None

    def let_go(self, tensor: Tensor) -> None:
        """Only of whole pages that surely are a file's: it would erase any other memory."""
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if self._madvise and start < stop and any(first <= start and stop <= last for first, last in self._spans):
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def _named(path: Path) -> str:
    """With its folder, since in diffusers' layout all files have the same name."""
    return f"{path.parent.name}/{path.name}"


def first_line(error: Exception) -> str:
    """What these libraries raise about a broken file is theirs to choose; its first line, in short, will do."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0].rstrip(".")[:150]
