"""What is done to colours and detail alone, without weights."""

import cv2
import numpy as np

from pipelines.control.annotators.types import Array, Settings

GRID = 64
"""Pixels along a side of the squares of the colour grid."""
FLOW = 256
"""Pixels over which the shuffle's shifts change direction."""


def as_it_is(picture: Array, settings: Settings) -> Array:
    return picture


def tile_resample(picture: Array, settings: Settings) -> Array:
    height, width = (max(1, round(side / settings.a)) for side in picture.shape[:2])
    smaller: Array = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return smaller


def blur_gaussian(picture: Array, settings: Settings) -> Array:
    blurred: Array = cv2.GaussianBlur(picture, (0, 0), settings.a)
    return blurred


def invert(picture: Array, settings: Settings) -> Array:
    inverted: Array = 255 - picture
    return inverted


def threshold(picture: Array, settings: Settings) -> Array:
    """White where the smallest of red, green and blue is above it."""
    bright = picture.min(axis=2) > settings.a
    return np.repeat(np.where(bright, 255, 0).astype(np.uint8)[:, :, None], 3, axis=2)


def shuffle(picture: Array, settings: Settings) -> Array:
    """Moved to and fro by a smooth flow, the same each time: colours stay, contents go (Zhang 2023, ControlNet 1.1)."""
    height, width = picture.shape[:2]
    random = np.random.default_rng(0)
    shape = (height // FLOW + 3, width // FLOW + 3)
    coarse = (random.random(shape, dtype=np.float32) for _ in range(2))
    x, y = (_stretched(cv2.resize(flow, (width, height), interpolation=cv2.INTER_CUBIC)) for flow in coarse)
    moved: Array = cv2.remap(picture, x * (width - 1), y * (height - 1), cv2.INTER_LINEAR)
    return moved


def color(picture: Array, settings: Settings) -> Array:
    """Squares of one colour each."""
    height, width = picture.shape[:2]
    small = cv2.resize(picture, (max(1, width // GRID), max(1, height // GRID)), interpolation=cv2.INTER_CUBIC)
    squares: Array = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    return squares


def luminance(picture: Array, settings: Settings) -> Array:
    return _channel(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[:, :, 0], settings.a)


def intensity(picture: Array, settings: Settings) -> Array:
    return _channel(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)[:, :, 2], settings.a)


def _channel(values: Array, gamma: float) -> Array:
    grey = ((values.astype(np.float32) / 255) ** gamma * 255).round().clip(0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _stretched(values: Array) -> Array:
    low, high = values.min(), values.max()
    stretched: Array = (values - low) / max(float(high - low), 1e-6)
    return stretched
