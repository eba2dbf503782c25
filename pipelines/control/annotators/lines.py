"""Edges and lines, white on black, without weights."""

import cv2
import numpy as np

from pipelines.control.annotators.types import Array, Settings


def canny(picture: Array, settings: Settings) -> Array:
    """Canny 1986, by OpenCV."""
    return _grey(cv2.Canny(picture, round(settings.a), round(settings.b)))


def lineart_standard(picture: Array, settings: Settings) -> Array:
    """Dark lines on a bright ground: what is darker than its surroundings, at the strength of a usual line."""
    values = picture.astype(np.float32)
    lines = (cv2.GaussianBlur(values, (0, 0), 6.0) - values).min(axis=2).clip(0, 255)
    found = lines[lines > 8]
    usual = max(16.0, float(np.median(found))) if found.size else 16.0
    return _grey((lines / usual * 127).clip(0, 255).astype(np.uint8))


def scribble_xdog(picture: Array, settings: Settings) -> Array:
    """A difference of two Gaussians with a threshold: Winnemoeller et al. 2012."""
    values = picture.astype(np.float32)
    difference = cv2.GaussianBlur(values, (0, 0), 5.0) - cv2.GaussianBlur(values, (0, 0), 0.5)
    lines = difference.min(axis=2).clip(0, 255) * 2
    return _grey(np.where(lines > settings.a, 255, 0).astype(np.uint8))


def lines(picture: Array, settings: Settings) -> Array:
    """Straight ones: von Gioi et al. 2012 (LSD), by OpenCV."""
    height, width = picture.shape[:2]
    found = cv2.createLineSegmentDetector().detect(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[0]
    drawn = np.zeros((height, width), np.uint8)
    shortest = min(height, width) / 25
    for x0, y0, x1, y1 in found.reshape(-1, 4) if found is not None else ():
        if np.hypot(x1 - x0, y1 - y0) >= shortest:
            cv2.line(drawn, (round(float(x0)), round(float(y0))), (round(float(x1)), round(float(y1))), 255, 1)
    return _grey(drawn)


def _grey(values: Array) -> Array:
    return np.repeat(values[:, :, None], 3, axis=2)
