"""One device at work: takes an assignment, sends events. Runs in a worker process, or inline in tests."""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from pipelines.capabilities import capabilities
from pipelines.conditioning import TextCache
from pipelines.desk import Desk, Emit, Interrupted, Listener, Wish
from pipelines.device import device_name, is_device_fault, is_out_of_memory
from pipelines.drawing import draw
from pipelines.engine import OnStatus
from pipelines.errors import OutOfMemory, PipelineError
from pipelines.families.base import LoadedModel
from pipelines.kit import JobKit
from pipelines.loading.manager import LoadStopped, ModelManager
from pipelines.loading.weights import read_ahead
from pipelines.memory.fitting import Fitter
from pipelines.preview import Previews
from pipelines.request import GenerationRequest
from pipelines.scene import WrapDenoise
from pipelines.types import (
    Assignment,
    Done,
    Ending,
    Failed,
    Interrupt,
    ModelInfo,
    Note,
    Started,
    Stopped,
    WorkerState,
    WorkerStatus,
)

log = logging.getLogger(__name__)

DEVICE_FAULT = 3
"""Exit code of a worker whose device does not answer any more."""
TOO_LITTLE = (
    "There is not enough memory for this. Make the picture smaller, or fewer at once (batch size); "
    "close other programs that use the device."
)


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
                self._work(assignment, Desk(emit, Listener(wish), self._previews), report)
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

    def _work(self, assignment: Assignment, desk: Desk, report: OnStatus) -> None:
        """If memory runs out: what is left is tried once more, one level lower."""
        left = list(assignment.units)
        if self._fitter.backend.reason:
            desk.emit(Note(text=self._fitter.backend.reason))
        with self._kit(assignment, desk, report) as kit:
            try:
                return draw(assignment.task, kit, left, desk)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("Job %d: out of memory with %s", assignment.job, kit.plan)
        lower = self._fitter.lower(kit.plan, kit.info, assignment.task)  # no traceback holds on to tensors any more
        self._models.free()
        if lower is None:
            raise OutOfMemory(TOO_LITTLE)
        desk.emit(Note(text=f"The picture did not fit into memory as planned ({kit.plan}); it is made with: {lower}."))
        with self._kit(assignment, desk, report) as kit:
            try:
                draw(assignment.task, kit, left, desk)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    self._fitter.lower(kit.plan, kit.info, assignment.task)
                raise

    def _kit(self, assignment: Assignment, desk: Desk, report: OnStatus) -> JobKit:
        def use(info: ModelInfo) -> AbstractContextManager[LoadedModel]:
            return self._models.use(info, self._teller(report), desk.listener.stop)

        note = lambda text: desk.emit(Note(text=text))  # noqa: E731
        return JobKit(assignment, use, self._fitter, self._texts, self._wrappers, note)

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


@contextmanager
def readable_errors() -> Generator[None, None, None]:
    """Running out of memory is no bug: say what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(TOO_LITTLE) from error
        raise
