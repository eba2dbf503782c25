"""Pictures at another size, in A1111's ways, and between Pillow and torch."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional

LANCZOS = Resampling.LANCZOS


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top

    def scaled(self, x: float, y: float) -> "Box":
        return Box(round(self.left * x), round(self.top * y), round(self.right * x), round(self.bottom * y))


class Resized(NamedTuple):
    picture: PIL.Image.Image
    inner: Box
    """Where the whole of the old picture lies in it. Outside is filler."""


def whole(picture: PIL.Image.Image) -> Box:
    return Box(0, 0, *picture.size)


def just_resize(picture: PIL.Image.Image, width: int, height: int, by: Resampling = LANCZOS) -> Resized:
    """To this size, whatever becomes of the proportions. A picture of that size stays as it is, bit for bit."""
    found = picture if picture.size == (width, height) else picture.resize((width, height), by)
    return Resized(found, whole(found))


def crop_and_resize(picture: PIL.Image.Image, width: int, height: int, by: Resampling = LANCZOS) -> Resized:
    """As large as it must be to cover all; what sticks out is cut off on both sides."""
    scale = max(width / picture.width, height / picture.height)
    covering = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    found, _ = just_resize(picture, *covering, by)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    cut = found if covering == (width, height) else found.crop((left, top, left + width, top + height))
    return Resized(cut, whole(cut))


def resize_and_fill(picture: PIL.Image.Image, width: int, height: int) -> Resized:
    """As large as fits in; beside it, its outermost pixels go on."""
    scale = min(width / picture.width, height / picture.height)
    fitting = (max(1, min(width, round(picture.width * scale))), max(1, min(height, round(picture.height * scale))))
    found, _ = just_resize(picture, *fitting)
    left, top = (width - fitting[0]) // 2, (height - fitting[1]) // 2
    margins = (left, top, width - fitting[0] - left, height - fitting[1] - top)
    return Resized(extended(found, *margins), Box(left, top, left + fitting[0], top + fitting[1]))


def extended(picture: PIL.Image.Image, left: int, top: int, right: int, bottom: int) -> PIL.Image.Image:
    """Larger by so many pixels on each side: its outermost pixels go on."""
    if not any((left, top, right, bottom)):
        return picture
    colours = () if picture.mode == "L" else ((0, 0),)
    return PIL.Image.fromarray(np.pad(np.asarray(picture), ((top, bottom), (left, right), *colours), mode="edge"))


RESIZES: Mapping[str, Callable[[PIL.Image.Image, int, int], Resized]] = {
    "Just resize": just_resize,
    "Crop and resize": crop_and_resize,
    "Resize and fill": resize_and_fill,
    "Just resize (latent upscale)": just_resize,
}
"""A1111's resize modes. Of the last one, what is resized is the latent; the picture is, to be put beside it."""

LATENT_UPSCALE = "Just resize (latent upscale)"


class Interpolation(NamedTuple):
    mode: str
    antialias: bool = False


LATENT_MODES: Mapping[str, Interpolation] = {
    "Latent": Interpolation("bilinear"),
    "Latent (antialiased)": Interpolation("bilinear", antialias=True),
    "Latent (bicubic)": Interpolation("bicubic"),
    "Latent (bicubic antialiased)": Interpolation("bicubic", antialias=True),
    "Latent (nearest)": Interpolation("nearest"),
    "Latent (nearest-exact)": Interpolation("nearest-exact"),
}


def resize_latents(latents: Tensor, size: tuple[int, int], mode: str = "Latent", cover: bool = True) -> Tensor:
    """To these rows and columns. `cover`: in their proportions, and what sticks out on both sides is cut off."""
    height, width = size
    h, w = latents.shape[-2:]
    if (h, w) == size:
        return latents
    scale = max(height / h, width / w)
    covering = [max(height, round(h * scale)), max(width, round(w * scale))] if cover else [height, width]
    how = LATENT_MODES[mode]
    found = functional.interpolate(latents, covering, mode=how.mode, antialias=how.antialias)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return found[..., top : top + height, left : left + width]


def to_pixels(picture: PIL.Image.Image) -> Tensor:
    """[1, channels, height, width] from 0 to 1, on the CPU."""
    levels = torch.from_numpy(np.array(picture, dtype=np.float32)) / 255
    return (levels[None] if levels.ndim == 2 else levels.permute(2, 0, 1))[None]


def to_picture(pixels: Tensor) -> PIL.Image.Image:
    """[3, height, width] from 0 to 1; what is beyond is cut off."""
    levels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return PIL.Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def opaque(picture: PIL.Image.Image) -> PIL.Image.Image:
    """RGB; what shows through is white, as in A1111."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    ground = PIL.Image.new("RGBA", picture.size, "white")
    return PIL.Image.alpha_composite(ground, picture).convert("RGB")
