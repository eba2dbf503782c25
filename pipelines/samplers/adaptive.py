"""DPM-Solver in steps of one, two and three calls, even in h (DPM fast) or as long as the error allows (DPM adaptive).

Lu et al. 2022, 'DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps', for
x = x0 + sigma * noise, from the highest to the lowest level of the walk; a last call there gives the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.errors import PipelineError
from pipelines.samplers.walk import Denoise, Step, Walk

RELATIVE, ABSOLUTE = 0.05, 0.0078
"""The error that an adaptive step may have, as a share of x, and at least: appendix C, 1/256 of the range of pixels."""
FIRST_H = 0.05
SAFETY = 0.81
MOST_TRIES = 1000


@dataclass
class Asked:
    """One step, and what the model has said about it."""

    denoise: Denoise
    step: Step
    x: Tensor
    x0: Tensor
    known: dict[float, Tensor] = field(default_factory=dict)

    def bend(self, x: Tensor, share: float) -> Tensor:
        """How the noise that the model sees in x, at this share of the step, differs from that at its beginning."""
        if share not in self.known:
            level = self.step.within(share)
            seen = (x - self.denoise(x, level)) / level
            self.known[share] = seen - (self.x - self.x0) / self.step.sigma
        return self.known[share]


def first(asked: Asked, share: float = 1.0) -> Tensor:
    """DPM-Solver-1, over a share of the step."""
    level = asked.step.following if share == 1 else asked.step.within(share)
    return torch.lerp(asked.x0, asked.x, level / asked.step.sigma)


def second(asked: Asked, r: float = 1 / 2) -> Tensor:
    """Algorithm 1, and for other r appendix B."""
    step = asked.step
    bend = asked.bend(first(asked, r), r)
    return first(asked) - bend * (step.following * math.expm1(step.h) / (2 * r))


def third(asked: Asked, r1: float = 1 / 3, r2: float = 2 / 3) -> Tensor:
    """Algorithm 2."""
    step, h = asked.step, asked.step.h
    bend = asked.bend(first(asked, r1), r1)
    ahead = first(asked, r2) - bend * (step.within(r2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1))
    bend = asked.bend(ahead, r2)
    return first(asked) - bend * (step.following / r2 * (math.expm1(h) / h - 1))


SOLVERS = {1: first, 2: second, 3: third}


def dpm_fast(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Section 3.4 for as many calls of the model as there are steps; each of them is reported."""
    told, low = _Told(denoise, walk), walk.lowest
    orders = orders_for(walk.count - walk.is_whole)
    levels = [low * (walk.sigmas[0] / low) ** (n / max(1, len(orders))) for n in range(len(orders), -1, -1)]
    for n, order in enumerate(orders):
        step = Step(levels[n], levels[n + 1])
        below = _below(walk, step, low)
        x = SOLVERS[order](Asked(told, step.to(below), x, told(x, step.sigma)))
        x = _up(walk, x, below, step.following)
    return told(x, low) if walk.is_whole else x


def orders_for(calls: int) -> Sequence[int]:
    """As many steps of third order as fit; what is left at the end are shorter ones."""
    if not calls:
        return []
    return [3] * (calls // 3 - 1) + [2, 1] if calls % 3 == 0 else [3] * (calls // 3) + [calls % 3]


class _Told:
    """A denoiser whose calls are reported as steps."""

    def __init__(self, denoise: Denoise, walk: Walk) -> None:
        self._denoise, self._walk, self._calls = denoise, walk, 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        x0 = self._denoise(x, sigma)
        self._walk.on_step(self._calls, x0)
        self._calls += 1
        return x0


def dpm_adaptive(denoise: Denoise, x: Tensor, walk: Walk) -> Tensor:
    """Appendix C, DPM-Solver-23, with the step size control of k-diffusion (Crowson 2022): the length of a step is
    what the error of the one before asks for, within the smooth limits of Söderlind and Wang 2006. Reported is how
    much of the way is done, in the steps that were planned. Images of a batch can't share their steps.
    """
    low, place, h, before = walk.lowest, walk.sigmas[0], FIRST_H, x
    whole = math.log(place / low)
    x0: Tensor | None = None
    for _ in range(MOST_TRIES):
        if place <= low * (1 + 1e-5):
            if not walk.is_whole:
                return x
            x0 = denoise(x, low)
            walk.on_step(walk.count - 1, x0)
            return x0
        if x0 is None:
            x0 = denoise(x, place)
            walk.on_step(int((1 - math.log(place / low) / whole) * (walk.count - 1)), x0)
        step = Step(place, max(low, place * math.exp(-h)))
        below = _below(walk, step, low)
        asked = Asked(denoise, step.to(below), x, x0)
        rough, fine = second(asked, 1 / 3), third(asked)
        factor = _factor(rough, fine, before, 1.5 if walk.eta else 3)
        h *= factor
        if factor >= SAFETY:
            x, before, place, x0 = _up(walk, fine, below, step.following), rough, step.following, None
    raise PipelineError("DPM adaptive finds no way to the picture. Lower the CFG scale, or choose another sampler.")


def _factor(rough: Tensor, fine: Tensor, before: Tensor, order: float) -> float:
    """By how much the next step may be longer."""
    allowed = torch.maximum(rough.abs(), before.abs()).mul_(RELATIVE).clamp_(min=ABSOLUTE)
    error = float(((rough - fine) / allowed).square().mean().sqrt())
    if not math.isfinite(error):
        raise PipelineError(
            "The picture came out as invalid numbers (NaN). Lower the CFG scale and the weights in the prompt, "
            "or choose another sampler than DPM adaptive."
        )
    return 1 + math.atan((1 / (error + 1e-8)) ** (1 / order) - 1)


def _below(walk: Walk, step: Step, low: float) -> float:
    """The level to which a step goes, so that fresh noise has room up to the next one."""
    return max(low, step.following * math.sqrt(1 - walk.fresh(step) ** 2))


def _up(walk: Walk, x: Tensor, below: float, level: float) -> Tensor:
    return walk.lifted(x, below, level) if level > below else x
