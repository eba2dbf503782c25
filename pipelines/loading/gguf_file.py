"""Reads GGUF files: tensors that are mapped from the file, packed ones as they are packed.

The gguf package's own reader makes an object of every word of a vocabulary, which takes 11 s for Qwen's.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter
from gguf import GGMLQuantizationType
from torch import Tensor

from pipelines.errors import BadModel
from pipelines.library.headers.gguf import ARRAY, SCALARS, STRING, Reader
from pipelines.library.headers.gguf import read as read_header
from pipelines.library.headers.header import TensorInfo
from pipelines.loading.quantised import dequantise

PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
SHAPE_KEY = "comfy.gguf.orig_shape."
"""GGUF holds at most 4 dimensions and blocks along the last: writers note the true shape of what they reshaped."""
ALIGNMENT_KEY, ALIGNMENT = "general.alignment", 32
MAGIC_BYTES = 8

Shape = tuple[int, ...]


def read_gguf(path: Path) -> dict[str, Tensor]:
    """Name -> tensor; no weight is read. Packed ones are diffusers' GGUFParameters, with rows as dimension 0.

    Raises BadModel if the file is damaged or packed in a way that cannot be unpacked.
    """
    try:
        header = read_header(path)
        begin, offsets, shapes = _places(path)
    except (OSError, struct.error, BadModel) as error:
        raise BadModel(f"{path.name} cannot be read. {error}") from error
    content = np.memmap(path, mode="c")  # copy on write: torch wants to own what it could write to
    tensors: dict[str, Tensor] = {}
    for name, info in header.tensors.items():
        start = begin + offsets[name]
        raw = torch.from_numpy(content[start : start + info.size_bytes])
        tensors[name] = _tensor(name, info, raw, shapes.get(name))
    return tensors


def _tensor(name: str, info: TensorInfo, raw: Tensor, shape: Shape | None) -> Tensor:
    if info.dtype in PLAIN:
        return raw.view(PLAIN[info.dtype]).reshape(info.shape if shape is None else shape)
    kind = GGMLQuantizationType[info.dtype]
    if kind not in SUPPORTED_GGUF_QUANT_TYPES:
        known = ", ".join(sorted(known.name for known in SUPPORTED_GGUF_QUANT_TYPES))
        raise BadModel(f"{name} is packed as {kind.name}, which is not known. Take a file of {known}.")
    packed: Any = GGUFParameter(raw.reshape(*info.shape[:-1], -1), quant_type=kind)
    if shape is not None and tuple(packed.quant_shape) != shape:
        return dequantise(packed, torch.float16).reshape(shape)
    found: Tensor = packed
    return found


def _places(path: Path) -> tuple[int, dict[str, int], dict[str, Shape]]:
    """Where the tensors begin, where each lies from there on, and the true shapes of those that were reshaped."""
    shapes: dict[str, Shape] = {}
    offsets: dict[str, int] = {}
    alignment = ALIGNMENT
    with path.open("rb") as file:
        reader = Reader(file, path.stat().st_size)
        reader.skip(MAGIC_BYTES)
        tensors, entries = reader.count(), reader.count()
        for _ in range(entries):
            key, kind = reader.text(), reader.value("I")
            if key.startswith(SHAPE_KEY):
                shapes[key.removeprefix(SHAPE_KEY)] = _numbers(reader)
            elif key == ALIGNMENT_KEY:
                alignment = int(reader.value(SCALARS[kind]))
            else:
                _pass_over(reader, kind)
        for _ in range(tensors):
            name, dimensions = reader.text(), reader.value("I")
            reader.skip(8 * dimensions + 4)  # sides and type, which the header has
            offsets[name] = reader.value("Q")
        begin = -(-reader.position // alignment) * alignment
    return begin, offsets, shapes


def _numbers(reader: Reader) -> Shape:
    kind, count = reader.value("I"), reader.count()
    return tuple(int(reader.value(SCALARS[kind])) for _ in range(count))


def _pass_over(reader: Reader, kind: int) -> None:
    if kind == ARRAY:
        inner, count = reader.value("I"), reader.count()
        if inner == STRING:
            for _ in range(count):
                reader.skip(reader.value("Q"))
        else:
            reader.skip(count * struct.calcsize(SCALARS[inner]))
    else:
        reader.skip(reader.value("Q") if kind == STRING else struct.calcsize(SCALARS[kind]))
