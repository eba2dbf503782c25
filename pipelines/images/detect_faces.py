"""Where the faces are: by YuNet if its file is there, else by OpenCV's cascades, which are always there.

docs/decisions/0010-faces.md says why.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipelines.errors import BadModel

Points = NDArray[np.float32]
"""[points, 2], x and y in pixels: the eye on the left of the picture and the one on the right, and where they are known
the nose and the corners of the mouth, left and right."""

YUNET = "face_detection_yunet*.onnx"
CERTAIN = 0.6
"""YuNet's score from which on it is a face."""
SMALLEST = 32
"""Pixels along a side: of smaller ones there is nothing to restore."""
FACES, EYES = "haarcascade_frontalface_alt2.xml", "haarcascade_eye_tree_eyeglasses.xml"
USUAL_EYES = ((0.3, 0.39), (0.7, 0.39))
"""Where they are in a face that the cascade found, as shares of its box."""


def detector_file(folders: Sequence[Path]) -> Path | None:
    """YuNet's file in the first of these folders that has one."""
    return next((file for folder in folders for file in sorted(folder.glob(YUNET))), None)


def faces_in(picture: PIL.Image.Image, file: Path | None) -> list[Points]:
    """`file`: YuNet's. Raises BadModel."""
    pixels = np.asarray(picture.convert("RGB"))
    return _by_yunet(pixels, file) if file else _by_cascades(pixels)


def _by_yunet(pixels: NDArray[np.uint8], file: Path) -> list[Points]:
    """Wu et al. 2023, 'YuNet: A Tiny Millisecond-level Face Detector'."""
    height, width = pixels.shape[:2]
    try:
        detector: Any = cv2.FaceDetectorYN.create(str(file), "", (width, height), CERTAIN)
        _, found = detector.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise BadModel(f"{file.name} is damaged or no YuNet. Download it again, or remove it.") from error
    rows = [] if found is None else found
    return [np.asarray(row[4:14], np.float32).reshape(5, 2) for row in rows if min(row[2:4]) >= SMALLEST]


def _by_cascades(pixels: NDArray[np.uint8]) -> list[Points]:
    """Viola and Jones 2001: upright faces that look into the camera."""
    grey = cv2.equalizeHist(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    smallest = max(SMALLEST, min(grey.shape) // 16)
    boxes = _cascade(FACES).detectMultiScale(grey, 1.1, 5, minSize=(smallest, smallest))
    return [_eyes(grey, *(int(side) for side in box)) for box in boxes]


def _eyes(grey: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> Points:
    """One on each half, or where they usually are."""
    upper = grey[y : y + height * 6 // 10, x : x + width]
    found = _cascade(EYES).detectMultiScale(upper, 1.05, 3, minSize=(width // 8, width // 8))
    places = [(left + wide / 2, top + high / 2) for left, top, wide, high in found]
    halves = [[p for p in places if p[0] < width / 2], [p for p in places if p[0] >= width / 2]]
    if all(len(half) == 1 for half in halves):
        return np.array([(x + px, y + py) for (px, py), *_ in halves], np.float32)
    return np.array([(x + px * width, y + py * height) for px, py in USUAL_EYES], np.float32)


def _cascade(name: str) -> Any:
    return cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / name))
