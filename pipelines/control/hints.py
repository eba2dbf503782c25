"""From a unit's picture to the hint that its network follows: chosen, preprocessed, at the size of the result."""

from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor

from pipelines.control.annotators import preprocess
from pipelines.control.annotators.types import Settings
from pipelines.control.pictures import Size, as_mask, fitted, resolution_for
from pipelines.control.preprocessors import Module, module_named, setting
from pipelines.errors import ModelNotFound, PipelineError
from pipelines.images.canvas import Canvas
from pipelines.images.resize import opaque, resize_and_fill, to_pixels, whole
from pipelines.request import Control
from pipelines.scene import Kit, Scene
from pipelines.types import Kind

MASKED = -1.0
"""Of pixels that are to be painted, for ControlNets that were trained to fill in: Zhang 2023, ControlNet 1.1."""


@dataclass(frozen=True)
class Hint:
    pixels: Tensor
    """[1, 3, height, width] from 0 to 1, on the CPU."""
    mask: Tensor | None
    """[1, 1, height, width]: 1 where something is to be painted; None: nowhere in particular."""
    picture: Tensor
    """As `pixels`, but of the picture as it was given."""
    a: float
    b: float
    """Settings of the preprocessor; 0 where it has none."""


def hint_for(scene: Scene, control: Control) -> Hint:
    """Made once for a job and size. Raises PipelineError."""
    size = (scene.stage.width, scene.stage.height)
    key = ("hint", control, size)
    if key not in scene.kit.made:
        scene.kit.made[key] = _made(scene, control, size)
    made: Hint = scene.kit.made[key]
    return made


def settings_for(kit: Kit, device: torch.device, module: Module, a: float | None, b: float | None) -> Settings:
    def file(variant: str) -> Path | None:
        try:
            return kit.file(Kind.PREPROCESSOR, variant).path
        except ModelNotFound:
            return None

    return Settings(setting(module.a, a), setting(module.b, b), device, file, kit.note)


def _made(scene: Scene, control: Control, size: Size) -> Hint:
    kit, mode = scene.kit, control.resize_mode
    module, stands_in = module_named(control.module)
    if stands_in:
        kit.note(f"The preprocessor {control.module} is not here: {module.name} is used instead.")
    picture, mask = pictures_of(scene, control)
    resolution = resolution_for(picture.size, size, mode) if control.pixel_perfect else control.resolution
    settings = settings_for(kit, scene.device, module, control.threshold_a, control.threshold_b)
    seen = preprocess(module, picture, resolution, settings)
    pixels, plain = (to_pixels(fitted(each, size, mode)) for each in (seen, opaque(picture)))
    painted = None if mask is None else (to_pixels(fitted(mask, size, mode)) > 0.5).float()
    if painted is not None and module.type == "Inpaint":
        pixels = torch.where(painted > 0, MASKED, pixels)
    return Hint(pixels, painted, plain, settings.a, settings.b)


def pictures_of(scene: Scene, control: Control) -> tuple[PIL.Image.Image, PIL.Image.Image | None]:
    """The unit's own picture and mask, of one size; or those that the pass starts from, of its size."""
    canvas = scene.canvas
    if control.image:
        picture, mask = scene.kit.image(control.image), None
    elif canvas:
        picture, mask = canvas.original, canvas.mask
    else:
        name = control.model or control.module
        raise PipelineError(f"The unit with {name} has no picture to follow. Give it one, or start from one.")
    if control.mask:
        mask = as_mask(scene.kit.image(control.mask)).resize(picture.size, PIL.Image.Resampling.BILINEAR)
    if control.image and canvas and canvas.box != whole(canvas.ground):
        size, mode = canvas.ground.size, control.resize_mode
        picture = part_of(fitted(picture, size, mode), canvas)
        mask = part_of(fitted(mask, size, mode), canvas) if mask else None
    return picture, mask


def part_of(picture: PIL.Image.Image, canvas: Canvas) -> PIL.Image.Image:
    """Where only a part is painted, that part of a picture of the canvas' size, at the size of the pass."""
    if canvas.box == whole(canvas.ground):
        return picture
    return resize_and_fill(picture.crop(canvas.box), *canvas.original.size).picture
