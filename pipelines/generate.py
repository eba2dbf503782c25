"""The recipe: how a request becomes pictures. Read this file first.

    for each pass (`stages.py`):  encode the prompts -> noise, or a picture with noise in it -> denoise it step by step
    between two passes:           make it larger (`images/hires.py`)
    in the end:                   decode each latent to a picture, put it where it belongs (`images/finish.py`)

A family (`families/`) brings the neural networks, a sampler (`samplers/`) the way of the steps, a feature
(`features.py`) or an extension a function around the denoiser. `session.py` calls this for each batch of a job and
sends what comes out.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import PIL.Image
import torch
from torch import Tensor

from pipelines.briefing import briefed, runs
from pipelines.features import denoiser
from pipelines.images.canvas import Canvas, laid_out
from pipelines.images.finish import finished
from pipelines.images.given import Given, Made
from pipelines.images.hires import enlarged
from pipelines.images.soft import with_soft_cover
from pipelines.request import GenerationRequest
from pipelines.samplers import Denoise, OnStep, sampler_named
from pipelines.scene import Kit, Scene
from pipelines.stages import Stage, at_once, stages
from pipelines.walks import begun, sigmas_of, walk_of


@dataclass(frozen=True)
class Batch:
    """Images that are made at once. Never a part of them: other shapes would give slightly other pixels."""

    units: range
    wanted: tuple[int, ...]


def batches(request: GenerationRequest, wanted: Sequence[int]) -> list[Batch]:
    """The batches with a wanted unit in them. After a crash, only some units of a batch may be still to be made."""
    size, asked = at_once(request), set(wanted)
    split = [run for first in range(0, request.units, size) for run in runs(request, range(first, first + size))]
    return [Batch(units, tuple(sorted(asked.intersection(units)))) for units in split if asked.intersection(units)]


@torch.inference_mode()
def generate(
    request: GenerationRequest, kit: Kit, batch: Batch, on_step: OnStep
) -> Iterator[tuple[int, PIL.Image.Image]]:
    """One batch: each wanted unit and its picture. `on_step` sees every step and may raise to end it."""
    plan, walked_before = stages(request), 0
    canvas = canvas_of(request, kit)
    before: Made | None = None
    for stage in plan:
        with staged(request, stage, kit, batch.units, canvas, before) as scene, denoiser(scene) as denoise:
            before = walked(scene, denoise, partial(_later, on_step, walked_before))
            if stage == plan[-1]:
                for unit in batch.wanted:
                    yield unit, pictured(scene, before, unit - batch.units[0])
            else:
                before = enlarged(scene, before, plan[plan.index(stage) + 1])
        walked_before += stage.walked_steps


def canvas_of(request: GenerationRequest, kit: Kit) -> Canvas | None:
    """The picture to start from, laid out for the first pass."""
    if (start := request.start) is None:
        return None
    mask = kit.image(start.mask) if start.mask else None
    return laid_out(start, kit.image(start.image), mask, request.width, request.height)


def walked(scene: Scene, denoise: Denoise, on_step: OnStep) -> Made:
    """From noise, or from what is given, to latents; without a step, what is given stays as it is."""
    if scene.given and not scene.stage.walked_steps:
        return scene.given.untouched(len(scene.units))
    sampler = sampler_named(scene.stage.sampler)
    walk = walk_of(scene, sampler, on_step)
    return sampler.solve(denoise, begun(scene, sampler, walk.noise()), walk)


def pictured(scene: Scene, made: Made, index: int) -> PIL.Image.Image:
    """Image `index` of the batch, after the last pass."""
    picture = scene.model.decode(made[index]) if isinstance(made, Tensor) else made[index]
    start, canvas, given = scene.request.start, scene.canvas, scene.given
    if start and canvas and given and given.mask is not None and start.soft and isinstance(made, Tensor):
        canvas = with_soft_cover(canvas, made[index], given.original, given.mask, start.soft)
    return finished(canvas, picture, start.color_correction) if start and canvas else picture


def _later(on_step: OnStep, before: int, index: int, x0: Tensor) -> None:
    on_step(before + index, x0)


@contextmanager
def staged(
    request: GenerationRequest, stage: Stage, kit: Kit, units: range, canvas: Canvas | None, before: Made | None
) -> Generator[Scene, None, None]:
    """Everything that is known before the first step of a pass, in which the model wears its LoRAs."""
    model = kit.model(stage.model)
    given = None
    if canvas or before is not None:
        given = Given(model, request.start, canvas and canvas.at(stage.width, stage.height), before)
    with briefed(request, stage, kit, units) as heard:
        yield Scene(request, stage, kit, model, heard, units, sigmas_of(request, stage, kit), given)
