"""The worker's session: which events a job gives, and that nothing that goes wrong ends the worker."""

import asyncio
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from pipelines.errors import OutOfMemory, WorkerDied
from pipelines.families.base import LoadedModel
from pipelines.loading.manager import ModelManager
from pipelines.memory.fitting import Choices, Fitter
from pipelines.memory.planner import Level, Plan, Room, Wish
from pipelines.process_engine import ProcessEngine
from pipelines.request import GenerationRequest
from pipelines.samplers import SAMPLERS, SCHEDULE_NAMES, Denoise
from pipelines.scene import WrapDenoise
from pipelines.session import Session, readable_errors
from pipelines.types import (
    EVENT,
    Assignment,
    Decoding,
    Done,
    Ending,
    Event,
    Failed,
    Interrupt,
    Note,
    Picture,
    Skipped,
    Step,
    Stopped,
    WorkerState,
    WorkerStatus,
)
from tests.checkpoints import save_checkpoint
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


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "Euler a"])
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
    assert failed.message.startswith("There is no sampler named 'Eular'. Choose one of: DPM++ 2M, DPM++ SDE, ")
    assert failure(worker.run(schedule="x")).message.startswith("There is no schedule named 'x'.")
    assert failure(worker.run(folder=tmp_path / "gone")).error == "ModelNotFound"
    broken = tmp_path / "broken"
    shutil.copytree(worker.tiny, broken)
    shutil.rmtree(broken / "vae")
    failed = failure(worker.run(folder=broken))
    assert failed.error == "BadModel"
    assert failed.message.startswith("The model broken lacks its VAE")
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
    told = [(s.state, s.detail) for s in worker.statuses]
    assert set(told[:-1]) == {(WorkerState.LOADING, "tiny")}
    assert told[-1] == (WorkerState.READY, "CPU")
    for each in (status, *worker.statuses):
        assert each.capabilities is not None
        assert each.capabilities.samplers == tuple(SAMPLERS)
        assert each.capabilities.schedules == SCHEDULE_NAMES
        assert each.capabilities.families[0] == "sd1"
        assert (each.capabilities.device, each.capabilities.device_name) == ("cpu", "CPU")
        assert each.capabilities.memory_bytes > 2**28
        assert each.capabilities.versions["torch"] == torch.__version__.partition("+")[0]
        assert set(each.capabilities.versions) == {"torch", "diffusers", "transformers"}
    assert worker.session.status().state == WorkerState.READY
    worker.run()
    assert len(worker.statuses) == len(told)  # nothing was loaded again


def test_a_warm_up_that_fails_ends_nothing(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bad").mkdir()
    worker = Worker(tiny, boot({"device": "cpu", "warm": str(tmp_path / "bad")}))
    worker.session.warm(worker.statuses.append)
    assert worker.statuses[-1].state == WorkerState.READY
    assert "bad could not be loaded ahead" in caplog.text
    assert types(worker.run())[-1] == "done"


def test_models_of_families_that_cannot_be_run(worker: Worker) -> None:
    unknown = info(worker.tiny).model_copy(update={"family": "sd9"})
    task = GenerationRequest(width=64, height=64, seed=1)
    events: list[Event] = []
    worker.session.run(
        Assignment(job=1, task=task, model=unknown, units=(0,)), events.append, lambda: None, lambda status: None
    )
    assert "family sd9" in failure(events).message


def boom(times: int, error: Callable[[], Exception], calls: list[float] | None = None) -> WrapDenoise:
    """A denoiser that raises in its second step, in the first `times` tries."""
    left = [times]

    def wrap(denoise: Denoise, model: LoadedModel, request: GenerationRequest) -> Denoise:
        steps = [0]

        def inner(x: Tensor, sigma: float) -> Tensor:
            steps[0] += 1
            if calls is not None:
                calls.append(sigma)
            if steps[0] == 2 and left[0]:
                left[0] -= 1
                raise error()
            return denoise(x, sigma)

        return inner

    return wrap


def full() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_when_memory_runs_out_the_job_is_tried_once_more_with_less(tiny: Path, tmp_path: Path) -> None:
    plain = Worker(tiny).run(batch_count=2)
    worker = Worker(tiny, Session(ModelManager(CPU), CPU, (boom(1, full),), cache=tmp_path))
    events = worker.run(batch_count=2)
    assert types(events) == ["started", "step", "note", *["step"] * 3, "picture", *["step"] * 3, "picture", "done"]
    (note,) = (event for event in events if isinstance(event, Note))
    assert note.text == (
        "The picture did not fit into memory as planned (CPU); "
        "it is made with: CPU, VAE in tiles of 512 pixels, a pass for each prompt."
    )
    assert all(near(pictures(events)[unit], picture) for unit, picture in pictures(plain).items())
    assert types(worker.run()) == ["started", *["step"] * 3, "picture", "done"]  # it is remembered, and nothing is said
    assert json.loads((tmp_path / "memory.json").read_text())
    again = Session(ModelManager(CPU), CPU, cache=tmp_path)
    with again._models.use(info(tiny), worker.statuses.append) as model:
        task = GenerationRequest(width=64, height=64)
        assert again._fitter.plan(model, info(tiny), task).split_cfg
        assert not again._fitter.plan(model, info(tiny), task.model_copy(update={"width": 128})).split_cfg


def near(a: PIL.Image.Image, b: PIL.Image.Image) -> bool:
    """Passes one after another round differently from passes side by side."""
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max()) <= 2


def test_pictures_that_are_done_are_not_made_again(tiny: Path) -> None:
    calls: list[float] = []
    worker = Worker(tiny, Session(ModelManager(CPU), CPU, (boom_in_batch(2, calls),)))
    events = worker.run(batch_count=3)
    assert list(pictures(events)) == [0, 1, 2]
    assert types(events).count("picture") == 3
    assert types(events).count("note") == 1


def boom_in_batch(number: int, calls: list[float]) -> WrapDenoise:
    def wrap(denoise: Denoise, model: LoadedModel, request: GenerationRequest) -> Denoise:
        calls.append(0)
        if len(calls) == number:
            raise full()
        return denoise

    return wrap


def test_memory_that_runs_out_twice_is_told_and_the_worker_lives(tiny: Path) -> None:
    worker = Worker(tiny, Session(ModelManager(CPU), CPU, (boom(2, full),)))
    events = worker.run()
    assert types(events) == ["started", "step", "note", "step", "failed"]
    assert failure(events).error == "OutOfMemory"
    assert types(worker.run())[-1] == "done"


STREAM = Plan(level=Level.STREAM, streamed=("unet", "text_encoder", "vae"))


@pytest.mark.parametrize("plan", [STREAM, Plan(level=Level.OFFLOAD), Plan(level=Level.FULL)])
def test_wherever_weights_lie_the_picture_is_the_same(tiny: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as if it were a device of its own: everything is copied, and nothing stays behind."""
    monkeypatch.setattr("pipelines.memory.leaves.SMALL_BYTES", 256)
    plain = pictures(Worker(tiny).run())
    session = Session(ModelManager(CPU), CPU)
    monkeypatch.setattr(session._fitter, "plan", lambda *args: plan)
    worker = Worker(tiny, session)
    for _ in range(2):
        assert pictures(worker.run())[0].tobytes() == plain[0].tobytes()
    residency = session._fitter._residency
    assert residency is not None
    assert residency.bytes_moved > 500_000
    session._fitter.clear()
    monkeypatch.undo()
    assert pictures(worker.run())[0].tobytes() == plain[0].tobytes()


@pytest.mark.parametrize(("storage", "share"), [("fp8", 0.29), ("nf4", 0.25)])
def test_weights_in_fewer_bits_change_little(
    storage: Literal["fp8", "nf4"], share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the planner says for a card, when the settings ask for it; of the U-Net's 32 bits this share is left."""
    path = save_checkpoint(tmp_path / "sd1.safetensors")
    plain = np.asarray(pictures(Worker(path).run())[0]).astype(int)
    fitter = Fitter(CPU, Choices(wish=Wish(storage=storage)))
    monkeypatch.setattr("pipelines.memory.fitting.Room", lambda **_: Room(free_bytes=2**30))
    session = Session(ModelManager(CPU, release=fitter.release), CPU, fitter=fitter)
    other = np.asarray(pictures(Worker(path, session).run())[0]).astype(int)
    assert 0 < np.abs(other - plain).mean() < 8
    residency = fitter._residency
    assert residency is not None
    assert (residency.plan.level, residency.plan.storage) == (Level.FULL, storage)
    unet = residency._seats["unet"]
    assert unet.resident_bytes < share * unet.part.size_bytes


def test_decoding_in_tiles_is_told_and_can_be_stopped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(ModelManager(CPU), CPU)
    monkeypatch.setattr(session._fitter, "plan", lambda *args: Plan(host=True, tile=32))
    worker = Worker(tiny, session)
    events = worker.run(width=512, height=256, steps=1)
    tiles = [(event.unit, event.tile, event.tiles) for event in events if isinstance(event, Decoding)]
    assert tiles == [(0, 0, 3), (0, 1, 3), (0, 2, 3), (0, 3, 3)]
    assert pictures(events)[0].size == (512, 256)
    stopped = worker.run(
        lambda event: Interrupt.STOP if event.type == "decoding" else None, width=512, height=256, steps=1
    )
    assert types(stopped)[-2:] == ["decoding", "stopped"]


def test_an_attention_backend_that_cannot_run_is_told(tiny: Path) -> None:
    session = Session(ModelManager(CPU), CPU, fitter=Fitter(CPU, Choices(attention="xformers")))
    events = Worker(tiny, session).run()
    assert types(events)[:2] == ["started", "note"]
    told = session.status().capabilities
    assert told is not None
    assert told.attention == "SDPA"
    assert "SDPA is used instead" in told.attentions["xformers"]
    sliced = Session(ModelManager(CPU), CPU, fitter=Fitter(CPU, Choices(attention="sliced")))
    assert near(pictures(Worker(tiny, sliced).run())[0], pictures(events)[0])


def test_a_fault_of_the_device_ends_the_worker_process(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fault() -> Exception:
        return RuntimeError("CUDA error: an illegal memory access was encountered")

    worker = Worker(tiny, Session(ModelManager(CPU), CPU, (boom(1, fault),)))
    with pytest.raises(SystemExit):
        worker.run()
    assert "a new worker takes over" in caplog.text


@pytest.mark.slow
def test_after_a_fault_of_the_device_the_job_goes_on_in_a_new_worker(tiny: Path, tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        engine = ProcessEngine("tests.faulty:boot", {"marker": str(tmp_path / "marker")})
        task = GenerationRequest(prompt="a cat", width=64, height=64, steps=2, seed=5)
        work = Assignment(job=7, task=task, model=info(tiny), units=(0,))
        try:
            with pytest.raises(WorkerDied):
                [event async for event in engine.run(work)]
            return [event.type async for event in engine.run(work)]
        finally:
            await engine.close()

    assert asyncio.run(scenario()) == ["started", "step", "step", "picture", "done"]


def test_the_next_model_is_loaded_beside_a_running_job(tiny: Path, tmp_path: Path) -> None:
    other = save_sd1(tmp_path / "other", "v_prediction")
    worker = Worker(tiny)
    worker.run()
    worker.session.hint(info(other), lambda: None, worker.statuses.append)
    assert worker.statuses[-1].loaded == ("other", "tiny")
    heard = len(worker.statuses)
    assert types(worker.run(folder=other))[-1] == "done"
    assert len(worker.statuses) == heard


def test_a_hint_that_is_of_no_use_is_no_harm(tiny: Path, tmp_path: Path) -> None:
    worker = Worker(tiny, Session(ModelManager(CPU, budget_bytes=0), CPU))
    worker.session.hint(info(tiny), lambda: None, worker.statuses.append)  # no room: it is read ahead
    assert worker.statuses == []
    worker = Worker(tiny)
    worker.session.hint(info(tiny), lambda: Interrupt.STOP, worker.statuses.append)
    worker.session.hint(info(tmp_path / "gone"), lambda: None, worker.statuses.append)
    assert types(worker.run())[-1] == "done"


def test_a_skip_while_the_model_is_loaded_skips_the_first_batch(tiny: Path) -> None:
    worker = Worker(tiny, Session(ModelManager(CPU), CPU))
    events = worker.run(lambda event: Interrupt.SKIP if event.type == "started" else None, batch_count=2)
    assert types(events) == ["started", "skipped", *["step"] * 3, "picture", "done"]


def test_the_worker_tells_of_its_memory(worker: Worker) -> None:
    worker.run()
    status = worker.session.status()
    assert status.loaded == ("tiny",)
    assert status.free_bytes is not None
    assert status.free_bytes > 2**20
    assert status.capabilities is not None
    assert status.capabilities.dtypes == {"text_encoder": "float32", "unet": "float32", "vae": "float32"}
    assert status.capabilities.attentions["SDPA"] == ""


def test_a_warm_up_whose_files_are_gone_still_ends_ready(tiny: Path, tmp_path: Path) -> None:
    """Else the queue would wait for ever."""
    gone = info(tiny).model_copy(update={"companions": {"vae": info(tiny).model_copy(update={"path": tmp_path / "x"})}})
    session = Session(ModelManager(CPU), CPU, warm=gone)
    said: list[WorkerStatus] = []
    session.warm(said.append)
    assert said[-1].state == WorkerState.READY
