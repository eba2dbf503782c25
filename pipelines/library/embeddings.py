"""Textual inversions by their headers: how many vectors, and how wide. Gal et al. 2022. No torch."""

from collections.abc import Collection, Mapping
from pathlib import Path

from pipelines.library.headers import read_header

TWINS = ("clip_l", "clip_g")
"""Of SDXL: the same vectors for both text encoders."""
FIRST = ("string_to_param.", "emb_params")
"""A1111's layouts; diffusers and kohya write a single tensor under the word's name."""


def tensors_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[int, str]:
    """Width of the vectors -> name of the tensor [vectors, width] or [width] that holds them."""
    names = [name for name in TWINS if name in shapes] or [name for name in shapes if name.startswith(FIRST)][:1]
    if not names and len(shapes) == 1:
        names = list(shapes)
    return {shapes[name][-1]: name for name in names if len(shapes[name]) in (1, 2)}


def vectors_in(path: Path) -> dict[int, int]:
    """Width -> number of vectors. Raises OSError and BadModel."""
    shapes = {name: tensor.shape for name, tensor in read_header(path).tensors.items()}
    return {width: count(shapes[name]) for width, name in tensors_of(shapes).items()}


def count(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 2 else 1


def fitting(vectors: Mapping[int, int], widths: Collection[int]) -> int:
    """How many tokens it takes for text encoders of these widths; 0: it does not fit them."""
    counts = {vectors.get(width, 0) for width in widths}
    return counts.pop() if len(counts) == 1 else 0


def word_of(name: str) -> str:
    """What stands in the prompt for it: the name of its file, without folder and suffix."""
    return name.rpartition("/")[2].rpartition(".")[0] or name
