"""One device at work: takes an assignment, sends events. Runs in a worker process, or inline in tests."""

import io
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor

from pipelines.capabilities import capabilities
from pipelines.conditioning import TextCache
from pipelines.device import device_name, is_device_fault, is_out_of_memory
from pipelines.engine import OnStatus
from pipelines.errors import OutOfMemory, PipelineError
from pipelines.families.base import LoadedModel
from pipelines.generate import Batch, batches, generate
from pipelines.kit import JobKit
from pipelines.loading.checkpoint import read_ahead
from pipelines.loading.manager import LoadStopped, ModelManager
from pipelines.memory.fitting import Fitter
from pipelines.preview import Previews
from pipelines.request import GenerationRequest
from pipelines.samplers import OnStep
from pipelines.scene import WrapDenoise
from pipelines.stages import total_steps
from pipelines.types import (
    Assignment,
    Decoding,
    Done,
    Ending,
    Event,
    Failed,
    Interrupt,
    ModelInfo,
    Note,
    Picture,
    Skipped,
    Started,
    Step,
    Stopped,
    Task,
    WorkerState,
    WorkerStatus,
)

log = logging.getLogger(__name__)

Emit = Callable[[Event], None]
Wish = Callable[[], Interrupt | None]

DEVICE_FAULT = 3
"""Exit code of a worker whose device does not answer any more."""
TOO_LITTLE = (
    "There is not enough memory for this. Make the picture smaller, or fewer at once (batch size); "
    "close other programs that use the device."
)


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
        fitter: Fitter | None = None,
    ) -> None:
        """`warm` is the model that is likely to be asked for first; `cache` a folder for what is costly to find out.
        On a card, `models` must release parts by the fitter's `release`."""
        self._models = models
        self._device = device
        self._wrappers = wrappers
        self._to_warm = warm
        self._previews = Previews(cache)
        self._texts = TextCache()
        self._fitter = fitter or Fitter(device, cache=cache)
        self._capabilities = capabilities(models, device, self._fitter)

    def status(self) -> WorkerStatus:
        if self._to_warm is not None:
            return self._told(WorkerStatus(state=WorkerState.LOADING, detail=self._to_warm.name))
        return self._told(WorkerStatus(state=WorkerState.READY, detail=device_name(self._device)))

    def warm(self, report: OnStatus) -> None:
        """A model that cannot be loaded is no reason to stop: its first job will say what is wrong."""
        info, self._to_warm = self._to_warm, None
        if info is None:
            return

        def loading(status: WorkerStatus) -> None:
            if status.state != WorkerState.READY:  # it is ready when the preview is, too
                report(status)

        self._ahead(info, lambda: self._warm(info, loading))
        report(self.status())

    def hint(self, model: ModelInfo, wish: Wish, report: OnStatus) -> None:
        """Loads the model beside the running job if there is room for both; else its files are read ahead."""

        def load() -> None:
            if self._models.room_for(model):
                patient = lambda: Interrupt.STOP if self._models.wanted else wish()  # noqa: E731
                self._models.get(model, self._teller(report), patient)
            else:
                read_ahead(model)

        self._ahead(model, load)

    def run(self, assignment: Assignment, emit: Emit, wish: Wish, report: OnStatus) -> None:
        """Always ends with exactly one Ending; or, after a fault of the device, with the end of the process."""
        emit(Started())
        ending = self._outcome(assignment, emit, wish, report)
        if isinstance(ending, Failed):
            self._models.free()  # out here, where no traceback holds on to tensors any more
        emit(ending)

    def _outcome(self, assignment: Assignment, emit: Emit, wish: Wish, report: OnStatus) -> Ending:
        start = time.perf_counter()
        try:
            with readable_errors():
                self._draw(assignment, emit, Listener(wish), report)
        except (Interrupted, LoadStopped):
            return Stopped()
        except PipelineError as error:
            return Failed(error=type(error).__name__, message=str(error))
        except Exception as error:  # a border: the worker must live on after a bug, ours or an extension's
            if is_device_fault(error):
                log.critical("Job %d: the device failed; a new worker takes over", assignment.job, exc_info=error)
                raise SystemExit(DEVICE_FAULT) from error
            log.exception("Job %d failed", assignment.job)
            reason = (str(error).strip() or "no message").splitlines()[0]
            text = f"Something went wrong inside ({type(error).__name__}: {reason}). The log has the details."
            return Failed(error=type(error).__name__, message=text)
        return Done(seconds=time.perf_counter() - start)

    def _draw(self, assignment: Assignment, emit: Emit, listener: "Listener", report: OnStatus) -> None:
        """If memory runs out: what is left is tried once more, one level lower."""
        left = list(assignment.units)
        if self._fitter.backend.reason:
            emit(Note(text=self._fitter.backend.reason))
        with self._kit(assignment, emit, listener, report) as kit:
            try:
                return self._batches(assignment, kit, left, emit, listener)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("Job %d: out of memory with %s", assignment.job, kit.plan)
        lower = self._fitter.lower(kit.plan, kit.info, assignment.task)  # no traceback holds on to tensors any more
        self._models.free()
        if lower is None:
            raise OutOfMemory(TOO_LITTLE)
        emit(Note(text=f"The picture did not fit into memory as planned ({kit.plan}); it is made with: {lower}."))
        with self._kit(assignment, emit, listener, report) as kit:
            try:
                self._batches(assignment, kit, left, emit, listener)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    self._fitter.lower(kit.plan, kit.info, assignment.task)
                raise

    def _kit(self, assignment: Assignment, emit: Emit, listener: "Listener", report: OnStatus) -> JobKit:
        def use(info: ModelInfo) -> AbstractContextManager[LoadedModel]:
            return self._models.use(info, self._teller(report), listener.stop)

        said: set[str] = set()

        def note(text: str) -> None:
            if text not in said:  # the second batch has nothing else to say
                said.add(text)
                emit(Note(text=text))

        return JobKit(assignment, use, self._fitter, self._texts, self._wrappers, note)

    def _batches(self, assignment: Assignment, kit: JobKit, left: list[int], emit: Emit, listener: "Listener") -> None:
        """All units that are `left`, which is kept up to date."""
        self._previews.map_for(kit.model())  # before the denoiser takes its place
        for batch in batches(assignment.task, left):
            try:
                self._batch(assignment, kit, batch, left, (emit, listener))
            except Interrupted as interrupted:
                if interrupted.how == Interrupt.STOP:
                    raise
                skipped = tuple(unit for unit in batch.wanted if unit in left)
                left[:] = [unit for unit in left if unit not in skipped]
                emit(Skipped(units=skipped))

    def _batch(
        self, assignment: Assignment, kit: JobKit, batch: Batch, left: list[int], ends: tuple[Emit, "Listener"]
    ) -> None:
        task, (emit, listener) = assignment.task, ends
        listener.obey()

        def on_tile(done: int, total: int) -> None:
            listener.obey_stop()
            if total > 1:
                unit = next(unit for unit in batch.wanted if unit in left)
                emit(Decoding(unit=unit, tile=done, tiles=total))

        kit.on_tile = on_tile
        on_step = self._on_step(task, batch, kit, emit, listener)
        for unit, picture in generate(task, kit, batch, on_step):
            emit(Picture(unit=unit, seed=task.seed_of(unit), png=png(picture)))
            left.remove(unit)
            if any(other in left for other in batch.wanted):
                listener.obey()

    def _on_step(self, task: Task, batch: Batch, kit: JobKit, emit: Emit, listener: "Listener") -> OnStep:
        unit, steps = batch.wanted[0], total_steps(task)

        def on_step(index: int, x0: Tensor) -> None:
            listener.obey()
            step = min(index + 1, steps)  # some samplers walk further than they were told
            preview = self._previews.jpeg(kit.in_use, x0[unit - batch.units[0]], must=step == steps)
            emit(Step(unit=unit, step=step, steps=steps, preview=preview))
            listener.obey()

        return on_step

    def _warm(self, info: ModelInfo, report: OnStatus) -> None:
        with self._models.use(info, self._teller(report)) as model:
            side = info.width or 512
            plan = self._fitter.plan(model, info, GenerationRequest(width=side, height=info.height or side))
            with self._fitter.fitted(model, plan, log.info) as fitted:
                self._previews.map_for(fitted)

    def _ahead(self, info: ModelInfo, load: Callable[[], None]) -> None:
        """Something that nobody waits for: it may fail."""
        try:
            with readable_errors():
                load()
        except LoadStopped:
            log.debug("%s is not wanted any more", info.name)
        except PipelineError as error:
            log.warning("%s could not be loaded ahead: %s", info.name, error)
        except Exception:  # a border: the worker must live on
            log.exception("%s could not be loaded ahead", info.name)

    def _teller(self, report: OnStatus) -> OnStatus:
        return lambda status: report(self._told(status))

    def _told(self, status: WorkerStatus) -> WorkerStatus:
        facts = {"free_bytes": self._fitter.free_bytes(), "loaded": self._models.loaded()}
        return status.model_copy(update={**facts, "capabilities": self._capabilities})


class Listener:
    """The user's wishes about one run. A skip that comes while the model is being loaded waits for the first batch."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._skip = False

    def stop(self) -> Interrupt | None:
        how = self._wish()
        self._skip = self._skip or how == Interrupt.SKIP
        return how if how == Interrupt.STOP else None

    def obey(self) -> None:
        self.obey_stop()
        if self._skip:
            self._skip = False
            raise Interrupted(Interrupt.SKIP)

    def obey_stop(self) -> None:
        if self.stop():
            raise Interrupted(Interrupt.STOP)


@contextmanager
def readable_errors() -> Generator[None, None, None]:
    """Running out of memory is no bug: say what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(TOO_LITTLE) from error
        raise


def png(picture: PIL.Image.Image) -> bytes:
    """Level 1: a third faster than the default, and a few percent larger. The web side adds the infotext."""
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=1)
    return data.getvalue()
