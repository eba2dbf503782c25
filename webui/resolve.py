"""From what was asked for to what is frozen in a job: nothing is open any more, and all that it names is there."""

import contextlib
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipelines import needs
from pipelines.choices import check_flow, meant
from pipelines.errors import BadModel, ModelNotFound, PipelineError, UnknownChoice
from pipelines.library.registry import Registry
from pipelines.prompt.embeddings import embeddings_named_in
from pipelines.prompt.tags import names_in
from pipelines.request import SEED_LIMIT, GenerationRequest
from pipelines.stages import start_size
from pipelines.types import Capabilities, Kind, ModelInfo, file_key
from webui.db import Database
from webui.inputs import Inputs

Prepare = Callable[[GenerationRequest], GenerationRequest]

SAME_LATENTS = (frozenset({"sd1", "sd2"}),)
"""Families whose latents mean the same: one can go on where another stops."""


class BadPlot(PipelineError):
    """A value of an axis that a request cannot have."""


class Resolved(NamedTuple):
    task: GenerationRequest
    model: ModelInfo
    """The checkpoint, with its companions."""
    files: dict[str, ModelInfo]
    """Whatever else the task names, by `file_key` of the name as it stands there."""


class Resolver:
    def __init__(self, db: Database, registry: Registry, inputs: Inputs, prepare: Prepare) -> None:
        """`prepare`: what extensions change in a request."""
        self.registry, self.inputs = registry, inputs
        self._db, self._prepare = db, prepare

    def default_model(self) -> str:
        """The one that was used last, else the first. Raises ModelNotFound if there is none."""
        last = self._db.fact("last_model")
        return last if last in {model.name for model in self.registry.all()} else self.registry.get("").name

    def pictures(self, request: GenerationRequest) -> GenerationRequest:
        """Each picture is kept and named by its id. Decodes them, which takes a while. Raises BadPicture."""
        return needs.with_pictures(request, self.inputs.named)

    def __call__(self, request: GenerationRequest, capabilities: Capabilities | None) -> Resolved:
        """Raises PipelineError with what cannot be had. `capabilities`: of the worker; None on the very first start,
        when it has not said yet what it can do: then it checks by itself."""
        found = self.registry.get(request.model or self.default_model())
        model = self._complete(found, request)
        request = chosen(request, model)
        if capabilities:
            check_choices(request, capabilities)
        width, height = self._size(request, model)
        named = GenerationRequest.model_validate(
            {
                **request.model_dump(),
                "model": model.name,
                "width": request.width or width,
                "height": request.height or height,
                "cfg_scale": request.cfg_scale if "cfg_scale" in request.model_fields_set else model.cfg_scale,
            }
        )
        task = self._prepare(seeded(named.model_copy(update={"plot": None})))
        if not request.plot:
            return Resolved(task, model, self._files(task, model))
        plotted = {"plot": request.plot, "batch_count": 1, "batch_size": 1, "variants": ()}
        task = task.model_copy(update=plotted)
        return Resolved(task, model, self._files_of_cells(task, model, capabilities))

    def _files_of_cells(
        self, task: GenerationRequest, model: ModelInfo, capabilities: Capabilities | None
    ) -> dict[str, ModelInfo]:
        """Every image of a plot is checked as if it were a job of its own."""
        files: dict[str, ModelInfo] = {}
        models = {task.checkpoint: model}
        seen: set[tuple[object, ...]] = set()  # most cells name the same files
        for unit in range(task.units):
            try:
                cell = task.cell(unit)
            except ValidationError as error:
                raise BadPlot(_sentence(task, unit, error)) from error
            if cell.checkpoint not in models:
                models[cell.checkpoint] = self._complete(self.registry.get(cell.model), cell)
                files[file_key(Kind.CHECKPOINT, cell.checkpoint)] = models[cell.checkpoint]
            if capabilities:
                check_choices(cell, capabilities)
            named = (cell.checkpoint, *needs.files(cell), *needs.prompts(cell))
            if named not in seen:
                seen.add(named)
                files |= self._files(cell, models[cell.checkpoint])
        return files

    def _size(self, request: GenerationRequest, model: ModelInfo) -> tuple[int, int]:
        """Where the request leaves it open: the model's own, or that of the picture to start from."""
        own = (model.width, model.height)
        if request.start is None or (request.width and request.height):
            return own
        return start_size(request.start, self.inputs.size(request.start.image), own)

    def _complete(self, found: ModelInfo, request: GenerationRequest) -> ModelInfo:
        companions = self.registry.companions(found, request.vae, request.text_encoders)
        return found.model_copy(update={"companions": companions})

    def _files(self, task: GenerationRequest, model: ModelInfo) -> dict[str, ModelInfo]:
        files = {}
        for need in needs.files(task):
            info = self._file(need, model)
            files[file_key(info.kind, need.name)] = info
        for name in names_in(*needs.prompts(task)):
            with contextlib.suppress(ModelNotFound):  # the worker says so, and makes the picture without it
                files[file_key(Kind.LORA, name)] = fitting(self.registry.find(Kind.LORA, name), model)
        embeddings = sorted(self.registry.all(Kind.EMBEDDING), key=lambda info: info.family not in ("", model.family))
        for name in embeddings_named_in(needs.prompts(task), [info.name for info in embeddings]):
            files[file_key(Kind.EMBEDDING, name)] = next(info for info in embeddings if info.name == name)
        return files

    def _file(self, need: needs.Need, model: ModelInfo) -> ModelInfo:
        for kind in need.kinds[1:]:
            with contextlib.suppress(ModelNotFound):
                return fitting(self.registry.find(kind, need.name), model)
        info = self.registry.find(need.kinds[0], need.name)
        if info.kind == Kind.CHECKPOINT:
            info = info.model_copy(update={"companions": self.registry.companions(info)})
        return fitting(info, model)


def chosen(request: GenerationRequest, model: ModelInfo) -> GenerationRequest:
    """Samplers and schedules by the names of the tables, whatever they are called in the request. Raises PipelineError
    for what nobody knows, or what this model cannot do."""
    sampler, schedule = meant(request.sampler, request.schedule)
    changes: dict[str, Any] = {"sampler": sampler, "schedule": schedule}
    passes = [(sampler, schedule)]
    if hires := request.hires:
        second = meant(hires.sampler or sampler, hires.schedule or schedule)
        own = {"sampler": second[0] if hires.sampler else "", "schedule": second[1] if second[1] != schedule else ""}
        changes["hires"] = hires.model_copy(update=own)
        passes.append(second)
    if model.prediction == "flow":
        for each in passes:
            check_flow(*each)
    return request.model_copy(update=changes)


def _sentence(task: GenerationRequest, unit: int, error: ValidationError) -> str:
    labels = ", ".join(change.label for change in task.plot.changes(unit)) if task.plot else ""
    first = error.errors()[0]
    return f"{labels}: {'.'.join(map(str, first['loc']))} {first['msg'].removeprefix('Value error, ')}."


def check_choices(request: GenerationRequest, can: Capabilities) -> None:
    for stage in (request, request.hires) if request.hires else (request,):
        for what, value, choices in (
            ("sampler", stage.sampler, can.samplers),
            ("schedule", stage.schedule, can.schedules),
        ):
            if value and value not in choices:
                raise UnknownChoice(what, value, list(choices))


def fitting(info: ModelInfo, model: ModelInfo) -> ModelInfo:
    """Raises BadModel if the file was made for another family than the checkpoint is of."""
    pair = {info.family, model.family}
    related = info.kind == Kind.CHECKPOINT and any(pair <= group for group in SAME_LATENTS)
    if info.family and len(pair) > 1 and not related:
        raise BadModel(
            f"{info.name} is for models of the family {info.family}, and {model.name} is of {model.family}. "
            f"Choose another {info.kind.replace('_', ' ')} or another checkpoint."
        )
    return info


def seeded(request: GenerationRequest) -> GenerationRequest:
    """The seed is drawn when the job is queued: a repetition after a crash gives the same picture."""
    noise = request.noise
    if noise.variation_strength and noise.variation_seed < 0:
        noise = noise.model_copy(update={"variation_seed": random.randrange(SEED_LIMIT)})
    seed = request.seed if request.seed >= 0 else random.randrange(SEED_LIMIT)
    return request.model_copy(update={"seed": seed, "noise": noise})
