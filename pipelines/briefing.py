"""What the denoiser of a pass is told: the prompts of its images, read by the model."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from pipelines.conditioning import Told, told
from pipelines.control.references import styles
from pipelines.errors import BadModel, ModelNotFound
from pipelines.families.base import Reading
from pipelines.families.embeddings import load_embedding
from pipelines.prompt import Wording, read, worded
from pipelines.request import GenerationRequest, Region
from pipelines.scene import Kit
from pipelines.stages import Stage, stages
from pipelines.types import Kind


@contextmanager
def briefed(
    request: GenerationRequest, stage: Stage, kit: Kit, units: range, name: str | None = None
) -> Generator[Told, None, None]:
    """Of one pass over these images, for which the model wears the LoRAs of the prompts: `runs` sees to it that all
    have the same. What can't be done of what the prompts ask for is noted. `name`: a checkpoint other than the
    pass's."""
    name = stage.model if name is None else name
    model = kit.model(name)
    wordings = wordings_of(request, stage, units, model.reader.prose)
    regional = [_regional(region, stage, model.reader.prose) for region in request.regions]
    worn = tuple(lora for wording in (wordings[0], *regional) for lora in wording.loras)
    with kit.wardrobe.dressed(model, worn, kit, must_fit=name in ("", request.checkpoint)) as dressed:
        reading = reading_of(request, kit)
        heard = told(model, wordings, reading, kit.texts, dressed)
        regions = tuple(told(model, [wording], reading, kit.texts, dressed) for wording in regional)
        _say(kit, [*wordings, *regional], [heard, *regions])
        if request.clip_skip > 1 and not model.reader.clip_skip:
            kit.note(f"Clip skip {request.clip_skip} does nothing here: the prompt is read by {model.reader.name}.")
        heard = replace(heard, regions=regions)
        if styles(request):
            empty = [worded("", "", 1, guided=False)]
            heard = replace(heard, nothing=told(model, empty, reading, kit.texts, dressed).rows)
        yield heard


def _say(kit: Kit, wordings: Iterable[Wording], heard: Iterable[Told]) -> None:
    """What can't be done of what the prompts ask for, each sentence once."""
    notes = [note for wording in wordings for note in wording.notes]
    for note in dict.fromkeys([*notes, *(note for each in heard for note in each.rows.notes)]):
        kit.note(note)


def _regional(region: Region, stage: Stage, prose: bool) -> Wording:
    """Read as it would be without any other: beside the same negative prompt."""
    return worded(region.prompt, stage.negative_prompt, stage.timeline, stage.guided, prose)


def reading_of(request: GenerationRequest, kit: Kit) -> Reading:
    """How its prompts are read, with all embeddings that they name. One that is broken is noted, and stays a word."""
    found = []
    for info in kit.files_of(Kind.EMBEDDING):
        try:
            found.append(load_embedding(info))
        except (BadModel, ModelNotFound) as error:
            kit.note(str(error))
    return Reading(request.clip_skip, request.emphasis, tuple(found))


def wordings_of(request: GenerationRequest, stage: Stage, units: range, prose: bool) -> tuple[Wording, ...]:
    """One for all images, or one for each where they have prompts of their own."""
    number = stages(request).index(stage)
    spoken = [stages(request.spoken(unit))[number] for unit in units] if request.variants else [stage]
    return tuple(worded(each.prompt, each.negative_prompt, each.timeline, each.guided, prose) for each in spoken)


def runs(request: GenerationRequest, units: range, kit: Kit) -> list[range]:
    """What can be made at once, where images have prompts of their own: those that name the same LoRAs, as many prompts
    with the same weights, and of as many chunks, so that each picture is the one that it would be by itself."""
    if not request.variants:
        return [units]
    model, reading = kit.model(), reading_of(request, kit)

    def shape(stage: Stage, unit: int) -> object:
        (wording,) = wordings_of(request, stage, range(unit, unit + 1), model.reader.prose)
        chunks = max(model.chunks_of(read(text, reading.emphasis), reading) for text in wording.texts)
        return wording.loras, wording.weights, chunks

    found = [(unit, [shape(stage, unit) for stage in stages(request)]) for unit in units]
    starts = [unit for (_, before), (unit, own) in pairwise(found) if own != before]
    return [range(*edge) for edge in pairwise((units.start, *starts, units.stop))]
