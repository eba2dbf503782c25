"""The queue, in SQLite: a job is a frozen request and its units, one an image. A finished unit is never remade."""

import json
import logging
import re
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from sqlite3 import Row
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from pipelines.frozen import Frozen
from pipelines.types import ModelInfo, Task
from webui.db import Database
from webui.events import EventLog, EventType
from webui.outputs import PictureInfo, number_of
from webui.resolve import Resolved

log = logging.getLogger(__name__)

KEEP = 5_000
"""So many ended jobs are remembered. Their pictures stay in outputs/ for ever."""


FILES: TypeAdapter[dict[str, ModelInfo]] = TypeAdapter(dict[str, ModelInfo])


class JobState(StrEnum):
    BLOCKED = "blocked"  # waits for a model that is being downloaded
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


EVENT_OF: dict[JobState, EventType] = {JobState.QUEUED: "queued", JobState.BLOCKED: "blocked"}
"""How a new job is told of."""


class Job(Frozen):
    id: int
    state: JobState
    task: Task
    model: ModelInfo
    files: dict[str, ModelInfo] = Field(default={}, description="Whatever else the task names, by `file_key`")
    created: float
    started: float | None
    finished: float | None
    attempts: int
    error: str | None
    message: str | None
    awaits: int | None = None
    """Of a blocked job: the download that it waits for."""
    notes: tuple[str, ...] = ()
    pictures: tuple[PictureInfo, ...] = ()


class JobStore:
    """Each change is one transaction together with the event that tells of it."""

    def __init__(self, db: Database, events: EventLog) -> None:
        self._db, self._events = db, events

    def add(self, what: Resolved, awaits: int | None = None) -> Job:
        """`awaits`: the download that has still to bring the model, which is then only a name."""
        state = JobState.QUEUED if awaits is None else JobState.BLOCKED
        task, model, files = what
        with self._db.transaction():
            row = self._db.execute(
                "INSERT INTO jobs (state, task, model, files, checkpoint, awaits, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING *",
                state,
                task.model_dump_json(exclude_unset=state == JobState.BLOCKED),  # what is open stays open
                model.model_dump_json(),
                FILES.dump_json(files).decode(),
                str(model.path),
                awaits,
                time.time(),
            )[0]
            units = ((row["id"], unit, task.seed_of(unit)) for unit in range(task.files))
            self._db.execute_many("INSERT INTO units (job, unit, state, seed) VALUES (?, ?, 'waiting', ?)", units)
            self._events.append(EVENT_OF[state], row["id"])
        return _job(row, what, ())

    def keep_waiting(self, job: int, awaits: int) -> None:
        """For another download."""
        self._db.execute("UPDATE jobs SET awaits = ? WHERE id = ? AND state = 'blocked'", awaits, job)

    def unblock(self, job: int, what: Resolved) -> None:
        """Its model has arrived: now the request is complete."""
        with self._db.transaction():
            if self._db.execute(
                "UPDATE jobs SET state = 'queued', awaits = NULL, task = ?, model = ?, files = ?, checkpoint = ?"
                " WHERE id = ? AND state = 'blocked' RETURNING id",
                what.task.model_dump_json(),
                what.model.model_dump_json(),
                FILES.dump_json(what.files).decode(),
                str(what.model.path),
                job,
            ):
                self._events.append("queued", job)

    def claim(self, checkpoint: Path | None = None) -> Job | None:
        """Take the oldest queued job; if there are any for this checkpoint, the oldest of those."""
        while rows := self._claim(str(checkpoint or "")):
            if jobs := self._with_pictures(rows):
                return jobs[0]
            self.failed(
                rows[0]["id"], "UnknownTask", "Another version of Inkstone wrote this job; this one cannot read it."
            )
        return None

    def _claim(self, checkpoint: str) -> list[Row]:
        """One statement, so that two runners never take the same."""
        with self._db.transaction():
            rows = self._db.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1 WHERE id ="
                " (SELECT id FROM jobs WHERE state = 'queued' ORDER BY checkpoint = ? DESC, id LIMIT 1) RETURNING *",
                time.time(),
                checkpoint,
            )
            if rows:
                self._events.append("started", rows[0]["id"])
        return rows

    def oldest_queued(self) -> int | None:
        rows = self._db.execute("SELECT min(id) AS id FROM jobs WHERE state = 'queued'")
        return next((row["id"] for row in rows), None)

    def blocked(self) -> list[Job]:
        return self._with_pictures(self._db.execute("SELECT * FROM jobs WHERE state = 'blocked' ORDER BY id"))

    def noted(self, job: int, text: str) -> None:
        """Told to the user, and kept with the job."""
        with self._db.transaction():
            self._db.execute("UPDATE jobs SET notes = json_insert(notes, '$[#]', ?) WHERE id = ?", text, job)
            self._events.append("note", job, {"text": text})

    def missing(self, job: int) -> tuple[int, ...]:
        """The units that are still to be made."""
        rows = self._db.execute("SELECT unit FROM units WHERE job = ? AND state IN ('waiting', 'saving')", job)
        return tuple(row["unit"] for row in rows)

    def reserved(self, job: int, unit: int) -> str | None:
        """The path that an earlier try has reserved for this unit."""
        rows = self._db.execute("SELECT path FROM units WHERE job = ? AND unit = ?", job, unit)
        return rows[0]["path"] if rows else None

    def paths(self, job: int) -> dict[int, str]:
        """Of the units that are done, relative to outputs/."""
        rows = self._db.execute("SELECT unit, path FROM units WHERE job = ? AND state = 'done'", job)
        return {row["unit"]: row["path"] for row in rows}

    def reserve(self, job: int, unit: int, path: str) -> None:
        """Write down where the picture will lie before it is written: a crash in between never makes a second file."""
        self._db.execute("UPDATE units SET state = 'saving', path = ? WHERE job = ? AND unit = ?", path, job, unit)

    def highest_number(self, folder: str) -> int:
        """Of the paths that were ever reserved in this folder."""
        rows = self._db.execute("SELECT path FROM units WHERE path BETWEEN ? AND ?", f"{folder}/", f"{folder}/~")
        return max((number_of(row["path"]) for row in rows), default=0)

    def saved(self, picture: PictureInfo) -> None:
        with self._db.transaction():
            self._db.execute(
                "UPDATE units SET state = 'done', width = ?, height = ?, infotext = ? WHERE job = ? AND unit = ?",
                picture.width,
                picture.height,
                picture.infotext,
                picture.job,
                picture.unit,
            )
            self._events.append("picture", picture.job or 0, picture.model_dump(mode="json"))

    def skipped(self, job: int, units: Iterable[int]) -> None:
        with self._db.transaction():
            rows = ((job, unit) for unit in units)
            self._db.execute_many("UPDATE units SET state = 'skipped' WHERE job = ? AND unit = ?", rows)
            self._events.append("skipped", job, {"units": list(units)})

    def done(self, job: int, seconds: float) -> None:
        self._end(job, JobState.DONE, "done", {"seconds": seconds})

    def failed(self, job: int, error: str, message: str) -> None:
        self._end(job, JobState.FAILED, "failed", {"error": error, "message": message})

    def cancelled(self, job: int) -> None:
        self._end(job, JobState.CANCELLED, "cancelled", {})

    def requeue(self, job: int, message: str, to_blame: bool = True) -> None:
        """Something ended in the middle: the job goes on where it stopped, before all that came later.

        If the job is not `to_blame`, this attempt does not count.
        """
        sql = (
            "UPDATE jobs SET state = 'queued', attempts = attempts - ? WHERE id = ? AND state = 'running' RETURNING id"
        )
        with self._db.transaction():
            if self._db.execute(sql, not to_blame, job):
                self._events.append("interrupted", job, {"message": message})

    def retry(self, job: int) -> Job | None:
        """Queue an ended job again; only what is missing will be made. None if it has not ended."""
        with self._db.transaction():
            rows = self._db.execute(
                "UPDATE jobs SET state = iif(awaits IS NULL, 'queued', 'blocked'),"
                " attempts = 0, error = NULL, message = NULL, finished = NULL"
                " WHERE id = ? AND state IN ('failed', 'cancelled') RETURNING *",
                job,
            )
            if rows:
                self._events.append(EVENT_OF[rows[0]["state"]], job)
        return next(iter(self._with_pictures(rows)), None)

    def unfinished(self) -> list[int]:
        """Jobs that ran when the application died."""
        return [row["id"] for row in self._db.execute("SELECT id FROM jobs WHERE state = 'running' ORDER BY id")]

    def half_saved(self) -> list[PictureInfo]:
        """Units whose picture was being written when the application died; width and height are not known."""
        rows = self._db.execute("SELECT * FROM units WHERE state = 'saving'")
        return [
            PictureInfo(id=r["path"], width=0, height=0, seed=r["seed"], job=r["job"], unit=r["unit"]) for r in rows
        ]

    def get(self, job: int) -> Job | None:
        rows = self._with_pictures(self._db.execute("SELECT * FROM jobs WHERE id = ?", job))
        return rows[0] if rows else None

    def recent(self, limit: int = 50) -> list[Job]:
        """Newest first."""
        return self._with_pictures(self._db.execute("SELECT * FROM jobs ORDER BY id DESC LIMIT ?", limit))

    def queued(self) -> int:
        """How many wait, also for their model."""
        return int(self._db.execute("SELECT count(*) AS n FROM jobs WHERE state IN ('queued', 'blocked')")[0]["n"])

    def latest_pictures(self) -> tuple[PictureInfo, ...]:
        """Of the newest job that has any."""
        rows = self._db.execute("SELECT max(job) AS job FROM units WHERE state = 'done'")
        return self._pictures([rows[0]["job"]]).get(rows[0]["job"], ())

    def pictures_held(self) -> set[str]:
        """The ids of all pictures that jobs start from or follow."""
        rows = self._db.execute("SELECT task FROM jobs WHERE task LIKE '%\"sha256:%'")
        return {name for row in rows for name in re.findall(r"sha256:[0-9a-f]{64}", row["task"])}

    def prune(self) -> None:
        """Forget the oldest ended jobs."""
        self._db.execute(
            "DELETE FROM jobs WHERE state IN ('done', 'failed', 'cancelled') AND id <="
            " (SELECT id FROM jobs ORDER BY id DESC LIMIT 1 OFFSET ?)",
            KEEP,
        )

    def _end(self, job: int, state: JobState, event: EventType, data: dict[str, Any]) -> None:
        with self._db.transaction():
            self._db.execute(
                "UPDATE jobs SET state = ?, finished = ?, error = ?, message = ? WHERE id = ?",
                state,
                time.time(),
                data.get("error"),
                data.get("message"),
                job,
            )
            self._events.append(event, job, data)

    def _with_pictures(self, rows: list[Row]) -> list[Job]:
        """The jobs of these rows, without those that another version wrote in a way that cannot be read here."""
        pictures = self._pictures([row["id"] for row in rows])
        jobs = []
        for row in rows:
            try:
                task, model = Task.model_validate_json(row["task"]), ModelInfo.model_validate_json(row["model"])
                what = Resolved(task, model, FILES.validate_json(row["files"]))
            except ValidationError as error:
                log.warning("Job %s cannot be read: %s", row["id"], error)
            else:
                jobs.append(_job(row, what, pictures.get(row["id"], ())))
        return jobs

    def _pictures(self, jobs: list[int]) -> dict[int, tuple[PictureInfo, ...]]:
        marks = ", ".join("?" * len(jobs))
        found: dict[int, tuple[PictureInfo, ...]] = {}
        sql = f"SELECT * FROM units WHERE state = 'done' AND job IN ({marks}) ORDER BY job, unit"
        for row in self._db.execute(sql, *jobs):
            picture = PictureInfo(
                id=row["path"],
                **{key: row[key] for key in ("width", "height", "seed", "infotext", "job", "unit")},
            )
            found[row["job"]] = (*found.get(row["job"], ()), picture)
        return found


def _job(row: Row, what: Resolved, pictures: tuple[PictureInfo, ...]) -> Job:
    kept = ("id", "state", "awaits", "created", "started", "finished", "attempts", "error", "message")
    notes = tuple(json.loads(row["notes"]))
    return Job(**{key: row[key] for key in kept}, **what._asdict(), notes=notes, pictures=pictures)
