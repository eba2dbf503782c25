"""The queue and its events, on a real database file."""

import sqlite3
import threading
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.request import GenerationRequest
from pipelines.types import ModelInfo
from webui import db, events, jobs
from webui.db import MIGRATIONS, Database
from webui.events import EventLog
from webui.jobs import JobState, JobStore
from webui.outputs import PictureInfo
from webui.resolve import Resolved

MODEL = ModelInfo(name="tiny", family="sd1", path=Path("m"), size_bytes=1, width=64, height=64)
TASK = GenerationRequest(prompt="a", seed=5, batch_count=2, batch_size=2, width=64, height=64)


class Store(JobStore):
    """The queue on a file, with its parts at hand."""

    def __init__(self, path: Path) -> None:
        self.db = Database(path)
        self.log = EventLog(self.db)
        super().__init__(self.db, self.log)

    def types(self) -> list[str]:
        return [event.type for event in self.log.since(0)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "library.sqlite")


def picture(job: int, unit: int) -> PictureInfo:
    return PictureInfo(
        id=f"d/{unit:05}-{5 + unit}.png", width=64, height=64, seed=5 + unit, infotext="t", job=job, unit=unit
    )


def save(store: Store, job: int, unit: int) -> None:
    store.reserve(job, unit, picture(job, unit).id)
    store.saved(picture(job, unit))


def test_the_life_of_a_job(store: Store) -> None:
    job = store.add(Resolved(TASK, MODEL, {}))
    assert (job.state, job.task, job.model) == (JobState.QUEUED, TASK, MODEL)
    claimed = store.claim()
    assert claimed
    assert (claimed.id, claimed.state, claimed.attempts) == (job.id, JobState.RUNNING, 1)
    assert store.claim() is None
    for unit in range(4):
        assert store.missing(job.id) == tuple(range(unit, 4))
        save(store, job.id, unit)
    store.done(job.id, 1.5)
    ended = store.get(job.id)
    assert ended
    assert ended.state == JobState.DONE
    assert ended.pictures == tuple(picture(job.id, unit) for unit in range(4))
    assert store.latest_pictures() == ended.pictures
    assert store.types() == ["queued", "started", *["picture"] * 4, "done"]


def test_it_is_all_on_the_disk(store: Store, tmp_path: Path) -> None:
    job = store.add(Resolved(TASK, MODEL, {}))
    other = Store(tmp_path / "library.sqlite")
    assert other.get(job.id) == job
    assert other.log.since(0) == store.log.since(0)


def test_two_runners_never_take_the_same(store: Store) -> None:
    for _ in range(40):
        store.add(Resolved(TASK, MODEL, {}))
    taken: list[int] = []

    def runner() -> None:
        while job := store.claim():
            taken.append(job.id)

    threads = [threading.Thread(target=runner) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 41))


def test_an_interrupted_job_goes_on_before_later_ones_with_what_is_missing(store: Store) -> None:
    first, second = store.add(Resolved(TASK, MODEL, {})), store.add(Resolved(TASK, MODEL, {}))
    store.claim()
    save(store, first.id, 0)
    store.reserve(first.id, 1, "d/00001-6.png")  # and then the power went
    assert store.unfinished() == [first.id]
    assert [half.id for half in store.half_saved()] == ["d/00001-6.png"]
    store.requeue(first.id, "why")
    assert (job := store.claim())
    assert (job.id, job.attempts) == (first.id, 2)
    assert store.missing(first.id) == (1, 2, 3)
    assert store.reserved(first.id, 1) == "d/00001-6.png", "the same name again, so never a second file"
    assert (later := store.claim())
    assert later.id == second.id
    assert "interrupted" in store.types()


def test_closing_the_application_is_no_attempt_of_the_job(store: Store) -> None:
    job = store.add(Resolved(TASK, MODEL, {}))
    for _ in range(5):
        store.claim()
        store.requeue(job.id, "closed", to_blame=False)
    assert (again := store.claim())
    assert again.attempts == 1


def test_a_job_of_another_version_fails_alone(store: Store) -> None:
    odd, good = store.add(Resolved(TASK, MODEL, {})), store.add(Resolved(TASK, MODEL, {}))
    store.db.execute("UPDATE jobs SET task = ? WHERE id = ?", '{"kind": "from the future"}', odd.id)
    assert (claimed := store.claim())
    assert claimed.id == good.id
    assert store.get(odd.id) is None
    assert store.db.execute("SELECT state FROM jobs WHERE id = ?", odd.id)[0]["state"] == "failed"
    assert [job.id for job in store.recent()] == [good.id]
    assert store.retry(odd.id) is None


def test_retry_takes_ended_jobs_only(store: Store) -> None:
    job = store.add(Resolved(TASK, MODEL, {}))
    assert store.retry(job.id) is None
    store.claim()
    save(store, job.id, 0)
    store.failed(job.id, "DiskFull", "no room")
    failed = store.get(job.id)
    assert failed
    assert (failed.error, failed.message) == ("DiskFull", "no room")
    again = store.retry(job.id)
    assert again
    assert (again.state, again.message, store.missing(job.id)) == (JobState.QUEUED, None, (1, 2, 3))


def test_numbers_count_what_was_reserved(store: Store) -> None:
    job = store.add(Resolved(TASK, MODEL, {}))
    store.reserve(job.id, 0, "2026-01-02/00041-5.png")
    assert store.highest_number("2026-01-02") == 41
    assert store.highest_number("2026-01-03") == 0


def test_what_was_missed_comes_in_pages_without_a_gap(store: Store) -> None:
    for number in range(1200):
        store.log.append("started", number)
    seen, seq = [], 0
    while news := store.log.since(seq):
        seen += [event.job for event in news]
        seq = news[-1].seq
    assert seen == list(range(1200))


def test_history_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEEP", 3)
    monkeypatch.setattr(events, "KEEP", 4)
    waiting = store.add(Resolved(TASK, MODEL, {}))
    for _ in range(6):
        store.done(store.add(Resolved(TASK, MODEL, {})).id, 1)
    store.prune()
    store.log.prune()
    assert [job.id for job in store.recent()] == [7, 6, 5, waiting.id]
    oldest, newest = store.log.span()
    assert newest - oldest == 4
    assert len(store.log.since(0)) == 4
    assert store.db.execute("SELECT count(DISTINCT job) AS n FROM units")[0]["n"] == 4, "units go with their job"


def test_a_failed_transaction_leaves_neither_job_nor_event(store: Store) -> None:

    def add_and_fail() -> None:
        with store.db.transaction():
            store.add(Resolved(TASK, MODEL, {}))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        add_and_fail()
    assert store.recent() == []
    assert store.types() == []
    store.add(Resolved(TASK, MODEL, {}))
    assert store.types() == ["queued"]


def test_migrations_run_once_and_a_newer_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "library.sqlite"
    Store(path).add(Resolved(TASK, MODEL, {}))
    monkeypatch.setattr(db, "MIGRATIONS", (*MIGRATIONS, "ALTER TABLE jobs ADD COLUMN stars INTEGER DEFAULT 3"))
    assert Store(path).db.execute("SELECT stars FROM jobs")[0]["stars"] == 3
    Store(path)
    monkeypatch.undo()
    with pytest.raises(PipelineError, match="newer Inkstone"):
        Store(path)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "library.sqlite"
    Store(path).add(Resolved(TASK, MODEL, {}))
    monkeypatch.setattr(db, "MIGRATIONS", (*MIGRATIONS, "ALTER TABLE jobs ADD COLUMN a; ALTER TABLE nope ADD COLUMN b"))
    with pytest.raises(sqlite3.OperationalError):
        Store(path)
    monkeypatch.undo()
    assert len(Store(path).recent()) == 1


def test_a_blocked_job_waits_again_when_it_is_tried_again(store: Store) -> None:
    job = store.add(Resolved(TASK, MODEL, {}), awaits=7)
    assert (job.state, job.awaits) == (JobState.BLOCKED, 7)
    assert store.claim() is None
    store.failed(job.id, "ModelNotFound", "gone")
    again = store.retry(job.id)
    assert again
    assert again.state == JobState.BLOCKED, "its model is still only a name"
    store.unblock(job.id, Resolved(TASK, MODEL, {}))
    claimed = store.claim()
    assert claimed
    assert (claimed.id, claimed.awaits) == (job.id, None)
    assert store.types() == ["blocked", "failed", "blocked", "queued", "started"]
