"""Preprocessor by preprocessor, the function that does it."""

import cv2
import numpy as np
import PIL.Image

from pipelines.control.annotators import lines, tones
from pipelines.control.annotators.types import Annotate, Array, Settings
from pipelines.control.preprocessors import Module
from pipelines.images.resize import opaque

ANNOTATORS: dict[str, Annotate] = {
    "none": tones.as_it_is,
    "canny": lines.canny,
    "lineart_standard": lines.lineart_standard,
    "lines": lines.lines,
    "scribble_xdog": lines.scribble_xdog,
    "tile_resample": tones.tile_resample,
    "tile_colorfix": tones.as_it_is,
    "tile_colorfix+sharp": tones.as_it_is,
    "blur_gaussian": tones.blur_gaussian,
    "shuffle": tones.shuffle,
    "color": tones.color,
    "invert": tones.invert,
    "threshold": tones.threshold,
    "inpaint": tones.as_it_is,
    "inpaint_only": tones.as_it_is,
    "recolor_luminance": tones.luminance,
    "recolor_intensity": tones.intensity,
    "reference_only": tones.as_it_is,
    "reference_adain": tones.as_it_is,
    "reference_adain+attn": tones.as_it_is,
    "ip-adapter-auto": tones.as_it_is,
}
"""Of every row of `preprocessors.MODULES`."""

SMALLEST = 64
"""Pixels along the short side of what a preprocessor works on."""


def preprocess(module: Module, picture: PIL.Image.Image, resolution: int, settings: Settings) -> PIL.Image.Image:
    """What `module` sees in the picture, RGB; its short side is of `resolution` pixels if the module is sized."""
    array: Array = np.asarray(opaque(picture))
    if module.sized:
        array = at_resolution(array, max(SMALLEST, resolution))
    return PIL.Image.fromarray(ANNOTATORS[module.name](array, settings))


def at_resolution(picture: Array, resolution: int) -> Array:
    height, width = picture.shape[:2]
    scale = resolution / min(height, width)
    if scale == 1:
        return picture
    way = cv2.INTER_LANCZOS4 if scale > 1 else cv2.INTER_AREA
    resized: Array = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=way)
    return resized
