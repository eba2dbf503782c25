"""Where something counts: areas and masks of a request as weights for each latent, and for each place of a layer."""

from collections.abc import Sequence

import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.control.hints import part_of
from pipelines.control.pictures import Size, as_mask
from pipelines.images.resize import to_pixels
from pipelines.request import Region
from pipelines.scene import Scene


def area_of(scene: Scene, region: Region) -> Tensor:
    """[1, 1, height, width] in latents, from 0 to 1: its mask, else its rectangle."""
    if region.mask:
        return mask_of(scene, region.mask)
    left, top, width, height = region.area
    size = _ground(scene)
    drawn = PIL.Image.new("L", size)
    right, bottom = min(1.0, left + width), min(1.0, top + height)
    drawn.paste(255, (round(left * size[0]), round(top * size[1]), round(right * size[0]), round(bottom * size[1])))
    return _on_latents(scene, drawn)


def mask_of(scene: Scene, name: str) -> Tensor:
    """The same of a picture that is white where something counts."""
    drawn = as_mask(scene.kit.image(name)).resize(_ground(scene), PIL.Image.Resampling.BOX)
    return _on_latents(scene, drawn)


def shares(scene: Scene, regions: Sequence[Region]) -> Tensor:
    """[1 + regions, height, width], which add up to 1 everywhere: of the prompt for all, which has what the regions
    leave, and of each region. Where regions overlap, they share by their weights."""
    drawn = torch.cat([area_of(scene, region)[0] * region.weight for region in regions])
    left = (1 - drawn.sum(0, keepdim=True)).clamp(min=0)
    full = torch.cat([left, drawn])
    return full / full.sum(0, keepdim=True)


def at_places(values: Tensor, places: int) -> Tensor:
    """[n, height, width] -> [n, places]: for a layer that sees the latents so many times smaller along both sides."""
    height, width = values.shape[-2:]
    while height * width > places and height * width > 1:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != places:
        raise ValueError(f"a layer with {places} places is none of latents of {tuple(values.shape[-2:])}")
    if (height, width) == values.shape[-2:]:
        return values.flatten(1)
    return functional.adaptive_avg_pool2d(values, (height, width)).flatten(1)


def _ground(scene: Scene) -> Size:
    """What areas are areas of: all of the picture, also where only a part of it is painted."""
    canvas = scene.canvas
    return canvas.ground.size if canvas else (scene.stage.width, scene.stage.height)


def _on_latents(scene: Scene, drawn: PIL.Image.Image) -> Tensor:
    canvas, (_, height, width) = scene.canvas, scene.model.latent_shape(scene.stage.width, scene.stage.height)
    seen = part_of(drawn, canvas) if canvas else drawn
    return to_pixels(seen.resize((width, height), PIL.Image.Resampling.BOX)).to(scene.device)
