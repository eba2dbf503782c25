"""Which job is next: those of the loaded checkpoint first, but the others are not passed for ever."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.engine import InlineEngine
from pipelines.request import GenerationRequest
from pipelines.types import ModelInfo
from webui.db import Database
from webui.events import EventLog
from webui.inputs import Inputs
from webui.jobs import JobStore
from webui.outputs import Outputs
from webui.resolve import Resolved
from webui.runner import OVERTAKES, Runner

TASK = GenerationRequest(prompt="a", seed=5, width=64, height=64)


def model(name: str) -> ModelInfo:
    return ModelInfo(name=name, family="sd1", path=Path("models") / name, size_bytes=1, width=64, height=64)


def no_worker() -> Any:
    raise NotImplementedError("these tests start no worker")


@pytest.fixture
def jobs(tmp_path: Path) -> JobStore:
    db = Database(tmp_path / "library.sqlite")
    return JobStore(db, EventLog(db))


@pytest.fixture
def runner(jobs: JobStore, tmp_path: Path) -> Runner:
    return Runner(
        InlineEngine(no_worker),
        jobs,
        jobs._events,
        Outputs(tmp_path, "png", 92),
        Inputs(tmp_path / ".inputs", tmp_path),
    )


def taken(runner: Runner, count: int) -> list[str]:
    claimed = [runner._claim() for _ in range(count)]
    return [job.model.name for job in claimed if job]


def test_a_mixed_queue_loads_each_checkpoint_once(jobs: JobStore, runner: Runner) -> None:
    for name in "abababab":
        jobs.add(Resolved(TASK, model(name), {}))
    assert "".join(taken(runner, 8)) == "aaaabbbb"


def test_nobody_waits_for_ever(jobs: JobStore, runner: Runner) -> None:
    jobs.add(Resolved(TASK, model("a"), {}))
    assert taken(runner, 1) == ["a"]
    jobs.add(Resolved(TASK, model("b"), {}))
    for _ in range(OVERTAKES + 3):
        jobs.add(Resolved(TASK, model("a"), {}))
    order = taken(runner, OVERTAKES + 4)
    assert order.index("b") == OVERTAKES, "b was passed so often, and then it was its turn"


def test_within_a_checkpoint_the_order_stays(jobs: JobStore, runner: Runner) -> None:
    ids = [jobs.add(Resolved(TASK, model("a"), {})).id for _ in range(4)]
    claimed = [runner._claim() for _ in range(4)]
    assert [job.id for job in claimed if job] == ids
