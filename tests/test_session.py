"""The worker's session: which events a job gives, and that nothing that goes wrong ends the worker."""

import io
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from pipelines.device import choose_device
from pipelines.errors import OutOfMemory, PipelineError
from pipelines.families.base import LoadedModel
from pipelines.generate import WrapDenoise
from pipelines.manager import ModelManager
from pipelines.samplers import SAMPLERS, SCHEDULE_NAMES, Denoise
from pipelines.session import Session, readable_errors
from pipelines.types import (
    EVENT,
    Assignment,
    Done,
    Ending,
    Event,
    Failed,
    GenerationRequest,
    Interrupt,
    Picture,
    Skipped,
    Step,
    Stopped,
    WorkerState,
    WorkerStatus,
)
from tests.tiny import boot, info, save_sd1

CPU = torch.device("cpu")


def nothing(event: Event) -> Interrupt | None:
    return None


class Worker:
    """A session and what came out of it."""

    def __init__(self, tiny: Path, session: Session | None = None) -> None:
        self.tiny = tiny
        self.session = session or boot({"device": "cpu"})
        self.statuses: list[WorkerStatus] = []

    def run(
        self,
        wish_at: Callable[[Event], Interrupt | None] = nothing,
        units: tuple[int, ...] | None = None,
        folder: Path | None = None,
        **request: Any,
    ) -> list[Event]:
        """All events of one job; `wish_at` is asked after each of them whether the user wishes something."""
        task = GenerationRequest(**{"prompt": "a cat", "width": 64, "height": 64, "steps": 3, "seed": 5, **request})
        wanted = tuple(range(task.units)) if units is None else units
        work = Assignment(job=7, task=task, model=info(folder or self.tiny), units=wanted)
        events: list[Event] = []
        wishes: list[Interrupt] = []

        def emit(event: Event) -> None:
            events.append(EVENT.validate_json(EVENT.dump_json(event)))  # as it is after its way to the web process
            wish = wish_at(event)
            if wish:
                wishes.append(wish)

        self.session.run(work, emit, lambda: wishes.pop() if wishes else None, self.statuses.append)
        assert [isinstance(event, Ending) for event in events] == [False] * (len(events) - 1) + [True]
        return events


@pytest.fixture(scope="module")
def worker(tiny: Path) -> Worker:
    return Worker(tiny)


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def pictures(events: list[Event]) -> dict[int, PIL.Image.Image]:
    return {event.unit: PIL.Image.open(io.BytesIO(event.png)) for event in events if isinstance(event, Picture)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_job(worker: Worker, sampler: str) -> None:
    events = worker.run(sampler=sampler, batch_count=2, batch_size=2)
    batch = ["step"] * 3 + ["picture"] * 2
    assert types(events) == ["started", *batch, *batch, "done"]
    steps = [event for event in events if isinstance(event, Step)]
    assert [(event.unit, event.step, event.steps) for event in steps] == [(u, s, 3) for u in (0, 2) for s in (1, 2, 3)]
    assert steps[2].preview is not None
    assert steps[5].preview is not None
    assert PIL.Image.open(io.BytesIO(steps[5].preview)).size == (64, 64)
    made = [event for event in events if isinstance(event, Picture)]
    assert [(event.unit, event.seed) for event in made] == [(0, 5), (1, 6), (2, 7), (3, 8)]
    for picture in pictures(events).values():
        assert (picture.format, picture.mode, picture.size, picture.info) == ("PNG", "RGB", (64, 64), {})
    done = events[-1]
    assert isinstance(done, Done)
    assert done.seconds > 0


def test_the_rest_of_a_job_after_a_crash(worker: Worker) -> None:
    whole = worker.run(batch_count=2, batch_size=3, sampler="Euler a")
    rest = worker.run(units=(1, 4, 5), batch_count=2, batch_size=3, sampler="Euler a")
    assert {event.unit for event in rest if isinstance(event, Step)} == {1, 4}
    assert list(pictures(rest)) == [1, 4, 5]
    assert all(picture.tobytes() == pictures(whole)[unit].tobytes() for unit, picture in pictures(rest).items())


def test_the_preview_is_of_the_first_image_that_is_wanted(worker: Worker) -> None:
    def last_preview(events: list[Event]) -> np.ndarray[Any, np.dtype[np.int64]]:
        data = [event.preview for event in events if isinstance(event, Step)][-1]
        assert data is not None
        return np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)

    of_unit_1 = last_preview(worker.run(units=(1,), batch_size=3))
    assert np.abs(of_unit_1 - last_preview(worker.run(seed=6))).max() <= 2
    assert np.abs(of_unit_1 - last_preview(worker.run(seed=5))).max() > 2


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stop_is_seen_at_once(worker: Worker, step: int) -> None:
    events = worker.run(lambda event: Interrupt.STOP if getattr(event, "step", 0) == step else None, batch_count=2)
    assert types(events) == ["started", *["step"] * step, "stopped"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_skip_goes_on_with_the_next_batch(worker: Worker, step: int) -> None:
    def wish(event: Event) -> Interrupt | None:
        return Interrupt.SKIP if isinstance(event, Step) and (event.unit, event.step) == (0, step) else None

    events = worker.run(wish, batch_count=2, batch_size=2)
    assert types(events) == ["started", *["step"] * step, "skipped", *["step"] * 3, "picture", "picture", "done"]
    assert [event.units for event in events if isinstance(event, Skipped)] == [(0, 1)]
    assert list(pictures(events)) == [2, 3]


def test_skip_names_only_what_is_not_there(worker: Worker) -> None:
    """What is decoded is kept; a unit that was made before a crash is not skipped after it."""

    def wish(event: Event) -> Interrupt | None:
        return Interrupt.SKIP if isinstance(event, Picture) and event.unit == 1 else None

    events = worker.run(wish, units=(1, 3, 4), batch_size=4, batch_count=2)
    assert list(pictures(events)) == [1, 4]
    assert [event.units for event in events if isinstance(event, Skipped)] == [(3,)]


def test_interrupts_before_the_first_step(worker: Worker) -> None:
    stopped = worker.run(lambda event: Interrupt.STOP if event.type == "started" else None)
    assert types(stopped) == ["started", "stopped"]
    skipped = worker.run(lambda event: Interrupt.SKIP if event.type == "started" else None, batch_count=2)
    assert types(skipped) == ["started", "skipped", *["step"] * 3, "picture", "done"]
    last = worker.run(lambda event: Interrupt.SKIP if event.type == "started" else None)
    assert types(last) == ["started", "skipped", "done"]


def test_a_stop_during_a_step_is_seen_at_its_end(tiny: Path) -> None:
    wishes: list[Interrupt] = []
    calls: list[float] = []

    def wrap(denoise: Denoise, model: LoadedModel, request: GenerationRequest) -> Denoise:
        def inner(x: Tensor, sigma: float) -> Tensor:
            calls.append(sigma)
            if len(calls) == 2:
                wishes.append(Interrupt.STOP)
            return denoise(x, sigma)

        return inner

    session = Session(ModelManager(CPU), CPU, (wrap,))
    events: list[Event] = []
    task = GenerationRequest(prompt="a", width=64, height=64, steps=9, seed=1)
    work = Assignment(job=1, task=task, model=info(tiny), units=(0,))
    session.run(work, events.append, lambda: wishes.pop() if wishes else None, lambda status: None)
    assert types(events) == ["started", "step", "stopped"]
    assert isinstance(events[-1], Stopped)
    assert len(calls) == 2


def failure(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


def test_errors_of_the_user_say_what_to_do(worker: Worker, tmp_path: Path) -> None:
    failed = failure(worker.run(sampler="Eular"))
    assert failed.error == "UnknownChoice"
    assert failed.message == "There is no sampler named 'Eular'. Choose one of: DPM++ 2M, Euler a, Euler."
    assert failure(worker.run(schedule="x")).message.startswith("There is no schedule named 'x'.")
    assert failure(worker.run(folder=tmp_path / "gone")).error == "ModelNotFound"
    broken = tmp_path / "broken"
    shutil.copytree(worker.tiny, broken)
    shutil.rmtree(broken / "vae")
    failed = failure(worker.run(folder=broken))
    assert (failed.error, failed.message) == ("BadModel", "The model broken lacks vae. Download it again.")
    assert worker.statuses[-1].state == WorkerState.READY
    assert types(worker.run())[-1] == "done"


def raising(error: Exception) -> WrapDenoise:
    def wrap(denoise: Denoise, model: LoadedModel, request: GenerationRequest) -> Denoise:
        raise error

    return wrap


@pytest.mark.parametrize("error", [ZeroDivisionError("oops\nmore"), KeyError("x"), RuntimeError()])
def test_bugs_are_logged_and_told(tiny: Path, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(tiny, Session(ModelManager(CPU), CPU, (raising(error),)))
    with caplog.at_level(logging.ERROR):
        failed = failure(worker.run())
    assert failed.error == type(error).__name__
    assert failed.message.startswith(f"Something went wrong inside ({type(error).__name__}: ")
    assert "\n" not in failed.message
    assert failed.message.endswith("The log has the details.")
    assert caplog.records[-1].exc_info
    assert caplog.records[-1].exc_info[1] is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_told_with_advice(tiny: Path, error: Exception) -> None:
    failed = failure(Worker(tiny, Session(ModelManager(CPU), CPU, (raising(error),))).run())
    assert failed.error == "OutOfMemory"
    assert "smaller" in failed.message


def test_the_cpus_own_error_is_known() -> None:
    with pytest.raises(OutOfMemory), readable_errors():
        torch.empty(2**60)


def test_invalid_numbers_are_told(tiny: Path) -> None:
    def wrap(denoise: Denoise, model: LoadedModel, request: GenerationRequest) -> Denoise:
        return lambda x, sigma: x * float("nan")

    failed = failure(Worker(tiny, Session(ModelManager(CPU), CPU, (wrap,))).run())
    assert failed.error == "PipelineError"
    assert "NaN" in failed.message


def test_strange_prompts(worker: Worker) -> None:
    for prompt in ("", "日本 🎉 \x00", "((((", "(a:999)", "word " * 300):
        assert types(worker.run(prompt=prompt, negative_prompt=prompt, steps=1))[-1] == "done"


def test_status_and_warm_up(tiny: Path) -> None:
    worker = Worker(tiny, boot({"device": "cpu", "warm": str(tiny)}))
    status = worker.session.status()
    assert (status.state, status.detail) == (WorkerState.LOADING, "tiny")
    worker.session.warm(worker.statuses.append)
    assert [(s.state, s.detail) for s in worker.statuses] == [(WorkerState.LOADING, "tiny"), (WorkerState.READY, "CPU")]
    for told in (status, *worker.statuses):
        assert told.capabilities is not None
        assert told.capabilities.samplers == tuple(SAMPLERS)
        assert told.capabilities.schedules == SCHEDULE_NAMES
        assert told.capabilities.families == ("sd1",)
        assert (told.capabilities.device, told.capabilities.device_name) == ("cpu", "CPU")
        assert told.capabilities.memory_bytes > 2**28
        assert told.capabilities.versions["torch"] == torch.__version__.partition("+")[0]
        assert set(told.capabilities.versions) == {"torch", "diffusers", "transformers"}
    assert worker.session.status().state == WorkerState.READY
    worker.run()
    assert len(worker.statuses) == 2  # nothing was loaded again


def test_a_warm_up_that_fails_ends_nothing(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad").mkdir()
    worker = Worker(tiny, boot({"device": "cpu", "warm": str(tmp_path / "bad")}))
    worker.session.warm(worker.statuses.append)
    assert worker.statuses[-1].state == WorkerState.READY
    assert "lacks unet" in caplog.text
    assert types(worker.run())[-1] == "done"


def test_the_last_models_are_kept(tiny: Path, tmp_path: Path) -> None:
    other = save_sd1(tmp_path / "other", "v_prediction")
    heard: list[str] = []

    def loads(keep: int, *folders: Path) -> list[str]:
        heard.clear()
        manager = ModelManager(CPU, keep)
        models = [manager.get(info(folder), lambda s: heard.append(f"{s.state} {s.detail}")) for folder in folders]
        assert all(model.device == CPU for model in models)
        return heard

    one = ["loading tiny", "ready CPU", "loading other", "ready CPU"]
    assert loads(1, tiny, tiny, other, other) == one
    assert loads(1, tiny, other, tiny) == [*one, "loading tiny", "ready CPU"]
    assert loads(2, tiny, other, tiny, other) == one


def test_models_of_families_that_cannot_be_run(worker: Worker) -> None:
    unknown = info(worker.tiny).model_copy(update={"family": "sd9"})
    task = GenerationRequest(width=64, height=64, seed=1)
    events: list[Event] = []
    worker.session.run(
        Assignment(job=1, task=task, model=unknown, units=(0,)), events.append, lambda: None, lambda status: None
    )
    assert "family sd9" in failure(events).message


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(PipelineError, match=r"'cuda:99' is not there. Choose one of: auto, .*cpu"):
        choose_device("cuda:99")
    with pytest.raises(PipelineError, match="'toaster' is not there"):
        choose_device("toaster")
