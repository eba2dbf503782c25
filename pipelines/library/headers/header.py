"""What stands at the front of a model file: names, shapes and dtypes of its tensors, and what the maker wrote down."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from pipelines.types import Format


class TensorInfo(NamedTuple):
    shape: tuple[int, ...]
    """The outermost dimension first, as torch has it, whatever the order in the file."""

    dtype: str
    """By safetensors' names (F16, BF16, F8_E4M3, ...) or GGUF's (Q4_K, ...)."""

    size_bytes: int


@dataclass(frozen=True)
class Header:
    format: Format
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors.values())


DTYPE_BITS: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C128": 128,
}
"""Size of one element, by safetensors' names."""
