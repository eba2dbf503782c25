"""One contract for every engine, on a real session with a tiny model; then what only a process can show."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import Engine, InlineEngine, Session
from pipelines.errors import WorkerDied
from pipelines.process_engine import ProcessEngine
from pipelines.request import GenerationRequest
from pipelines.types import Assignment, Event, Failed, Interrupt, Picture, WorkerState, WorkerStatus


def make_engine(kind: str, settings: dict[str, Any]) -> Engine:
    from tests.tiny import boot

    return InlineEngine(lambda: boot(settings)) if kind == "inline" else ProcessEngine("tests.tiny:boot", settings)


@asynccontextmanager
async def running(engine: Engine) -> AsyncGenerator[Engine, None]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def assignment(tiny: Path, job: int = 1, units: tuple[int, ...] | None = None, **request: Any) -> Assignment:
    from tests.tiny import info

    task = GenerationRequest(**{"width": 64, "height": 64, "steps": 3, "seed": 5, **request})
    units = tuple(range(task.units)) if units is None else units
    return Assignment(job=job, task=task, model=info(tiny), units=units)


async def run(engine: Engine, work: Assignment) -> list[Event]:
    return [event async for event in engine.run(work)]


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


class Bench:
    """An engine and the loop that it lives in, for a row of tests: a worker costs seconds to start."""

    def __init__(self, engine: Engine, runner: asyncio.Runner, tiny: Path) -> None:
        self.engine, self.runner, self.tiny = engine, runner, tiny

    def run(self, on_event: Callable[[Event, int], None] = lambda *_: None, **request: Any) -> list[Event]:
        """All events of one run; `on_event` also gets the number of steps so far."""

        async def scenario() -> list[Event]:
            seen: list[Event] = []
            async for event in self.engine.run(assignment(self.tiny, **request)):
                seen.append(event)
                on_event(event, types(seen).count("step"))
            return seen

        return self.runner.run(scenario())


@pytest.fixture(scope="module", params=["inline", "process"])
def bench(request: pytest.FixtureRequest, tiny: Path) -> Generator[Bench, None, None]:
    with asyncio.Runner() as runner:
        engine = make_engine(request.param, {"warm": str(tiny), "step_seconds": 0.1})
        states: list[WorkerState] = []
        engine.on_status = lambda status: states.append(status.state)
        runner.run(engine.start())
        yield Bench(engine, runner, tiny)
        runner.run(engine.close())
        assert WorkerState.LOADING in states, "the boot was told"


def test_a_run_from_start_to_end(bench: Bench) -> None:
    first, again = bench.run(), bench.run(job=2)
    assert types(first) == ["started", "step", "step", "step", "picture", "done"]
    assert [e for e in first if isinstance(e, Picture)] == [e for e in again if isinstance(e, Picture)]
    assert bench.engine.status.state == WorkerState.READY
    assert bench.engine.status.capabilities
    assert "Euler" in bench.engine.status.capabilities.samplers


def test_a_failed_job_leaves_the_worker_usable(bench: Bench) -> None:
    ending = bench.run(sampler="nope")[-1]
    assert isinstance(ending, Failed)
    assert ending.error == "UnknownChoice"
    assert "Euler" in ending.message, "the choices are named"
    assert types(bench.run())[-1] == "done"


def test_stop_is_seen_within_a_step(bench: Bench) -> None:
    def stop_at_two(event: Event, steps: int) -> None:
        if steps == 2:
            bench.engine.interrupt(1, Interrupt.STOP)

    seen = types(bench.run(stop_at_two, steps=100))
    assert seen[-1] == "stopped"
    assert seen.count("step") <= 4


def test_a_stop_that_comes_too_late_does_nothing(bench: Bench) -> None:
    bench.run()
    bench.engine.interrupt(1, Interrupt.STOP)
    assert types(bench.run())[-1] == "done"


def test_skip_goes_on_with_the_next_image(bench: Bench) -> None:
    def skip_at_one(event: Event, steps: int) -> None:
        if event.type == "step" and steps == 1:
            bench.engine.interrupt(1, Interrupt.SKIP)

    seen = bench.run(skip_at_one, steps=8, batch_count=2)
    assert types(seen)[-1] == "done"
    assert "skipped" in types(seen)
    assert [event.unit for event in seen if isinstance(event, Picture)] == [1]


def test_closing_the_stream_stops_the_run(bench: Bench) -> None:
    async def close_at_the_first_step() -> None:
        async with aclosing(bench.engine.run(assignment(bench.tiny, steps=150))) as events:
            async for event in events:
                if event.type == "step":
                    return

    bench.runner.run(close_at_the_first_step())
    again = bench.run(steps=2)
    assert types(again) == ["started", "step", "step", "picture", "done"], "no event of the closed run strays in"


def test_units_are_the_same_pixels_alone_and_together(bench: Bench) -> None:
    grid: dict[str, Any] = {"batch_count": 2, "batch_size": 2}
    whole = {event.unit: event.png for event in bench.run(**grid) if isinstance(event, Picture)}
    part = {event.unit: event.png for event in bench.run(units=(1, 3), **grid) if isinstance(event, Picture)}
    assert set(whole) == {0, 1, 2, 3}
    assert part == {1: whole[1], 3: whole[3]}


def test_a_killed_worker_is_told_and_replaced(tiny: Path) -> None:
    async def scenario() -> None:
        engine = ProcessEngine("tests.tiny:boot", {"step_seconds": 0.1})
        async with running(engine):
            states: list[WorkerState] = []
            engine.on_status = lambda status: states.append(status.state)

            async def kill_it_at_a_step() -> None:
                async for event in engine.run(assignment(tiny, steps=100)):
                    if event.type == "step" and engine.pid:
                        os.kill(engine.pid, signal.SIGKILL)

            with pytest.raises(WorkerDied):
                await kill_it_at_a_step()
            assert types(await run(engine, assignment(tiny, job=1)))[-1] == "done", "a new worker took over"
            assert WorkerState.DIED in states

    asyncio.run(scenario())


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(ProcessEngine("tests.tiny:boot", {"device": "cuda:99"})) as engine:
            told = asyncio.Event()
            engine.on_status = lambda status: told.set() if status.state == WorkerState.FAILED else None
            async with asyncio.timeout(60):
                await told.wait()
            assert "cuda:99" in engine.status.detail

    asyncio.run(scenario())


def die_while_warming(settings: dict[str, Any]) -> Session:
    """A boot whose first checkpoint ends the worker, as one that is too big for the memory does."""
    from tests.tiny import boot

    class Deadly:
        def __init__(self) -> None:
            self.real = boot({})
            self.run, self.hint = self.real.run, self.real.hint

        def status(self) -> WorkerStatus:
            return self.real.status() if settings["cold"] else WorkerStatus(state=WorkerState.LOADING)

        def warm(self, _: Callable[[WorkerStatus], None]) -> None:
            if not settings["cold"]:
                os.kill(os.getpid(), signal.SIGKILL)

    return Deadly()


def test_a_worker_that_dies_while_warming_starts_cold(tiny: Path) -> None:
    async def scenario() -> None:
        engine = ProcessEngine("tests.test_engine:die_while_warming", {})
        async with running(engine), asyncio.timeout(120):
            assert types(await run(engine, assignment(tiny)))[-1] == "done"

    asyncio.run(scenario())


def test_a_listener_that_fails_does_not_end_the_keeper(tiny: Path) -> None:
    async def scenario() -> None:
        def fail(_: WorkerStatus) -> None:
            raise RuntimeError("as a full disk makes it")

        engine = ProcessEngine("tests.tiny:boot", {})
        engine.on_status = fail
        async with running(engine), asyncio.timeout(120):
            assert types(await run(engine, assignment(tiny)))[-1] == "done"

    asyncio.run(scenario())
