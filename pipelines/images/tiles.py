"""Large pictures in pieces: where they are cut, and how the pieces fade into one another."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

UNSEEN = 0.25
"""Share of the overlap, at the edge of a piece, of which nothing is taken: there a network has seen too little."""


class Span(NamedTuple):
    """Of a piece along a side."""

    start: int
    stop: int


class Piece(NamedTuple):
    rows: Span
    columns: Span
    weight: Floats
    """[rows, columns]: how much of it counts, before all that lie over one another are brought to 1."""


def spans(length: int, tile: int, overlap: int, unit: int = 1) -> Sequence[Span]:
    """Evenly, from multiples of `unit` on; each shares at least the overlap, less a unit, with the next. The last one
    may be longer by less than a unit."""
    if length <= tile:
        return [Span(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [(length - tile) * index // (count - 1) // unit * unit for index in range(count)]
    return [*(Span(start, start + tile) for start in starts[:-1]), Span(starts[-1], length)]


def pieces(height: int, width: int, tile: tuple[int, int], overlap: int, unit: int = 1) -> Iterator[Piece]:
    """Of a picture, row by row; `tile` is height and width of a piece."""
    columns = spans(width, tile[1], overlap, unit)
    for row in spans(height, tile[0], overlap, unit):
        for column in columns:
            weight = fade(row, height, overlap)[:, None] * fade(column, width, overlap)
            yield Piece(row, column, weight)


def fade(span: Span, length: int, overlap: int) -> Floats:
    """From nothing to 1 within the overlap, but for the picture's own edges."""
    places = np.arange(span.stop - span.start, dtype=np.float32) + 0.5
    ends = np.ones_like(places)
    unseen = overlap * UNSEEN
    for inside, distance in ((span.start > 0, places), (span.stop < length, places[::-1])):
        if inside:
            ends = np.minimum(ends, (distance - unseen) / max(1, overlap - 2 * unseen))
    return ends.clip(1e-6, 1)
