"""Perturbed-attention guidance: away from what a network draws whose middle attends to nothing. Ahn et al. 2024,
'Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance'.

The perturbed network is the same one: further rows of the batch, which are marked in `Cond.perturbed`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pipelines.control.attention_hooks import Ask, Inner, attending, attends_to_itself
from pipelines.families.base import Cond
from pipelines.guidance.networks import unet_for
from pipelines.guidance.views import Change, Views
from pipelines.samplers import Denoise
from pipelines.scene import Scene


class Perturbed:
    """Adds the rows."""

    def __init__(self, scene: Scene) -> None:
        self._wanted = bool(scene.request.guidance.pag) and "unet" in scene.model.parts
        self._last: tuple[Cond, Cond] | None = None

    def added(self, cond: Cond, towards: int) -> Cond:
        """Once more the rows that are drawn towards, the first ones, for a network that is made worse."""
        if not self._wanted:
            return cond
        if self._last is None or self._last[0] is not cond:
            rows = len(cond.tokens)
            taken = cond.take([*range(rows), *range(towards)])
            self._last = cond, replace(taken, perturbed=(False,) * rows + (True,) * towards)
        return self._last[1]


def from_perturbed(scene: Scene) -> Change | None:
    """Equation 17: x0 + s (towards - perturbed), which is the same for x0 as for the noise."""
    scale = scene.request.guidance.pag
    if not scale:
        return None

    def change(views: Views, found: Tensor) -> Tensor:
        return found if views.perturbed is None else found + scale * (views.towards - views.perturbed)

    return change


@contextmanager
def perturbing(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    """A feature: makes the network worse, for the marked rows alone, in the self-attention of its middle."""
    if not scene.request.guidance.pag or unet_for(scene, "Perturbed-attention guidance") is None:
        yield denoise
        return
    with attending(scene.model, _perturbed, lambda name: name.startswith("mid_block.") and attends_to_itself(name)):
        yield denoise


def _perturbed(ask: Ask, inner: Inner) -> Tensor:
    """Each place sees itself alone: the matrix of attention is 1. All rows are asked all the same, so that other hooks
    find as many as they know of; the middle is a small part of the network."""
    answer = inner(ask)
    rows = [row for row, marked in enumerate(ask.call.cond.perturbed) if marked]
    if not rows:
        return answer
    out, drop = ask.layer.to_out
    alone: Tensor = drop(out(ask.layer.to_v(ask.hidden[rows])))
    return answer.index_copy(0, torch.tensor(rows, device=answer.device), alone)
