"""Classifier-free guidance: how what the network sees with each prompt becomes one picture. Ho and Salimans 2022."""

import torch
from torch import Tensor

from pipelines.samplers import Denoise
from pipelines.scene import Scene


def guided(scene: Scene) -> Denoise:
    """All prompts as one batch; where there is nothing to stay away from there is one pass only.

    Several prompts, joined by AND, add up: Liu et al. 2022, 'Compositional Visual Generation', equation 11.
    """
    model, told, scale = scene.model, scene.told, scene.stage.cfg_scale
    weights = told.weights

    def denoise(x: Tensor, sigma: float) -> Tensor:
        cond = told.at(scene.step(sigma), len(x))
        count = len(cond.tokens) // len(x)
        seen = model.predict(x.repeat(count, 1, 1, 1), sigma, cond).chunk(count)
        towards, away = seen[: len(weights)], seen[len(weights) :]
        scene.seen.unguided = away[0] if away else None
        if weights == (1.0,) and not away:
            return towards[0]
        if not away:  # the weights add up to 1 then
            return torch.stack([each * weight for each, weight in zip(towards, weights, strict=True)]).sum(0)
        if weights == (1.0,):
            return torch.lerp(away[0], towards[0], scale)
        pulls = [(each - away[0]) * (weight * scale) for each, weight in zip(towards, weights, strict=True)]
        return torch.stack([away[0], *pulls]).sum(0)

    return denoise
