"""SD upscale: the picture is made larger, then painted over tile by tile, each as large as the request says."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipelines.images.resize import opaque
from pipelines.images.tiles import Piece, pieces
from pipelines.images.upscale import upscaled
from pipelines.request import GenerationRequest, Start
from pipelines.scene import Kit
from pipelines.stages import GRID, on_grid


class Cut(NamedTuple):
    large: PIL.Image.Image
    pieces: Sequence[Piece]


def cut(kit: Kit, request: GenerationRequest, start: Start) -> Cut:
    """Tiles begin where latents do."""
    assert start.tiled is not None
    picture = opaque(kit.image(start.image))
    size = (on_grid(side * start.tiled.scale) for side in picture.size)
    large = upscaled(kit, picture, start.tiled.upscaler, *size)
    tile = (request.height, request.width)
    overlap = min(start.tiled.overlap, min(tile) // 2)
    return Cut(large, list(pieces(large.height, large.width, tile, overlap // GRID * GRID, GRID)))


def tiles(kit: Kit, request: GenerationRequest) -> int:
    """How many times the steps are made."""
    start = request.start
    if start is None or start.tiled is None:
        return 1
    width, height = (on_grid(side * start.tiled.scale) for side in kit.image(start.image).size)
    overlap = min(start.tiled.overlap, min(request.width, request.height) // 2) // GRID * GRID
    return sum(1 for _ in pieces(height, width, (request.height, request.width), overlap, GRID))


class Merged:
    """One picture of all tiles, each fading into its neighbours."""

    def __init__(self, large: PIL.Image.Image) -> None:
        self._sum: NDArray[np.float32] = np.zeros((large.height, large.width, 3), np.float32)
        self._weight: NDArray[np.float32] = np.zeros((large.height, large.width, 1), np.float32)

    def add(self, tile: PIL.Image.Image, piece: Piece) -> None:
        place = slice(*piece.rows), slice(*piece.columns)
        self._sum[place] += np.asarray(tile, np.float32) * piece.weight[..., None]
        self._weight[place] += piece.weight[..., None]

    def picture(self) -> PIL.Image.Image:
        return PIL.Image.fromarray((self._sum / self._weight).clip(0, 255).round().astype(np.uint8))
