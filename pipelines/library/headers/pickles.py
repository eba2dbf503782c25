"""Headers of .ckpt, .pt, .pth and .bin files: torch's zip archives, and its older plain pickles. Nothing is run."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO, Any

from pipelines.errors import BadModel
from pipelines.library.headers.header import DTYPE_BITS, Header, TensorInfo
from pipelines.library.headers.machine import Machine, Record, Storage
from pipelines.library.headers.sniff import HEAD_BYTES, check_suffix
from pipelines.types import Format

LONGEST_PICKLE = 64 * 2**20
"""In bytes, of a zip file's list of tensors. A checkpoint's is about 200 kB."""

DEEPEST = 6
MOST_VALUES = 2_000_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""Stands in the first of the pickles that torch wrote before 1.6."""

WRAPPERS = ("state_dict", "params_ema", "params", "params_g")
"""Trainers put the weights under such a name, beside the state of the training."""

VIEWS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v3")
WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


def read(path: Path) -> Header:
    """Raises OSError and BadModel."""
    with path.open("rb") as file:
        check_suffix(path, file.read(HEAD_BYTES))
        file.seek(0)
        value = _from_zip(file) if zipfile.is_zipfile(file) else _from_legacy(file, path.stat().st_size)
    found = Weights(value)
    if not found.tensors:
        raise BadModel("It holds no tensors that can be read without running it.")
    return Header(Format.PICKLE, found.tensors, found.metadata)


def _from_zip(file: IO[bytes]) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.rpartition("/")[2] == "data.pkl"]
            if not entries:
                raise BadModel("It is a zip archive, but not one that torch wrote. If models are inside, unpack it.")
            if entries[0].file_size > LONGEST_PICKLE:
                raise BadModel("Its list of tensors is too long to be that of a model.")
            return Machine().walk(archive.read(entries[0]))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, struct.error) as error:
        raise BadModel(f"It is damaged: {error}. Get the file again.") from error


def _from_legacy(file: IO[bytes], size: int) -> Any:
    """Magic number, version, machine, weights, then the raw numbers; or a single pickle."""
    file.seek(0)
    start = file.read(4)
    if start == b"PK\x03\x04":
        raise BadModel("It is cut off: the end of its archive is missing. The copy or download is not finished.")
    file.seek(0)
    value = Machine().walk(file)
    if value != LEGACY_MAGIC:
        return value
    for _ in range(3):
        value = Machine().walk(file)
    wanted = sum({tensor[0].key: _bytes_of(tensor[0]) for _, tensor in Weights(value).views}.values())
    if wanted > size:
        raise BadModel(f"It is cut off: {size:,} of more than {wanted:,} bytes are there.")
    return value


class Weights:
    """The tensors inside of a value that the machine built, named by the way to them, and plain texts beside them."""

    def __init__(self, value: Any) -> None:
        self.views: list[tuple[str, tuple[Storage, tuple[int, ...]]]] = []
        self.metadata: dict[str, str] = {}
        self._left = MOST_VALUES
        if isinstance(value, dict):
            self.metadata = {str(key): item for key, item in value.items() if isinstance(item, str)}
            for wrapper in WRAPPERS:
                if isinstance(value.get(wrapper), dict):
                    value = value[wrapper]
                    break
        self._collect("", value, 0)
        self.tensors = {name: _tensor(*view) for name, view in self.views}

    def _collect(self, name: str, value: Any, depth: int) -> None:
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            return
        if view := _view(value):
            self.views.append((name, view))
        for key, item in _children(value):
            self._collect(f"{name}.{key}" if name else key, item, depth + 1)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, list):
        yield from ((str(index), item) for index, item in enumerate(value))


def _view(value: Any) -> tuple[Storage, tuple[int, ...]] | None:
    while isinstance(value, Record) and value.name in WRAPPED and value.arguments:
        value = value.arguments[0]
    if not (isinstance(value, Record) and value.name in VIEWS and len(value.arguments) >= 3):
        return None
    storage, _, shape = value.arguments[:3]
    if isinstance(shape, Record):  # torch.Size((...))
        shape = shape.arguments[0] if shape.arguments else ()
    if not isinstance(storage, Storage) or not isinstance(shape, tuple):
        return None
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise BadModel("It is damaged: the shape of a tensor cannot be.")
    return storage, shape


def _tensor(storage: Storage, shape: tuple[int, ...]) -> TensorInfo:
    return TensorInfo(shape, storage.dtype, prod(shape) * DTYPE_BITS[storage.dtype] // 8)


def _bytes_of(storage: Storage) -> int:
    return storage.elements * DTYPE_BITS[storage.dtype] // 8
