"""The passes of a picture: the first, and a second one at a larger size if it is asked for. Pure, without torch."""

import contextlib
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pipelines.choices import SAMPLERS, SamplerRow, meant
from pipelines.errors import UnknownChoice
from pipelines.prompt import Timeline
from pipelines.prompt.wording import worded
from pipelines.request import LARGEST_SIDE, SMALLEST_SIDE, GenerationRequest, Hires, Start

GRID = 8
"""Sides of pictures are multiples of this: a latent is 8 pixels."""
CFG_PLUS_PLUS = 12.5
"""The CFG scale that is 1 for CFG++, as in A1111."""
OTHER = SamplerRow("")


@dataclass(frozen=True)
class Stage:
    name: Literal["first", "hires"]
    width: int
    height: int
    steps: int
    sampler: str
    schedule: str
    cfg_scale: float
    prompt: str
    negative_prompt: str
    model: str = ""
    """The checkpoint by its name and VAE (`GenerationRequest.checkpoint`); empty: the job's."""
    strength: float = 1.0
    """How much is drawn anew: 1 begins with pure noise, 0 does nothing."""
    all_steps: bool = False
    """`steps` are walked whatever the strength; else only the share of them that the strength leaves."""
    earlier_steps: int | None = None
    """Of the first pass, in the second one: times in its prompt go on from there. None: this is the first."""

    @property
    def row(self) -> SamplerRow:
        """What its sampler is like. One that nobody knows is refused when it is to draw."""
        return SAMPLERS.get(self.sampler, OTHER)

    @property
    def guided(self) -> bool:
        """Whether the model is asked without the prompt, too."""
        return self.cfg_scale != 1 or self.row.cfg_plus_plus

    @property
    def timeline(self) -> Timeline:
        """What the times in its prompt count."""
        return Timeline(self.steps, self.earlier_steps)

    @property
    def planned_steps(self) -> int:
        """For so many steps the schedule is made, of which the last `walked_steps` are walked."""
        if self.strength >= 1 or not self.all_steps:
            return self.steps
        return int(self.steps / min(self.strength, 0.999)) if self.strength else 0

    @property
    def walked_steps(self) -> int:
        """As in A1111: of 20 steps at strength 0.75 there are 16."""
        if self.strength >= 1:
            return self.steps
        if not self.strength:
            return 0
        return self.steps if self.all_steps else int(min(self.strength, 0.999) * self.steps) + 1


def stages(request: GenerationRequest) -> tuple[Stage, ...]:
    first = Stage(
        "first",
        request.width,
        request.height,
        request.steps,
        request.sampler,
        request.schedule,
        request.cfg_scale,
        request.prompt,
        request.negative_prompt,
        request.checkpoint,
        strength=request.start.denoising_strength if request.start else 1.0,
        all_steps=request.start.all_steps if request.start else False,
    )
    first = _named(first)
    plan = (first, _named(_second(first, request.hires))) if request.hires else (first,)
    return tuple(_scaled(stage) for stage in plan)


def _named(stage: Stage) -> Stage:
    """By the names of the tables."""
    with contextlib.suppress(UnknownChoice):
        sampler, schedule = meant(stage.sampler, stage.schedule)
        return replace(stage, sampler=sampler, schedule=schedule)
    return stage


def _scaled(stage: Stage) -> Stage:
    return replace(stage, cfg_scale=stage.cfg_scale / CFG_PLUS_PLUS) if stage.row.cfg_plus_plus else stage


def _second(first: Stage, hires: Hires) -> Stage:
    width, height = hires_size(first.width, first.height, hires)
    return Stage(
        "hires",
        width,
        height,
        hires.steps or first.steps,
        hires.sampler or first.sampler,
        hires.schedule or first.schedule,
        hires.cfg_scale or first.cfg_scale,
        hires.prompt or first.prompt,
        hires.negative_prompt or first.negative_prompt,
        hires.model or first.model,
        hires.denoising_strength,
        all_steps=True,
        earlier_steps=first.steps,
    )


def hires_size(width: int, height: int, hires: Hires) -> tuple[int, int]:
    """By the scale, by one side and the ratio, or both sides as given."""
    if hires.width and hires.height:
        return hires.width, hires.height
    scale = hires.width / width if hires.width else hires.height / height if hires.height else hires.scale
    return hires.width or on_grid(width * scale), hires.height or on_grid(height * scale)


def start_size(start: Start, picture: tuple[int, int], own: tuple[int, int]) -> tuple[int, int]:
    """Where a request with a picture to start from leaves its size open: the picture's, grown as it will be. Where
    only a part of it is painted at a time, `own`, the model's."""
    if start.only_masked or start.tiled:
        return own
    width, height = picture
    if grown := start.outpaint:
        width, height = width + grown.left + grown.right, height + grown.up + grown.down
    scale = min(1.0, LARGEST_SIDE / max(width, height)) * max(1.0, SMALLEST_SIDE / min(width, height))
    sides = (max(SMALLEST_SIDE, min(LARGEST_SIDE, on_grid(side * scale))) for side in (width, height))
    return next(sides), next(sides)


def on_grid(side: float) -> int:
    return max(GRID, round(side / GRID) * GRID)


def total_steps(request: GenerationRequest) -> int:
    """How many steps the user sees."""
    return sum(stage.walked_steps for stage in stages(request))


def at_once(request: GenerationRequest) -> int:
    """How many images are made together."""
    alone = request.plot or any(stage.row.alone for stage in stages(request))
    return 1 if alone else request.batch_size


class Extent(NamedTuple):
    """The most that a picture asks of memory at once."""

    width: int
    height: int
    batch: int
    guided: bool
    prompts: int = 1
    """That the network is asked about in each step beside the negative one: those that AND joins, and once more with
    perturbed attention."""


def extent(request: GenerationRequest) -> Extent:
    cells = [request.cell(unit) for unit in range(request.units if request.plot else 1)]
    plan = [stage for cell in cells for stage in stages(cell)]
    largest = max(plan, key=lambda stage: stage.width * stage.height)
    guided = any(stage.guided for stage in plan)
    prompts = max(len(worded(stage.prompt, "", 1).towards) for stage in plan)
    prompts *= 2 if any(cell.guidance.pag for cell in cells) else 1
    return Extent(largest.width, largest.height, at_once(request), guided, prompts)
