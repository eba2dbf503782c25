"""Pictures made larger: by a filter, or by a network that adds what a larger picture would have."""

from collections.abc import Mapping

import PIL.Image
from PIL.Image import Resampling

from pipelines.images.resize import crop_and_resize, to_picture, to_pixels
from pipelines.scene import Kit
from pipelines.types import Kind

FILTERS: Mapping[str, Resampling] = {
    "None": Resampling.LANCZOS,
    "Lanczos": Resampling.LANCZOS,
    "Nearest": Resampling.NEAREST,
}
"""A1111's upscalers without a network."""
ROUNDS = 3
"""A network is asked again until the picture is large enough, at most so often."""


def upscaled(kit: Kit, picture: PIL.Image.Image, upscaler: str, width: int, height: int) -> PIL.Image.Image:
    """RGB at this size, with its proportions: what sticks out on both sides is cut off. Raises ModelNotFound."""
    if upscaler in FILTERS:
        return crop_and_resize(picture, width, height, FILTERS[upscaler]).picture
    info = kit.file(Kind.UPSCALER, upscaler)
    pixels = to_pixels(picture)
    for _ in range(ROUNDS):
        before = pixels.shape
        pixels = kit.pixels.enlarged(info, pixels, kit.note, kit.on_tile)
        if pixels.shape == before or (pixels.shape[-1] >= width and pixels.shape[-2] >= height):
            break
    return crop_and_resize(to_picture(pixels[0]), width, height).picture
