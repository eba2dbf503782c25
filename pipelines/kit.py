"""What a job may reach for: its checkpoints, one in use at a time, its other files and its pictures."""

import io
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from typing import Any, Self

import PIL.Image
import torch

from pipelines.adapters.wardrobe import Wardrobe
from pipelines.conditioning import TextCache
from pipelines.decoding import OnTile
from pipelines.errors import ModelNotFound, PipelineError
from pipelines.families.base import LoadedModel
from pipelines.images.networks import PixelNetworks, quiet
from pipelines.loading.beside import Networks
from pipelines.loading.parts import Part, Recipe
from pipelines.memory.fitting import Fitted, Fitter
from pipelines.memory.planner import DENOISERS, Plan
from pipelines.scene import WrapDenoise
from pipelines.types import Assignment, Kind, ModelInfo, file_key

Use = Callable[[ModelInfo], AbstractContextManager[LoadedModel]]
"""Holds a model in memory as long as it is used."""

BESIDE = (Kind.CONTROLNET, Kind.T2I_ADAPTER, Kind.IP_ADAPTER, Kind.LORA)
"""What lies on the device beside the denoiser."""


class JobKit:
    """Of a job in a worker. A checkpoint is fitted into memory when it is asked for, and the one before makes room."""

    plan: Plan
    """Of the checkpoint in use."""
    info: ModelInfo

    def __init__(
        self,
        assignment: Assignment,
        use: Use,
        fitter: Fitter,
        texts: TextCache,
        wrappers: Sequence[WrapDenoise],
        note: Callable[[str], None],
    ) -> None:
        self.texts, self.wardrobe, self.wrappers = texts, fitter.wardrobe, wrappers
        self._note, self._noted = note, set[str]()
        self._assignment, self._use, self._fitter = assignment, use, fitter
        self.made: dict[Hashable, Any] = {}
        self.on_tile: OnTile = quiet
        self._stack = ExitStack()
        self._name: str | None = None
        self._fitted: Fitted | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._fitter.networks.leave()
        self._stack.close()

    def model(self, name: str = "") -> Fitted:
        own = name in ("", self._assignment.task.checkpoint)
        name = "" if own else name
        if self._fitted is None or self._name != name:
            self._fitter.networks.leave()
            self._stack.close()
            self._fitted = None
            self.info = self._assignment.model if own else self.file(Kind.CHECKPOINT, name)
            model = self._stack.enter_context(self._use(self.info))
            beside = [file for file in self._assignment.files.values() if file.kind in BESIDE]
            self.plan = self._fitter.plan(model, self.info, self._assignment.task, beside)
            self._fitted = self._stack.enter_context(self._fitter.fitted(model, self.plan, self.note))
            self._fitted.watch_tiles(lambda done, total: self.on_tile(done, total))
            self._name = name
        return self._fitted

    @property
    def in_use(self) -> Fitted:
        return self._fitted or self.model()

    @property
    def pixels(self) -> PixelNetworks:
        return self._fitter.pixels

    def file(self, kind: Kind, name: str) -> ModelInfo:
        try:
            return self._assignment.files[file_key(kind, name)]
        except KeyError as error:
            raise ModelNotFound(f"There is no {kind} named {name!r}. Refresh the list of models.") from error

    def files_of(self, kind: Kind) -> list[ModelInfo]:
        return [info for info in self._assignment.files.values() if info.kind == kind]

    def note(self, text: str) -> None:
        """Once for each job: every pass of every batch finds the same."""
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)

    def network(self, name: str, recipe: Recipe, info: ModelInfo) -> AbstractContextManager[Part]:
        model = self.in_use
        return self._fitter.networks.use(name, recipe, info.path, dtype_of(model), self.plan)

    def image(self, name: str) -> PIL.Image.Image:
        try:
            picture = PIL.Image.open(io.BytesIO(self._assignment.images[name]))
            picture.load()
        except (KeyError, OSError) as error:
            raise PipelineError(f"A picture of this job is not there any more ({name[:20]}). Give it again.") from error
        return picture


class SoloKit:
    """One checkpoint and nothing else: for benchmarks, tests and programs that call `generate` themselves."""

    def __init__(self, model: LoadedModel, wrappers: Sequence[WrapDenoise] = ()) -> None:
        self.texts, self.wardrobe = TextCache(), Wardrobe()
        self.wrappers = wrappers
        self.notes: list[str] = []
        self.made: dict[Hashable, Any] = {}
        self.on_tile: OnTile = quiet
        self._model = model
        self._name: str | None = None

    def model(self, name: str = "") -> LoadedModel:
        """Whatever it is called first is its name."""
        if self._name is None:
            self._name = name
        if name not in ("", self._name):
            raise ModelNotFound(f"There is no checkpoint named {name!r} here.")
        return self._model

    @cached_property
    def pixels(self) -> PixelNetworks:
        return PixelNetworks(self._model.device)

    def file(self, kind: Kind, name: str) -> ModelInfo:
        raise ModelNotFound(f"There is no {kind} named {name!r} here.")

    def network(self, name: str, recipe: Recipe, info: ModelInfo) -> AbstractContextManager[Part]:
        plan = Plan(host=self._model.device.type == "cpu")
        return Networks(self._model.device, budget_bytes=0).use(name, recipe, info.path, dtype_of(self._model), plan)

    def files_of(self, kind: Kind) -> list[ModelInfo]:
        return []

    def image(self, name: str) -> PIL.Image.Image:
        raise PipelineError("There are no pictures here.")

    def note(self, text: str) -> None:
        self.notes.append(text)


def dtype_of(model: LoadedModel) -> torch.dtype:
    """In which the network that draws computes."""
    return next(model.parts[name].dtype for name in DENOISERS if name in model.parts)
