"""One device at work: takes an assignment, sends events. Runs in a worker process, or inline in tests."""

import io
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import PIL.Image
import psutil
import torch
from torch import Tensor

from pipelines.device import device_name
from pipelines.engine import OnStatus
from pipelines.errors import OutOfMemory, PipelineError
from pipelines.families.base import LoadedModel
from pipelines.generate import Batch, WrapDenoise, batches, encode, generate
from pipelines.manager import ModelManager
from pipelines.preview import Previews
from pipelines.samplers import SAMPLERS, SCHEDULE_NAMES
from pipelines.types import (
    Assignment,
    Capabilities,
    Done,
    Ending,
    Event,
    Failed,
    Interrupt,
    ModelInfo,
    Picture,
    Skipped,
    Started,
    Step,
    Stopped,
    WorkerState,
    WorkerStatus,
)

log = logging.getLogger(__name__)

Emit = Callable[[Event], None]
Wish = Callable[[], Interrupt | None]


class Interrupted(Exception):
    """The user's wish, on its way out of the sampling loop."""

    def __init__(self, how: Interrupt) -> None:
        self.how = how


class Session:
    def __init__(
        self,
        models: ModelManager,
        device: torch.device,
        wrappers: Sequence[WrapDenoise] = (),
        warm: ModelInfo | None = None,
        cache: Path | None = None,
    ) -> None:
        """`warm` is the model that is likely to be asked for first; `cache` a folder for what is costly to find out."""
        self._models = models
        self._device = device
        self._wrappers = wrappers
        self._to_warm = warm
        self._previews = Previews(cache)
        self._capabilities = capabilities(models, device)

    def status(self) -> WorkerStatus:
        if self._to_warm is not None:
            return self._told(WorkerStatus(state=WorkerState.LOADING, detail=self._to_warm.name))
        return self._told(WorkerStatus(state=WorkerState.READY, detail=device_name(self._device)))

    def warm(self, report: OnStatus) -> None:
        """A model that cannot be loaded is no reason to stop: its first job will say what is wrong."""
        info, self._to_warm = self._to_warm, None
        if info is None:
            return
        try:
            with readable_errors():
                self._previews.map_for(self._model(info, report))
        except PipelineError as error:
            log.warning("%s could not be loaded ahead: %s", info.name, error)
        except Exception:  # a border: the worker must live on
            log.exception("%s could not be loaded ahead", info.name)

    def run(self, assignment: Assignment, emit: Emit, wish: Wish, report: OnStatus) -> None:
        """Always ends with exactly one Ending."""
        emit(Started())
        ending = self._outcome(assignment, emit, wish, report)
        if isinstance(ending, Failed):
            self._models.free()  # out here, where no traceback holds on to tensors any more
        emit(ending)

    def _outcome(self, assignment: Assignment, emit: Emit, wish: Wish, report: OnStatus) -> Ending:
        start = time.perf_counter()
        try:
            with readable_errors():
                self._draw(assignment, emit, wish, report)
        except Interrupted:
            return Stopped()
        except PipelineError as error:
            return Failed(error=type(error).__name__, message=str(error))
        except Exception as error:  # a border: the worker must live on after a bug, ours or an extension's
            log.exception("Job %d failed", assignment.job)
            reason = (str(error).strip() or "no message").splitlines()[0]
            text = f"Something went wrong inside ({type(error).__name__}: {reason}). The log has the details."
            return Failed(error=type(error).__name__, message=text)
        return Done(seconds=time.perf_counter() - start)

    def _draw(self, assignment: Assignment, emit: Emit, wish: Wish, report: OnStatus) -> None:
        task = assignment.task
        model = self._model(assignment.model, report)
        cond = encode(task, model)
        for batch in batches(task, assignment.units):
            left = list(batch.wanted)
            try:
                _obey(wish)
                on_step = self._on_step(assignment, batch, model, emit, wish)
                for unit, picture in generate(task, model, cond, batch, on_step, self._wrappers):
                    emit(Picture(unit=unit, seed=task.seed_of(unit), png=png(picture)))
                    left.remove(unit)
                    if left:
                        _obey(wish)
            except Interrupted as interrupted:
                if interrupted.how == Interrupt.STOP:
                    raise
                emit(Skipped(units=tuple(left)))

    def _on_step(
        self, assignment: Assignment, batch: Batch, model: LoadedModel, emit: Emit, wish: Wish
    ) -> Callable[[int, Tensor], None]:
        unit, steps = batch.wanted[0], assignment.task.steps

        def on_step(index: int, x0: Tensor) -> None:
            _obey(wish)
            preview = self._previews.jpeg(model, x0[unit - batch.units[0]], must=index + 1 == steps)
            emit(Step(unit=unit, step=index + 1, steps=steps, preview=preview))
            _obey(wish)

        return on_step

    def _model(self, info: ModelInfo, report: OnStatus) -> LoadedModel:
        return self._models.get(info, lambda status: report(self._told(status)))

    def _told(self, status: WorkerStatus) -> WorkerStatus:
        return status.model_copy(update={"capabilities": self._capabilities})


def _obey(wish: Wish) -> None:
    how = wish()
    if how is not None:
        raise Interrupted(how)


@contextmanager
def readable_errors() -> Generator[None, None, None]:
    """Running out of memory is no bug: say what helps. On a CPU, torch raises a plain RuntimeError for it."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
            raise OutOfMemory(
                "There is not enough memory for this. Make the picture smaller, or fewer at once (batch size); "
                "close other programs that use the device."
            ) from error
        raise


def png(picture: PIL.Image.Image) -> bytes:
    """Level 1: a third faster than the default, and a few percent larger. The web side adds the infotext."""
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=1)
    return data.getvalue()


def capabilities(models: ModelManager, device: torch.device) -> Capabilities:
    on_card = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if on_card else psutil.virtual_memory().total
    return Capabilities(
        device=str(device),
        device_name=device_name(device),
        memory_bytes=memory,
        samplers=tuple(SAMPLERS),
        schedules=SCHEDULE_NAMES,
        families=tuple(models.families),
        versions={name: found for name in ("torch", "diffusers", "transformers") if (found := _version(name))},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
