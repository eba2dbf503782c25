"""What networks for inpainting and for editing by instruction see beside the latents, while a pass is walked."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.families.base import Call
from pipelines.guidance import varied
from pipelines.images.canvas import hard
from pipelines.images.resize import to_pixels
from pipelines.samplers import Denoise
from pipelines.scene import Scene


@contextmanager
def seeing(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    """Without a mask, everything is painted: a model for inpainting sees nothing of the picture then, as in A1111."""
    canvas, start = scene.canvas, scene.request.start
    if canvas is None or start is None or not scene.stage.walked_steps:
        yield denoise
        return
    picture = to_pixels(canvas.original)
    mask = to_pixels(hard(canvas.mask)) if canvas.mask else torch.ones_like(picture[:, :1])
    beside = scene.model.beside(picture, mask, start.mask_weight if canvas.mask else 1.0)
    if beside is None:
        yield denoise
        return

    def shown(call: Call) -> Call:
        return replace(call, beside=beside)

    with scene.model.asides.joined(shown):
        yield denoise


def edits(scene: Scene) -> bool:
    """By instruction, and with guidance."""
    return getattr(scene.model, "kind", "") == "pix2pix" and scene.told.has_away


def guided_by_picture(scene: Scene) -> Denoise:
    """Of models that edit by instruction: Brooks et al. 2023, 'InstructPix2Pix', equation 3, three rows an image.

    Without guidance by the prompt (CFG scale 1) there is none by the picture either.
    """
    model, told, scale = scene.model, scene.told, scene.stage.cfg_scale
    if varied(scene.request.guidance):
        scene.kit.note(
            "This model is guided by a picture and by words at once: CFG rescale, guidance interval, NGMS, APG and "
            "perturbed-attention guidance are left out."
        )
    by_picture = scene.request.start.image_cfg_scale if scene.request.start else 1.0

    def denoise(x: Tensor, sigma: float) -> Tensor:
        cond, count = told.at(scene.step(sigma), len(x)), len(x)
        rows = len(cond.tokens)
        again = range(rows - count, rows)  # what to stay away from, this time without the picture
        cond = replace(cond.take([*range(rows), *again]), blind=(False,) * rows + (True,) * count)
        passes = rows // count + 1
        *towards, away, blind = model.predict(x.repeat(passes, 1, 1, 1), sigma, cond).chunk(passes)
        scene.seen.unguided = away
        pulls = [(each - away) * (weight * scale) for each, weight in zip(towards, told.weights, strict=True)]
        return torch.stack([blind, (away - blind) * by_picture, *pulls]).sum(0)

    return denoise
