"""What some preprocessors ask of the picture itself: to keep what is not masked, or the colours of what is followed."""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.control.units import Unit
from pipelines.images.canvas import latent_mask
from pipelines.images.resize import to_picture
from pipelines.samplers import Denoise
from pipelines.scene import Scene

CELL = 8
"""Pixels of a picture to one of its latent."""


def restrained(scene: Scene, units: list[Unit], denoise: Denoise) -> Denoise:
    """The units' pictures are encoded now, before the network that draws takes its place on the device."""
    for unit in units:
        if unit.module.name == "inpaint_only" and unit.hint.mask is not None:
            denoise = _kept(scene, unit, denoise)
        elif unit.module.name.startswith("tile_colorfix"):
            denoise = _coloured(scene, unit, denoise)
    return denoise


def _kept(scene: Scene, unit: Unit, denoise: Denoise) -> Denoise:
    """What is not masked stays as it is."""
    assert unit.hint.mask is not None
    if scene.given is not None and scene.given.mask is not None:
        return denoise  # inpainting sees to that already
    original = scene.model.to_latent(unit.hint.picture)
    height, width = original.shape[-2:]
    mask = to_picture(unit.hint.mask[0].expand(3, -1, -1)).convert("L")
    painted = torch.from_numpy(latent_mask(mask, width, height, soft=False)).to(original.device)

    def kept(x: Tensor, sigma: float) -> Tensor:
        return torch.lerp(original, denoise(x, sigma), painted)

    return kept


def _coloured(scene: Scene, unit: Unit, denoise: Denoise) -> Denoise:
    """What is coarser than `a` pixels is taken from the unit's picture; and of what is finer, more with sharpness."""
    latents = scene.model.to_latent(unit.hint.picture)
    radius = max(1, round(unit.hint.a / CELL))
    fine = 1 + unit.hint.b / 4
    coarse = blurred(latents, radius)

    def coloured(x: Tensor, sigma: float) -> Tensor:
        found = denoise(x, sigma)
        if not unit.wanted(scene.share(sigma)):
            return found
        return coarse + (found - blurred(found, radius)) * fine

    return coloured


def blurred(values: Tensor, radius: int) -> Tensor:
    padded = functional.pad(values, (radius,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * radius + 1, stride=1)
