"""Faces are cut out, set upright, restored by a network of their own (GFPGAN, CodeFormer, ...) and put back."""

from collections.abc import Mapping

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipelines.images.detect_faces import Points, detector_file, faces_in
from pipelines.images.networks import Call
from pipelines.images.resize import to_picture, to_pixels
from pipelines.request import Faces
from pipelines.scene import Kit
from pipelines.types import Kind

SIDE = 512
"""Of a face, in pixels, as these networks were trained."""
PLACES: Points = np.array([(193, 240), (319, 240), (257, 314), (201, 371), (313, 371)], np.float32)
"""Eyes, nose and mouth there: the mean of FFHQ's faces (Karras et al. 2019), as all of these networks expect them."""
MARGIN, BLUR = 24, 12
"""Pixels from the edge of a face within which it fades into the picture."""

Floats = NDArray[np.float32]
CALLS: Mapping[str, Call] = {
    "GFPGAN": lambda model, pixels, weight: model(pixels * 2 - 1, randomize_noise=False)[0] / 2 + 0.5,
    "CodeFormer": lambda model, pixels, weight: model(pixels * 2 - 1, weight=weight)[0] / 2 + 0.5,
}
"""By spandrel's names: (module, pixels from 0 to 1, CodeFormer's weight) -> pixels. Its own calls of these two leave
out that they compute from -1 to 1, and GFPGAN would draw new noise each time."""


def restored(kit: Kit, picture: PIL.Image.Image, wish: Faces) -> PIL.Image.Image:
    """RGB of the same size. Raises ModelNotFound and BadModel."""
    if not wish.visibility:
        return picture
    info = kit.file(Kind.FACE_RESTORER, wish.model)
    file = detector_file([info.path.parent, info.path.parent.parent])
    faces = faces_in(picture, file)
    if not file:
        kit.note(
            "Faces were looked for with OpenCV's cascades, which see those that look into the camera. To find all, "
            f"put face_detection_yunet_2023mar.onnx beside {info.name}."
        )
    result: Floats = np.array(picture.convert("RGB"), np.float32)
    for points in faces:
        there = transform(points)
        face = cv2.warpAffine(result, there, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        better = kit.pixels.restored(info, to_pixels(PIL.Image.fromarray(_levels(face))), CALLS, wish.weight, kit.note)
        result = put_back(result, np.asarray(to_picture(better[0]), np.float32), there, wish.visibility)
    return PIL.Image.fromarray(_levels(result))


def transform(points: Points) -> Floats:
    """[2, 3]: turned, moved and scaled, so that these points come to lie where the network expects them, by least
    squares over (a, b, x, y) in [[a, -b, x], [b, a, y]]."""
    rows = [row for x, y in points for row in ((x, -y, 1, 0), (y, x, 0, 1))]
    a, b, x, y = np.linalg.lstsq(np.array(rows), PLACES[: len(points)].ravel(), rcond=None)[0]
    return np.array([[a, -b, x], [b, a, y]], np.float32)


def put_back(picture: Floats, face: Floats, there: Floats, visibility: float) -> Floats:
    """Over its place, fading out towards its edges."""
    height, width = picture.shape[:2]
    back = cv2.invertAffineTransform(there)
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[MARGIN:-MARGIN, MARGIN:-MARGIN] = visibility
    mask = cv2.GaussianBlur(mask, (0, 0), BLUR)
    shown = cv2.warpAffine(mask, back, (width, height), flags=cv2.INTER_LINEAR)[..., None]
    placed = cv2.warpAffine(face, back, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    found: Floats = picture * (1 - shown) + placed * shown
    return found


def _levels(pixels: Floats) -> NDArray[np.uint8]:
    return pixels.clip(0, 255).round().astype(np.uint8)
