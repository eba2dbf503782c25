"""Headers of .safetensors files: eight bytes of length, then JSON. Checked in full against the length of the file.

Format: https://github.com/huggingface/safetensors#format
"""

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from pipelines.errors import BadModel
from pipelines.library.headers.header import DTYPE_BITS, Header, TensorInfo
from pipelines.library.headers.sniff import HEAD_BYTES, check_suffix
from pipelines.types import Format

LONGEST = 100_000_000
"""No header may be longer: the limit of the reference implementation, in bytes."""

FIRST_READ = 8 * 1024
"""Tells the length of the header; then exactly the rest is read, since what follows would come from the disk too."""

FIRST_TENSOR = b'":{"dtype":"'
"""Metadata maps strings to strings and a quote inside of a string is escaped: this can't stand inside of it."""


class Raw(NamedTuple):
    """The JSON, not yet parsed, and the length of what follows it."""

    text: bytes
    data_bytes: int


def read_raw(path: Path | str) -> Raw:
    """Reads no more than the header. Raises OSError, and BadModel if the file is too short or something else."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead into the weights
        size = os.fstat(file).st_size
        head = os.read(file, FIRST_READ)
        length = int.from_bytes(head[:8], "little")
        if head[8:9] != b"{" or length > size - 8:
            _explain(Path(path), head, size)
        if length > LONGEST:
            raise BadModel(f"Its header claims {length:,} bytes; no safetensors header is longer than {LONGEST:,}.")
        pieces, have = [head], len(head)
        while have < 8 + length:
            if not (piece := os.read(file, 8 + length - have)):
                raise BadModel("It is cut off inside of its header: the copy or download is not finished, or failed.")
            pieces.append(piece)
            have += len(piece)
    finally:
        os.close(file)
    return Raw(b"".join(pieces)[8 : 8 + length], size - 8 - length)


def _explain(path: Path, head: bytes, size: int) -> None:
    """Why the first bytes are no safetensors header."""
    check_suffix(path if path.suffix else path.with_suffix(".safetensors"), head[:HEAD_BYTES])
    length = int.from_bytes(head[:8], "little")
    if size <= 8 or (head[8:9] == b"{" and length <= LONGEST):
        raise BadModel(
            f"It is cut off inside of its header, at {size:,} bytes: the copy or download is not finished, or failed."
        )
    raise BadModel("It is no safetensors file: no header stands at its front. It may be damaged; get it again.")


def tensor_section(text: bytes) -> bytes:
    """All but the metadata that stands in front. Files with equal sections hold the same names, shapes and dtypes."""
    first = text.find(FIRST_TENSOR) if text.startswith(b'{"__metadata__"') else -1
    end = text.rfind(b"}") + 1  # spaces follow, as many as it takes to reach a multiple of eight
    return text[text.rfind(b'"', 0, first) if first >= 0 else 0 : end]


def parse(raw: Raw) -> Header:
    """Every offset, size and dtype is checked. Raises BadModel."""
    try:
        content = from_json(raw.text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise BadModel(f"Its header is damaged: {error}. Get the file again.") from error
    if not isinstance(content, dict):
        raise BadModel("Its header is damaged: it is no JSON object. Get the file again.")
    metadata = content.pop("__metadata__", None)
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int]] = []
    sizes: dict[tuple[Any, ...], int] = {}  # most tensors share their shape with others: checked once
    for name, entry in content.items():
        try:
            dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
            shape = tuple(entry["shape"])
            size = sizes.get((dtype, shape))
            if size is None:
                size = sizes[dtype, shape] = _size(dtype, shape)
            if begin < 0 or end - begin != size:
                raise ValueError(f"it lies from {begin} to {end}, which does not fit its shape")
        except (KeyError, TypeError, ValueError) as error:
            raise BadModel(f"Its header is damaged at the tensor {name[:80]!r}: {error}.") from error
        spans.append((begin, end))
        tensors[name] = TensorInfo(shape, dtype, size)
    _check_spans(spans, raw.data_bytes)
    return Header(Format.SAFETENSORS, tensors, clean_metadata(metadata))


def parse_metadata(text: bytes) -> dict[str, str]:
    """The metadata alone, where it stands in front; empty if there is none. Nothing in it is worth an error."""
    if not text.startswith(b'{"__metadata__"'):
        return {}
    first = text.find(FIRST_TENSOR)
    end = text.rfind(b"}", 0, first) if first >= 0 else -1
    if end < 0:
        return {}
    try:
        return clean_metadata(from_json(text[: end + 1] + b"}")["__metadata__"])
    except ValueError:
        return {}


def read(path: Path) -> Header:
    return parse(read_raw(path))


def clean_metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, Mapping):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _size(dtype: str, shape: tuple[Any, ...]) -> int:
    """Of a tensor in bytes. Raises KeyError, TypeError and ValueError for what is none."""
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"its shape is {list(shape)}")
    elements: int = prod(shape)
    return (elements * DTYPE_BITS[dtype] + 7) // 8


def _check_spans(spans: list[tuple[int, int]], data_bytes: int) -> None:
    """Tensors lie one after another, without holes, to the end of the file."""
    spans.sort()
    reached = 0
    for begin, end in spans:
        if begin != reached:
            raise BadModel("Its header is damaged: its tensors overlap, or leave holes. Get the file again.")
        reached = end
    if reached > data_bytes:
        raise BadModel(
            f"It is cut off: {data_bytes:,} of {reached:,} bytes of weights are there. "
            "The copy or download is not finished, or failed."
        )
    if reached < data_bytes:
        raise BadModel(f"It is damaged: {data_bytes - reached:,} bytes follow its last tensor. Get the file again.")
