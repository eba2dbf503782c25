"""Arithmetic on small pictures: draw an SVG, make line art, find the colour, recolour, lay on a background."""

import io
import re
from typing import Literal

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image
from pydantic import BaseModel, ConfigDict

Pixels = npt.NDArray[np.uint8]
Style = Literal["3d", "flat", "line", "glyph", "flag"]

SIDE = 128
"""Side of a training picture in pixels."""

HUES = {"red": 0, "orange": 28, "yellow": 50, "green": 120, "cyan": 182, "blue": 216, "purple": 275, "pink": 328}
"""Hue of a colour word in degrees."""

PAINTS = {
    "red": "#e53935",
    "orange": "#fb8c00",
    "yellow": "#fdd835",
    "green": "#43a047",
    "cyan": "#26c6da",
    "blue": "#1e66e5",
    "purple": "#8e24aa",
    "pink": "#ec5fa3",
    "black": "#161616",
    "gray": "#8a8a8a",
    "brown": "#7b4b2a",
}
"""Colours of backgrounds and of silhouettes."""

WHITE = "#ffffff"


class Picture(BaseModel):
    """What is known of one training picture; its captions are made of this."""

    model_config = ConfigDict(frozen=True)

    name: str
    tags: tuple[str, ...]
    style: Style
    color: str | None = None
    recolored: bool = False
    background: str | None = None
    weight: float
    """How often it is drawn when all pictures are used, relative to the others."""


def draw_svg(svg: str, width: int = SIDE, height: int = SIDE) -> Pixels:
    """RGBA pixels, shape (height, width, 4)."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=width, height=height)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def draw_icon(body: str) -> Pixels:
    """An Iconify icon, that is the inside of a 32 x 32 SVG."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="{SIDE}" height="{SIDE}">'
    return draw_svg(f"{head}{body}</svg>")


def line_art(body: str) -> str:
    """The same icon as a page of a colouring book: every filled shape becomes white with a dark outline."""
    without_strokes = re.sub(r' stroke(-[a-z]+)?="[^"]*"', "", body)
    outline = 'fill="#fff" stroke="#222" stroke-width=".7" stroke-linejoin="round"'
    return re.sub(r'fill="(?!none)[^"]*"', outline, without_strokes)


def lay_on(pixels: Pixels, paint: str) -> Pixels:
    """RGBA pixels over an opaque `#rrggbb`: RGB pixels."""
    alpha = pixels[..., 3:].astype(np.float32) / 255
    ground = np.array([int(paint[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
    return (pixels[..., :3] * alpha + ground * (1 - alpha)).round().astype(np.uint8)


def dominant_hue(pixels: Pixels) -> tuple[int, str | None]:
    """The most common hue of the opaque part in degrees, and its colour word if it really dominates."""
    hsv = np.asarray(Image.fromarray(pixels[..., :3]).convert("HSV")).astype(np.float32)
    opaque = pixels[..., 3] > 128
    hue, saturation, value = hsv[..., 0][opaque] * 360 / 255, hsv[..., 1][opaque] / 255, hsv[..., 2][opaque] / 255
    if len(hue) < 50:
        return 0, None
    vivid = (saturation > 0.35) & (value > 0.3)
    share = float(vivid.mean())
    if share < 0.35:
        return 0, None
    histogram = np.histogram(hue[vivid], bins=36, range=(0, 360), weights=(saturation * value)[vivid])[0]
    smooth = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
    peak = int(smooth.argmax()) * 10 + 5
    word = min(HUES, key=lambda name: min(abs(HUES[name] - peak), 360 - abs(HUES[name] - peak)))
    dominates = share * float(smooth.max() / histogram.sum()) > 0.4
    return peak, word if dominates else None


def recolor(pixels: Pixels, hue: int, target: str) -> Pixels:
    """RGBA pixels whose hue in degrees is turned to that of the word `target`, or darkened for `black`."""
    hsv = np.asarray(Image.fromarray(pixels[..., :3]).convert("HSV")).copy()
    if target == "black":
        hsv[..., 1] //= 6
        hsv[..., 2] = (hsv[..., 2] * 0.35).astype(np.uint8)
    else:
        turn = round((HUES[target] - hue) * 255 / 360)
        hsv[..., 0] = ((hsv[..., 0].astype(int) + turn) % 256).astype(np.uint8)
    rgb = np.asarray(Image.frombytes("HSV", (hsv.shape[1], hsv.shape[0]), hsv.tobytes()).convert("RGB"))
    return np.dstack([rgb, pixels[..., 3]])
