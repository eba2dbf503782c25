"""The picture to start from, laid out for a pass: at its size, with its mask, and where the result will be put back."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageChops, ImageFilter, ImageOps

from pipelines.images.fill import filled
from pipelines.images.resize import LATENT_UPSCALE, RESIZES, Box, extended, just_resize, opaque, resize_and_fill, whole
from pipelines.request import Outpaint, Start
from pipelines.stages import on_grid

Floats = NDArray[np.float32]

HALF = 128
"""Masks are black or white: from here on they are white."""


@dataclass(frozen=True)
class Canvas:
    ground: PIL.Image.Image
    """RGB: what the result is put onto, with all that it had."""
    box: Box
    """The part of the ground that is painted; all of it but for 'only masked'."""
    inner: Box
    """Where that part lies in the picture of the pass; beside it there may be filler."""
    original: PIL.Image.Image
    """RGB, of the pass's size: what was there."""
    picture: PIL.Image.Image
    """The same, masked content made ready: what the pass starts from."""
    mask: PIL.Image.Image | None = None
    """L, of the pass's size: white is painted. None: everything."""
    cover: PIL.Image.Image | None = None
    """L, of the ground's size: how much of the result shows."""
    source: PIL.Image.Image | None = None
    """RGB, of its own size, where its latents are to be resized in place of its pixels."""
    part: bool = False
    """Only the box is painted: it stays in its place whatever the pass's size."""

    def at(self, width: int, height: int) -> "Canvas":
        """For a pass of another size. The part stays in its place, or all of the ground grows."""
        if (width, height) == self.original.size:
            return self
        scale = (width / self.original.width, height / self.original.height)
        grown: dict[str, Any] = {"source": None}
        grown |= {name: _sized(getattr(self, name), width, height) for name in ("original", "picture", "mask")}
        if self.part:
            return replace(self, **grown, inner=self.inner.scaled(*scale))
        grown |= {name: _sized(getattr(self, name), width, height) for name in ("ground", "cover")}
        full = Box(0, 0, width, height)
        return replace(self, **grown, box=full, inner=full)


def _sized(picture: PIL.Image.Image | None, width: int, height: int) -> PIL.Image.Image | None:
    return None if picture is None else just_resize(picture, width, height).picture


def laid_out(start: Start, picture: PIL.Image.Image, mask: PIL.Image.Image | None, width: int, height: int) -> Canvas:
    """For a pass of this size; picture and mask as they were given, of any size and mode."""
    picture, hard = opaque(picture), _mask(start, picture, mask)
    if start.outpaint:
        picture, hard = _grown(picture, hard, start.outpaint)
    if hard is None:
        ground = RESIZES[start.resize_mode](picture, width, height).picture
        return Canvas(ground, whole(ground), whole(ground), ground, ground, source=_source(start, picture))
    if start.only_masked and hard.getbbox():
        return _part(start, picture, hard, width, height)
    resize = RESIZES[start.resize_mode]
    ground = resize(picture, width, height).picture
    soft = resize(_blurred(hard, start.mask_blur), width, height).picture
    cover = soft if start.soft else _stretched(soft)
    content = _content(start, ground, soft)
    source = _source(start, picture)
    return Canvas(ground, whole(ground), whole(ground), ground, content, soft, cover, source)


def _part(start: Start, picture: PIL.Image.Image, hard: PIL.Image.Image, width: int, height: int) -> Canvas:
    soft = _blurred(hard, start.mask_blur)
    box = window(soft, start.padding, width, height)
    original, inner = resize_and_fill(picture.crop(box), width, height)
    mask = resize_and_fill(soft.crop(box), width, height).picture
    return Canvas(picture, box, inner, original, _content(start, original, mask), mask, soft, part=True)


def window(mask: PIL.Image.Image, padding: int, width: int, height: int) -> Box:
    """What is white and a margin around it, in the proportions of a pass as far as the picture reaches."""
    left, top, right, bottom = mask.getbbox() or whole(mask)
    box = Box(
        max(0, left - padding),
        max(0, top - padding),
        min(mask.width, right + padding),
        min(mask.height, bottom + padding),
    )
    wide, high = box.size
    if wide * height > high * width:
        top, bottom = _widened(box.top, box.bottom, round(wide * height / width), mask.height)
        return box._replace(top=top, bottom=bottom)
    left, right = _widened(box.left, box.right, round(high * width / height), mask.width)
    return box._replace(left=left, right=right)


def _widened(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """A span of this length around the given one, moved so that it lies within the limit."""
    length = min(max(length, stop - start), limit)
    start = min(max(0, start - (length - (stop - start)) // 2), limit - length)
    return start, start + length


def _mask(start: Start, picture: PIL.Image.Image, mask: PIL.Image.Image | None) -> PIL.Image.Image | None:
    """L, of the picture's size. Drawn on a transparent ground, what is opaque counts."""
    if mask is None:
        return None
    drawn = mask.getchannel("A") if mask.mode == "RGBA" else mask.convert("L")
    if drawn.size != picture.size:
        drawn = drawn.resize(picture.size, PIL.Image.Resampling.BILINEAR)
    if start.soft is None:
        drawn = drawn.point(lambda level: 255 * (level >= HALF))
    return ImageOps.invert(drawn) if start.mask_invert else drawn


def _grown(
    picture: PIL.Image.Image, mask: PIL.Image.Image | None, by: Outpaint
) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """A larger canvas: what is new is white in the mask, with a strip of the old picture along it."""
    margins = (by.left, by.up, by.right, by.down)
    large = extended(picture, *margins)
    left, top, right, bottom = (side + by.overlap if side else 0 for side in margins)
    kept = Box(left, top, max(left, large.width - right), max(top, large.height - bottom))
    new = PIL.Image.new("L", large.size, 255)
    new.paste(0, kept)
    beyond = PIL.Image.new("L", large.size, 255)
    beyond.paste(0, (by.left, by.up, by.left + picture.width, by.up + picture.height))
    if mask is not None:
        painted = PIL.Image.new("L", large.size)
        painted.paste(mask, (by.left, by.up))
        new = ImageChops.lighter(new, painted)
    return filled(large, beyond), new


def _blurred(mask: PIL.Image.Image, radius: int) -> PIL.Image.Image:
    return mask.filter(ImageFilter.GaussianBlur(radius)) if radius else mask


def _stretched(soft: PIL.Image.Image) -> PIL.Image.Image:
    """All that was white before the blur shows in full, and what is just beside it a little: as A1111 puts it over."""
    return soft.point(lambda level: min(255, level * 2))


def _content(start: Start, original: PIL.Image.Image, mask: PIL.Image.Image) -> PIL.Image.Image:
    """What lies under the mask before anything is painted. Noise comes later, in the latents."""
    return filled(original, mask) if start.masked_content == "fill" else original


def _source(start: Start, picture: PIL.Image.Image) -> PIL.Image.Image | None:
    if start.resize_mode != LATENT_UPSCALE:
        return None
    return just_resize(picture, on_grid(picture.width), on_grid(picture.height)).picture


def hard(mask: PIL.Image.Image) -> PIL.Image.Image:
    """Black or white."""
    return mask.point(lambda level: 255 * (level >= HALF))


def latent_mask(mask: PIL.Image.Image, width: int, height: int, soft: bool) -> Floats:
    """[height, width], 1 is painted: where any pixel of a latent is, or if soft, by how much on average."""
    if soft:
        return np.array(mask.resize((width, height), PIL.Image.Resampling.BOX), np.float32) / np.float32(255)
    rows, columns = mask.height // height, mask.width // width
    levels = np.asarray(mask)[: height * rows, : width * columns].reshape(height, rows, width, columns)
    painted: Floats = (levels.max((1, 3)) >= HALF).astype(np.float32)
    return painted
