"""Headers of .gguf files, by the published layout, without numpy. Strings and sizes are checked before they are read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.errors import BadModel
from pipelines.library.headers.header import Header, TensorInfo
from pipelines.library.headers.sniff import HEAD_BYTES, check_suffix
from pipelines.types import Format

MOST = 1_000_000
"""So many tensors or entries no model has; a damaged count must not make us read for hours."""

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata values, as struct's letters."""


class Quant(NamedTuple):
    name: str
    block: int
    """Elements that are stored together."""

    size_bytes: int
    """Of such a block."""


QUANTS: dict[int, Quant] = {
    0: Quant("F32", 1, 4),
    1: Quant("F16", 1, 2),
    2: Quant("Q4_0", 32, 18),
    3: Quant("Q4_1", 32, 20),
    6: Quant("Q5_0", 32, 22),
    7: Quant("Q5_1", 32, 24),
    8: Quant("Q8_0", 32, 34),
    9: Quant("Q8_1", 32, 40),
    10: Quant("Q2_K", 256, 84),
    11: Quant("Q3_K", 256, 110),
    12: Quant("Q4_K", 256, 144),
    13: Quant("Q5_K", 256, 176),
    14: Quant("Q6_K", 256, 210),
    15: Quant("Q8_K", 256, 292),
    16: Quant("IQ2_XXS", 256, 66),
    17: Quant("IQ2_XS", 256, 74),
    18: Quant("IQ3_XXS", 256, 98),
    19: Quant("IQ1_S", 256, 50),
    20: Quant("IQ4_NL", 32, 18),
    21: Quant("IQ3_S", 256, 110),
    22: Quant("IQ2_S", 256, 82),
    23: Quant("IQ4_XS", 256, 136),
    24: Quant("I8", 1, 1),
    25: Quant("I16", 1, 2),
    26: Quant("I32", 1, 4),
    27: Quant("I64", 1, 8),
    28: Quant("F64", 1, 8),
    29: Quant("IQ1_M", 256, 56),
    30: Quant("BF16", 1, 2),
    34: Quant("TQ1_0", 256, 54),
    35: Quant("TQ2_0", 256, 66),
    39: Quant("MXFP4", 32, 17),
}


class Reader:
    """Little-endian values, one after another; raises BadModel where the file ends too early."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        self._file, self._size = file, size

    @property
    def position(self) -> int:
        return self._file.tell()

    def value(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def count(self) -> int:
        found = int(self.value("Q"))
        if found > MOST:
            raise BadModel(f"Its header is damaged: it claims {found:,} entries. Get the file again.")
        return found

    def text(self) -> str:
        return self.take(self.value("Q")).decode("utf-8", "replace")

    def take(self, length: int) -> bytes:
        if length > self._size - self.position:
            raise BadModel("It is cut off inside of its header: the copy or download is not finished, or failed.")
        return self._file.read(length)

    def skip(self, length: int) -> None:
        if length > self._size - self.position:
            raise BadModel("It is cut off inside of its header: the copy or download is not finished, or failed.")
        self._file.seek(length, 1)


def read(path: Path) -> Header:
    """Raises OSError and BadModel."""
    with path.open("rb") as file:
        size = path.stat().st_size
        check_suffix(path, file.read(HEAD_BYTES))
        file.seek(0)
        reader = Reader(file, size)
        if reader.take(min(4, size)) != b"GGUF":
            raise BadModel("It is no GGUF file: it does not begin like one. It may be damaged; get it again.")
        if (version := reader.value("I")) not in (2, 3):
            raise BadModel(f"It is GGUF of version {version}; versions 2 and 3 can be read.")
        tensor_count, entry_count = reader.count(), reader.count()
        metadata = dict(_entry(reader) for _ in range(entry_count))
        tensors: dict[str, TensorInfo] = {}
        end = 0
        for _ in range(tensor_count):
            name, tensor, offset = _tensor(reader)
            tensors[name] = tensor
            end = max(end, offset + tensor.size_bytes)
        alignment = int(metadata["general.alignment"]) if metadata.get("general.alignment", "").isdigit() else 32
        begin = -(-reader.position // max(alignment, 1)) * max(alignment, 1)
    if begin + end > size:
        raise BadModel(
            f"It is cut off: {max(size - begin, 0):,} of {end:,} bytes of weights are there. "
            "The copy or download is not finished, or failed."
        )
    return Header(Format.GGUF, tensors, metadata)


def _entry(reader: Reader) -> tuple[str, str]:
    """A metadata entry. Of arrays, which hold whole vocabularies, only the length is kept."""
    key, kind = reader.text(), reader.value("I")
    if kind == STRING:
        return key, reader.text()
    if kind == ARRAY:
        return key, f"{_skip_array(reader)} entries"
    if kind not in SCALARS:
        raise BadModel(f"Its header is damaged at {key[:80]!r}. Get the file again.")
    return key, str(reader.value(SCALARS[kind]))


def _skip_array(reader: Reader) -> int:
    kind, count = reader.value("I"), reader.count()
    if kind == STRING:
        for _ in range(count):
            reader.skip(reader.value("Q"))
    elif kind in SCALARS:
        reader.skip(count * struct.calcsize(f"<{SCALARS[kind]}"))
    else:
        raise BadModel("Its header is damaged: it holds an array of an unknown kind. Get the file again.")
    return count


def _tensor(reader: Reader) -> tuple[str, TensorInfo, int]:
    """Name, description, and where it lies behind the header. GGUF writes the innermost dimension first."""
    name, dimensions = reader.text(), reader.value("I")
    if dimensions > 8:
        raise BadModel(f"Its header is damaged at the tensor {name[:80]!r}. Get the file again.")
    shape = tuple(reversed([reader.value("Q") for _ in range(dimensions)]))
    kind, offset = reader.value("I"), reader.value("Q")
    if kind not in QUANTS:
        raise BadModel(f"Its weights are of the GGUF type {kind}, which is not known. Get another quantisation.")
    quant = QUANTS[kind]
    return name, TensorInfo(shape, quant.name, prod(shape) // quant.block * quant.size_bytes), offset
