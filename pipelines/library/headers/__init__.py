"""Model files by their headers alone: what is in them, without loading or running anything. No torch."""

from collections.abc import Callable
from pathlib import Path

from pipelines.library.headers import gguf, pickles, safetensors
from pipelines.library.headers.header import Header, TensorInfo
from pipelines.library.headers.sniff import SUFFIXES
from pipelines.types import Format

READERS: dict[Format, Callable[[Path], Header]] = {
    Format.SAFETENSORS: safetensors.read,
    Format.GGUF: gguf.read,
    Format.PICKLE: pickles.read,
}


def read_header(path: Path) -> Header:
    """Of one file with a suffix of SUFFIXES. Raises OSError, and BadModel with one sentence for the user."""
    return READERS[SUFFIXES[path.suffix.lower()]](path)


__all__ = ["SUFFIXES", "Header", "TensorInfo", "read_header"]
