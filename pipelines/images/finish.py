"""The result of a pass goes where it belongs: into its part of the picture, under the mask, in the old colours."""

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipelines.images.canvas import Canvas
from pipelines.images.resize import just_resize

Floats = NDArray[np.float32]


def finished(canvas: Canvas, made: PIL.Image.Image) -> PIL.Image.Image:
    """What no mask covers is the original's, bit for bit."""
    placed = made
    if canvas.part:
        placed = canvas.ground.copy()
        placed.paste(just_resize(made.crop(canvas.inner), *canvas.box.size).picture, canvas.box)
    return PIL.Image.composite(placed, canvas.ground, canvas.cover) if canvas.cover else placed


def recoloured(picture: PIL.Image.Image, like: PIL.Image.Image) -> PIL.Image.Image:
    """With the distribution of colours of another one, in CIE L*a*b*. Its own light and dark stay."""
    lab, wanted = _lab(picture), _lab(like)
    for channel in (1, 2):
        lab[..., channel] = _matched(lab[..., channel], wanted[..., channel])
    rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return PIL.Image.fromarray((rgb.clip(0, 1) * 255).round().astype(np.uint8))


def _lab(picture: PIL.Image.Image) -> Floats:
    found: Floats = cv2.cvtColor(np.asarray(picture, dtype=np.float32) / 255, cv2.COLOR_RGB2LAB)
    return found


def _matched(values: Floats, wanted: Floats) -> Floats:
    """The value of each rank becomes the wanted one of that rank: histogram matching, Gonzalez and Woods, 3.3.2."""
    _, where, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    aims, aim_counts = np.unique(wanted.ravel(), return_counts=True)
    ranks, aim_ranks = np.cumsum(counts) / values.size, np.cumsum(aim_counts) / wanted.size
    mapped: Floats = np.interp(ranks, aim_ranks, aims).astype(np.float32)[where].reshape(values.shape)
    return mapped
