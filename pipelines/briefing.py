"""What the denoiser of a pass is told: the prompts of its images, read by the model."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from pipelines.conditioning import Told, told
from pipelines.control.references import styles
from pipelines.families.base import Reading
from pipelines.prompt import Wording, worded
from pipelines.prompt.wording import company
from pipelines.request import GenerationRequest, Region
from pipelines.scene import Kit
from pipelines.stages import Stage, stages


@contextmanager
def briefed(
    request: GenerationRequest, stage: Stage, kit: Kit, units: range, name: str | None = None
) -> Generator[Told, None, None]:
    """Of one pass over these images, for which the model wears the LoRAs of the prompts: `runs` sees to it that all
    have the same. What can't be done of what the prompts ask for is noted. `name`: a checkpoint other than the
    pass's."""
    model = kit.model(stage.model if name is None else name)
    wordings = wordings_of(request, stage, units, model.reader.prose)
    regional = [_regional(region, stage, model.reader.prose) for region in request.regions]
    worn = tuple(lora for wording in (wordings[0], *regional) for lora in wording.loras)
    with kit.wardrobe.dressed(model, worn, kit) as dressed:
        reading = Reading(request.clip_skip, request.emphasis)
        heard = told(model, wordings, reading, kit.texts, dressed)
        for note in (*noted(wordings, heard), *(note for wording in regional for note in wording.notes)):
            kit.note(note)
        regions = tuple(told(model, [wording], reading, kit.texts, dressed) for wording in regional)
        heard = replace(heard, regions=regions)
        if styles(request):
            empty = [worded("", "", 1, guided=False)]
            heard = replace(heard, nothing=told(model, empty, reading, kit.texts, dressed).rows)
        yield heard


def _regional(region: Region, stage: Stage, prose: bool) -> Wording:
    """Read as it would be without any other: beside the same negative prompt."""
    return worded(region.prompt, stage.negative_prompt, stage.timeline, stage.guided, prose)


def noted(wordings: Iterable[Wording], heard: Told) -> Iterable[str]:
    """Each sentence once."""
    return dict.fromkeys((*(note for wording in wordings for note in wording.notes), *heard.rows.notes))


def wordings_of(request: GenerationRequest, stage: Stage, units: range, prose: bool) -> tuple[Wording, ...]:
    """One for all images, or one for each where they have prompts of their own."""
    number = stages(request).index(stage)
    spoken = [stages(request.spoken(unit))[number] for unit in units] if request.variants else [stage]
    return tuple(worded(each.prompt, each.negative_prompt, each.timeline, each.guided, prose) for each in spoken)


def runs(request: GenerationRequest, units: range) -> list[range]:
    """What can be made at once, where images have prompts of their own: those that name the same LoRAs, and as many
    prompts with the same weights."""
    if not request.variants:
        return [units]
    found = [(unit, [company(stage.prompt) for stage in stages(request.spoken(unit))]) for unit in units]
    starts = [unit for (_, before), (unit, own) in pairwise(found) if own != before]
    return [range(*edge) for edge in pairwise((units.start, *starts, units.stop))]
