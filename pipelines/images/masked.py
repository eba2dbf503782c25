"""Inpainting with any model: outside the mask each step sees the original again. Lugmayr et al. 2022, 'RePaint', eq. 8.

There the original is noised and put into x. Put into x0 as here, it is the same for all samplers, and exact at the end.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipelines.images.soft import mixed, opened
from pipelines.samplers import Denoise
from pipelines.scene import Scene


@contextmanager
def masked(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    given = scene.given
    if given is None or given.mask is None or not scene.stage.walked_steps:
        yield denoise
        return
    mask, original, soft = given.mask, given.original, given.start and given.start.soft

    def blended(x: Tensor, sigma: float) -> Tensor:
        if soft:
            return mixed(original, denoise(x, sigma), opened(mask, sigma, scene.sigmas.flow, soft), soft.contrast)
        return torch.lerp(original, denoise(x, sigma), mask)

    yield blended
