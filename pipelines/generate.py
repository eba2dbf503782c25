"""The recipe: how a request becomes pictures. Read this file first.

    for each pass (`passes.py`):  encode the prompts -> noise, or a picture with noise in it -> denoise it step by step
    between two passes:           make it larger (`images/hires.py`)
    in the end:                   decode each latent to a picture, put it where it belongs (`images/finish.py`)

A family (`families/`) brings the neural networks, a sampler (`samplers/`) the way of the steps, a feature
(`features.py`) or an extension a function around the denoiser. `session.py` calls this for each batch of a job and
sends what comes out.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import PIL.Image
import torch
from torch import Tensor

from pipelines.briefing import runs
from pipelines.images.canvas import Canvas, laid_out
from pipelines.images.faces import restored
from pipelines.images.finish import finished
from pipelines.images.given import Made
from pipelines.images.hires import enlarged
from pipelines.images.soft import with_soft_cover
from pipelines.passes import Pass
from pipelines.request import GenerationRequest
from pipelines.samplers import OnStep
from pipelines.scene import Kit, Scene
from pipelines.stages import at_once, stages


@dataclass(frozen=True)
class Batch:
    """Images that are made at once. Never a part of them: other shapes would give slightly other pixels."""

    units: range
    wanted: tuple[int, ...]


def batches(request: GenerationRequest, wanted: Sequence[int], kit: Kit) -> list[Batch]:
    """The batches with a wanted unit in them. After a crash, only some units of a batch may be still to be made."""
    size, asked = at_once(request), set(wanted)
    split = [run for first in range(0, request.units, size) for run in runs(request, range(first, first + size), kit)]
    return [Batch(units, tuple(sorted(asked.intersection(units)))) for units in split if asked.intersection(units)]


def generate(
    request: GenerationRequest, kit: Kit, batch: Batch, on_step: OnStep
) -> Iterator[tuple[int, PIL.Image.Image]]:
    """One batch: each wanted unit and its picture. `on_step` sees every step and may raise to end it."""
    return (done for done in turns(request, kit, batch, on_step) if done)


@torch.inference_mode()
def turns(
    request: GenerationRequest, kit: Kit, batch: Batch, on_step: OnStep
) -> Generator[tuple[int, PIL.Image.Image] | None, None, None]:
    """As `generate`, with a None each time before another checkpoint is needed: it may wait there for other batches
    that still need the one in use."""
    units = range(1) if request.plot else batch.units
    request = request.cell(batch.units[0])
    plan, walked_before = stages(request), 0
    canvas, before = canvas_of(request, kit), None
    using = plan[0].model
    for stage in plan:
        if stage.model != using:
            yield None
        one = Pass(request, stage, kit, units, canvas, before)
        using = stage.model
        for leg in one.legs:
            if leg.model != using:
                yield None
            using = leg.model
            with one.walked(leg, partial(_later, on_step, walked_before + leg.start)) as (scene, made):
                if leg == one.legs[-1] and stage == plan[-1]:
                    for unit in batch.wanted:
                        yield unit, pictured(scene, made, unit - batch.units[0])
                elif leg == one.legs[-1]:
                    before = enlarged(scene, made, plan[plan.index(stage) + 1])
        walked_before += stage.walked_steps


def canvas_of(request: GenerationRequest, kit: Kit) -> Canvas | None:
    """The picture to start from, laid out for the first pass."""
    if (start := request.start) is None:
        return None
    mask = kit.image(start.mask) if start.mask else None
    return laid_out(start, kit.image(start.image), mask, request.width, request.height)


def pictured(scene: Scene, made: Made, index: int) -> PIL.Image.Image:
    """Image `index` of the batch, after the last pass."""
    picture = scene.model.decode(made[index]) if isinstance(made, Tensor) else made[index]
    if scene.request.faces:
        picture = restored(scene.kit, picture, scene.request.faces)
    start, canvas, given = scene.request.start, scene.canvas, scene.given
    if start and canvas and given and given.mask is not None and start.soft and isinstance(made, Tensor):
        canvas = with_soft_cover(canvas, made[index], given.original, given.mask, start.soft)
    return finished(canvas, picture, start.color_correction) if start and canvas else picture


def _later(on_step: OnStep, before: int, index: int, x0: Tensor) -> None:
    on_step(before + index, x0)
