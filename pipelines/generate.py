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
from pipelines.images.finish import finished, recoloured
from pipelines.images.given import Made
from pipelines.images.hires import enlarged
from pipelines.images.sd_upscale import Merged, cut
from pipelines.images.soft import with_soft_cover
from pipelines.passes import Pass
from pipelines.request import GenerationRequest, Start
from pipelines.samplers import OnStep
from pipelines.scene import Kit, Scene
from pipelines.stages import at_once, stages, total_steps


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


def turns(
    request: GenerationRequest, kit: Kit, batch: Batch, on_step: OnStep
) -> Generator[tuple[int, PIL.Image.Image] | None, None, None]:
    """As `generate`, with a None each time before another checkpoint is needed: it may wait there for other batches
    that still need the one in use."""
    if request.plot:
        alone = Batch(range(1), (0,))
        for done in turns(request.cell(batch.units[0]), kit, alone, on_step):
            yield done and (batch.units[0], done[1])
    elif request.start and request.start.tiled:
        yield from over_tiles(request, request.start, kit, batch, on_step)
    else:
        yield from drawn(request, kit, batch, on_step, canvas_of(request, kit))


def over_tiles(
    request: GenerationRequest, start: Start, kit: Kit, batch: Batch, on_step: OnStep
) -> Generator[tuple[int, PIL.Image.Image] | None, None, None]:
    """SD upscale. Each tile has noise of its own, that of the next seed: the same everywhere would show."""
    large, parts = cut(kit, request, start)
    merged = {unit: Merged(large) for unit in batch.wanted}
    plain = start.model_copy(update={"tiled": None, "color_correction": False})
    for number, part in enumerate(parts):
        (top, bottom), (left, right) = part.rows, part.columns
        update = {"start": plain, "faces": None, "seed": request.seed + number}
        tile = request.model_copy(update={**update, "width": right - left, "height": bottom - top})
        canvas = laid_out(plain, large.crop((left, top, right, bottom)), None, tile.width, tile.height)
        later = partial(_later, on_step, number * total_steps(request))
        for done in drawn(tile, kit, batch, later, canvas):
            if done is None:
                yield None
            else:
                merged[done[0]].add(done[1], part)
    for unit, whole in merged.items():
        yield unit, touched_up(request, kit, whole.picture(), large)


@torch.inference_mode()
def drawn(
    request: GenerationRequest, kit: Kit, batch: Batch, on_step: OnStep, canvas: Canvas | None
) -> Generator[tuple[int, PIL.Image.Image] | None, None, None]:
    """All passes over one batch."""
    plan, walked_before = stages(request), 0
    before, using = None, plan[0].model
    for stage in plan:
        if stage.model != using:
            yield None
        one = Pass(request, stage, kit, batch.units, canvas, before)
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
    request, canvas, given = scene.request, scene.canvas, scene.given
    picture = scene.model.decode(made[index]) if isinstance(made, Tensor) else made[index]
    picture = touched_up(request, scene.kit, picture, canvas.original if canvas else None)
    if request.start is None or canvas is None:
        return picture
    if given and given.mask is not None and request.start.soft and isinstance(made, Tensor):
        canvas = with_soft_cover(canvas, made[index], given.original, given.mask, request.start.soft)
    return finished(canvas, picture)


def touched_up(
    request: GenerationRequest, kit: Kit, picture: PIL.Image.Image, like: PIL.Image.Image | None
) -> PIL.Image.Image:
    """With its faces restored, and in the colours of the picture that it started from."""
    if request.faces:
        picture = restored(kit, picture, request.faces)
    return recoloured(picture, like) if like and request.start and request.start.color_correction else picture


def _later(on_step: OnStep, before: int, index: int, x0: Tensor) -> None:
    on_step(before + index, x0)
