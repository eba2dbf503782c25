"""How long a picture will take, by what this machine did before. On a real database."""

from pathlib import Path

import pytest

from pipelines.request import GenerationRequest
from pipelines.types import ModelInfo
from webui.db import Database
from webui.estimates import seconds_for
from webui.events import EventLog
from webui.jobs import JobStore
from webui.outputs import PictureInfo
from webui.resolve import Resolved

MODEL = ModelInfo(name="tiny", family="sd1", path=Path("m"), size_bytes=1, width=64, height=64)
TASK = GenerationRequest(prompt="a", seed=5, width=64, height=64, steps=10)


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database(tmp_path / "library.sqlite")


def drawn(db: Database, seconds: float, model: ModelInfo = MODEL, task: GenerationRequest = TASK) -> None:
    """A job that took so long."""
    jobs = JobStore(db, EventLog(db))
    job = jobs.add(Resolved(task, model, {}))
    jobs.claim()
    for unit in range(task.units):
        path = f"d/{job.id}-{unit}.png"
        jobs.reserve(job.id, unit, path)
        picture = PictureInfo(id=path, width=task.width, height=task.height, seed=5, infotext="", job=job.id, unit=unit)
        jobs.saved(picture)
    jobs.done(job.id, seconds)
    db.execute("UPDATE jobs SET started = 100, finished = ? WHERE id = ?", 100 + seconds, job.id)


def test_without_history_nothing_is_claimed(db: Database) -> None:
    assert seconds_for(db, TASK, MODEL) is None


def test_the_pace_of_the_same_checkpoint(db: Database) -> None:
    for seconds in (2.0, 2.0, 30.0):  # the first one paid for loading
        drawn(db, seconds)
    assert seconds_for(db, TASK, MODEL) == pytest.approx(2)
    assert seconds_for(db, TASK.model_copy(update={"steps": 20, "batch_count": 3}), MODEL) == pytest.approx(12)


def test_another_size_is_scaled_until_it_has_a_history_of_its_own(db: Database) -> None:
    wide = TASK.model_copy(update={"width": 128})
    drawn(db, 2.0)
    assert seconds_for(db, wide, MODEL) == pytest.approx(4)
    drawn(db, 5.0, task=wide)
    assert seconds_for(db, wide, MODEL) == pytest.approx(5)
    assert seconds_for(db, TASK, MODEL) == pytest.approx(2)


def test_a_new_checkpoint_borrows_from_its_family(db: Database) -> None:
    drawn(db, 2.0)
    other = MODEL.model_copy(update={"name": "other", "path": Path("o")})
    assert seconds_for(db, TASK, other) == pytest.approx(2)
    assert seconds_for(db, TASK, other.model_copy(update={"family": "sdxl"})) is None


def test_a_job_that_was_tried_twice_says_nothing(db: Database) -> None:
    drawn(db, 2.0)
    db.execute("UPDATE jobs SET attempts = 2")
    assert seconds_for(db, TASK, MODEL) is None
