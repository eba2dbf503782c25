"""FreeU, and the question which networks such things are for."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pipelines.samplers import Denoise
from pipelines.scene import Scene


def unet_for(scene: Scene, what: str) -> Any | None:
    """The pass's U-Net; None, and a note, where the model has none."""
    part = scene.model.parts.get("unet")
    if part is None:
        scene.kit.note(f"{what} works inside of a U-Net, which this model does not have: it is left out.")
        return None
    return part.module


@contextmanager
def freed(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    """FreeU (Si et al. 2023): more of what the decoder's first two levels have made, less of what skips to them."""
    factors = scene.request.guidance.freeu
    unet = unet_for(scene, "FreeU") if factors else None
    if factors is None or unet is None:
        yield denoise
        return
    b1, b2, s1, s2 = factors
    unet.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
    try:
        yield denoise
    finally:
        unet.disable_freeu()
