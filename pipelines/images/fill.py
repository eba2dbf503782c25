"""Colours for what is not known of a picture, from what lies around it."""

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def filled(picture: PIL.Image.Image, mask: PIL.Image.Image) -> PIL.Image.Image:
    """RGB; where the mask (L) is white, the picture is made up from its surroundings, smoothly."""
    known: Floats = 1 - np.asarray(mask, dtype=np.float32) / np.float32(255)
    if known.min() == 1:
        return picture
    spread = spread_out(np.asarray(picture, dtype=np.float32), known)
    made_up = PIL.Image.fromarray(spread.clip(0, 255).round().astype(np.uint8))
    return PIL.Image.composite(made_up, picture, mask)


def spread_out(colours: Floats, known: Floats) -> Floats:
    """[h, w, 3] and [h, w] from 0 to 1: from fine to coarse and back, and the coarse fills the holes of the fine.

    The pull-push of Gortler et al. 1996, 'The Lumigraph', section 3.5.
    """
    height, width = known.shape
    if height == width == 1:
        return colours if known[0, 0] > 0 else np.full_like(colours, 127.5)
    size = (-(-width // 2), -(-height // 2))
    share = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
    mean = (
        cv2.resize(colours * known[..., None], size, interpolation=cv2.INTER_AREA) / np.maximum(share, 1e-6)[..., None]
    )
    coarse = spread_out(mean.astype(np.float32), np.minimum(share * 4, 1).astype(np.float32))
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    found: Floats = colours * known[..., None] + smooth * (1 - known)[..., None]
    return found
