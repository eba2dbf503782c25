"""Classifier-free guidance: how what the network sees with each prompt becomes one picture. Ho and Salimans 2022.

Variants are rows of two tables: `CHANGES` says what else is made of what was seen, `features.FEATURES` what is done to
the network meanwhile. All are off by default, and then pictures are what they are without them, bit for bit.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipelines.families.base import Cond
from pipelines.guidance.pag import Perturbed, from_perturbed
from pipelines.guidance.projected import projected
from pipelines.guidance.rescaled import rescaled
from pipelines.guidance.views import Change, Views
from pipelines.guidance.when import When
from pipelines.request import Guidance
from pipelines.samplers import Denoise
from pipelines.scene import Scene

__all__ = ["guided", "varied"]

CHANGES: tuple[Callable[[Scene], Change | None], ...] = (projected, from_perturbed, rescaled)
"""What a request may ask for beyond plain guidance, in the order in which it is done; None: it does not."""


def guided(scene: Scene) -> Denoise:
    """All prompts as one batch; where there is nothing to stay away from there is one pass only.

    Several prompts, joined by AND, add up: Liu et al. 2022, 'Compositional Visual Generation', equation 11.
    """
    model, told = scene.model, scene.told
    weights, when, perturbed = told.weights, When(scene), Perturbed(scene)
    changes = [change for make in CHANGES if (change := make(scene))]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asks = when.asks(sigma)
        cond = told.at(scene.step(sigma), len(x), asks.away)
        whole = perturbed.added(cond, len(x) * len(weights)) if asks.guided else cond
        count = len(whole.tokens) // len(x)
        seen = model.predict(x.repeat(count, 1, 1, 1), sigma, whole).chunk(count)
        plain = seen[: _rows(cond) // len(x)]
        towards, away = plain[: len(weights)], plain[len(weights) :]
        scene.seen.unguided = away[0] if away else None
        found = combined(towards, away, weights, asks.scale)
        if not changes or not asks.guided:
            return found
        apart = seen[len(plain) :]
        views = Views(x, sigma, joined(towards, away, weights), away, joined(apart, away, weights) if apart else None)
        for change in changes:
            found = change(views, found)
        return found

    return denoise


def varied(asked: Guidance) -> bool:
    """Whether `guided` does anything beyond plain guidance."""
    return bool(asked.rescale or asked.apg or asked.pag or asked.min_sigma or asked.start or asked.end < 1)


def combined(towards: Sequence[Tensor], away: Sequence[Tensor], weights: Sequence[float], scale: float) -> Tensor:
    """`away`: one, or none where nothing is stayed away from."""
    if weights == (1.0,):
        return torch.lerp(away[0], towards[0], scale) if away else towards[0]
    if not away:  # the weights add up to 1 then
        return torch.stack([each * weight for each, weight in zip(towards, weights, strict=True)]).sum(0)
    pulls = [(each - away[0]) * (weight * scale) for each, weight in zip(towards, weights, strict=True)]
    return torch.stack([away[0], *pulls]).sum(0)


def joined(towards: Sequence[Tensor], away: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """What all prompts together say, without guidance."""
    return towards[0] if weights == (1.0,) else combined(towards, away, weights, 1.0)


def _rows(cond: Cond) -> int:
    return len(cond.tokens)
