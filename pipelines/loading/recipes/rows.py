"""Runs diffusers' converters without touching a weight: on row numbers, whose order is then read off as views.

The converters of transformers rename tensors, and cut and reorder their rows. Run on the weights themselves they copy
every piece (12 to 40 GB), know no packed weights, and one of them knows one width only.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import BadModel
from pipelines.loading.parts import Tensors

Converter = Callable[..., dict[str, Any]]
Run = tuple[int, int, int]
"""Index of the source, first row, row behind the last: a piece that lies in one."""

ROW_BITS = 40
"""A number in a traced tensor: the index of its source above this bit, the row below."""
COMPANIONS = ("scale", "absmax")
"""What lies beside a packed `X.weight`, see `quantised.normalised`, and goes where its rows go."""


def by_rows(
    tensors: Tensors, converter: Converter, stretch: Fraction = Fraction(1), unit: int = 1
) -> dict[str, Tensor]:
    """`converter(tensors)`, as views. For a converter that only knows one width, `stretch` is that by the true one:
    tensors whose rows are a multiple of `unit` look so much longer to it. Raises BadModel if something is missing.
    """
    sources = [name for name in tensors if not _is_companion(name, tensors)]
    lengths = [_rows(tensors[name]) for name in sources]
    longer = [stretch if length % unit == 0 else Fraction(1) for length in lengths]
    traced = {
        name: torch.arange(int(lengths[i] * longer[i]))[:, None] + (i << ROW_BITS) for i, name in enumerate(sources)
    }
    try:
        converted: Mapping[str, Tensor] = converter(traced)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise BadModel(f"The file is incomplete or of an unknown layout: {error} was looked for in vain.") from error
    found: dict[str, Tensor] = {}
    for name, rows in converted.items():
        runs = _runs(rows)
        index = runs[0][0]
        runs = [(i, int(first / longer[index]), int(stop / longer[index])) for i, first, stop in runs]
        found[name] = _taken(tensors[sources[index]], runs)
        for last in COMPANIONS:
            companion = _sibling(sources[index], last)
            if sources[index].endswith(".weight") and companion in tensors:
                found[_sibling(name, last)] = _taken(tensors[companion], runs)
    return found


def _is_companion(name: str, tensors: Tensors) -> bool:
    return name.rpartition(".")[2] in COMPANIONS and _sibling(name, "weight") in tensors


def _sibling(name: str, last: str) -> str:
    return f"{name.rpartition('.')[0]}.{last}"


def _rows(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


def _runs(rows: Tensor) -> list[Run]:
    numbers = rows.flatten()
    cuts = [0, *((numbers.diff() != 1).nonzero()[:, 0] + 1).tolist(), len(numbers)]
    mask = (1 << ROW_BITS) - 1
    runs = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        first, last = int(numbers[start]), int(numbers[stop - 1])
        runs.append((first >> ROW_BITS, first & mask, (last & mask) + 1))
    return runs


def _taken(tensor: Tensor, runs: list[Run]) -> Tensor:
    """The pieces of a tensor: a view if there is one. A single number, such as a scale, goes with each piece whole."""
    if tensor.ndim == 0 or (len(runs) == 1 and runs[0][1:] == (0, len(tensor))):
        return tensor
    pieces = [tensor[first:stop] for _, first, stop in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
