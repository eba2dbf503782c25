"""Soft inpainting: the mask says by how much a place may change, and the noise level from which step on it may.

The idea and the names of the settings are those of CodeHatchling's extension for A1111, 2023.
"""

from dataclasses import replace

import torch
from PIL.Image import new
from torch import Tensor
from torch.nn import functional

from pipelines.images.canvas import Canvas
from pipelines.images.resize import just_resize, to_picture
from pipelines.request import Soft

HIGHEST = 80.0
"""Noise levels beyond count as this one: a flow begins at infinity."""
BLUR = 1.5
"""Standard deviation, in latents, over which a difference is looked at."""


def opened(mask: Tensor, sigma: float, flow: bool, soft: Soft) -> Tensor:
    """The mask at a noise level: at high ones only what is white in full, at low ones all that is not black."""
    level = min(sigma / max(1 - sigma, 1e-6) if flow else sigma, HIGHEST)
    return mask.pow(level**soft.bias * soft.preservation)


def mixed(original: Tensor, seen: Tensor, mask: Tensor, contrast: float) -> Tensor:
    """Between the two by the mask, but not fainter than both: norms mix by a power mean of exponent `contrast`."""
    plain = torch.lerp(original, seen, mask)
    norm = plain.norm(dim=1, keepdim=True)
    wanted = (original.norm(dim=1, keepdim=True) ** contrast) * (1 - mask)
    wanted = (wanted + seen.norm(dim=1, keepdim=True) ** contrast * mask) ** (1 / contrast)
    between = (mask > 0) & (mask < 1) & (norm > 1e-6)
    return torch.where(between, plain * (wanted / norm.clamp(min=1e-6)), plain)


def with_soft_cover(canvas: Canvas, latents: Tensor, original: Tensor, mask: Tensor, soft: Soft) -> Canvas:
    """As much of the result shows as it differs from the original: latents [channels, height, width] of one image."""
    difference = _blurred((latents - original[0]).norm(dim=0)[None, None])
    weight = difference**soft.difference_contrast
    shown = weight / (weight + max(soft.difference_threshold, 1e-3) ** soft.difference_contrast)
    shown = shown * (1 - soft.influence * (1 - mask.to(shown)))
    width, height = canvas.original.size
    large = functional.interpolate(shown, (height, width), mode="bicubic").expand(-1, 3, -1, -1)
    part = to_picture(large[0]).getchannel(0).crop(canvas.inner)
    cover = new("L", canvas.ground.size)
    cover.paste(just_resize(part, *canvas.box.size).picture, canvas.box)
    return replace(canvas, cover=cover)


def _blurred(x: Tensor) -> Tensor:
    reach = int(3 * BLUR)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / BLUR) ** 2)
    line = line / line.sum()
    x = functional.pad(x, (reach,) * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(x, line[None, None, None]), line[None, None, :, None])
