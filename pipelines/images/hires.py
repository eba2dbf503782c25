"""Between two passes: what the first has made, at the size of the second. A1111's hires fix."""

import torch
from torch import Tensor

from pipelines.images.given import Made
from pipelines.images.resize import LATENT_MODES, resize_latents, to_pixels
from pipelines.images.upscale import upscaled
from pipelines.scene import Scene
from pipelines.stages import Stage


def enlarged(scene: Scene, made: Made, following: Stage) -> Made:
    """Latents stay latents in the latent modes; else they are decoded, and made larger as pictures, one by one."""
    if scene.request.hires is None:
        return made
    model, upscaler = scene.model, scene.request.hires.upscaler
    if upscaler in LATENT_MODES:
        if not isinstance(made, Tensor):
            made = torch.cat([model.to_latent(to_pixels(picture)) for picture in made])
        _, height, width = model.latent_shape(following.width, following.height)
        return resize_latents(made, (height, width), upscaler)
    pictures = [model.decode(latent) for latent in made] if isinstance(made, Tensor) else made
    return [upscaled(scene.kit, picture, upscaler, following.width, following.height) for picture in pictures]
