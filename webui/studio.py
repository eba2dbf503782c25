"""The one object that pages and APIs talk to: submit, cancel, look. Owns the runners that feed the engine."""

import asyncio
import logging
import random
import sqlite3
import threading
from collections.abc import Callable
from contextlib import aclosing

from pydantic import ValidationError

from pipelines import infotext
from pipelines.engine import Engine
from pipelines.errors import PipelineError, UnknownChoice, WorkerDied
from pipelines.registry import Registry
from pipelines.types import (
    SEED_LIMIT,
    Assignment,
    Capabilities,
    Decoding,
    Done,
    Event,
    Failed,
    GenerationRequest,
    Interrupt,
    ModelInfo,
    Note,
    Picture,
    Skipped,
    Started,
    Step,
    Stopped,
    WorkerState,
    WorkerStatus,
)
from webui.db import Database
from webui.events import EventLog
from webui.jobs import Job, JobState, JobStore
from webui.outputs import Outputs, PictureInfo
from webui.progress import Progress

log = logging.getLogger(__name__)

VERSION = "0.1.0"
ATTEMPTS = 3
"""A job that has killed so many workers in a row is given up."""

RETRY_SECONDS = 5.0
CLOSED = "Inkstone was closed in the middle of this job. It goes on where it stopped."

Prepare = Callable[[GenerationRequest], GenerationRequest]


class JobNotFound(PipelineError): ...


class NotNow(PipelineError):
    """The job is in a state in which this cannot be done."""


class Studio:
    def __init__(self, engine: Engine, db: Database, registry: Registry, outputs: Outputs, prepare: Prepare) -> None:
        self.engine, self.registry, self.outputs = engine, registry, outputs
        self._db, self._prepare = db, prepare
        self.events = EventLog(db)
        self.jobs = JobStore(db, self.events)
        self.running: dict[int, Progress] = {}
        self._numbers: dict[str, int] = {}  # folder -> the number that was given last
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Studio":
        await asyncio.to_thread(self._recover)
        self.engine.on_status = self._on_status
        self._on_status(self.engine.status)  # it may have been ready before anyone listened
        await self.engine.start()
        self._tasks = [asyncio.create_task(self._run_forever()) for _ in range(self.engine.slots)]
        threading.Thread(target=self.registry.hash_all, daemon=True).start()  # no reason to wait for it at the end
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.close()

    # What is there

    @property
    def worker(self) -> WorkerStatus:
        return self.engine.status

    @property
    def capabilities(self) -> Capabilities | None:
        """Of the worker; while it starts, of the one before it; None on the very first start."""
        if self.worker.capabilities:
            return self.worker.capabilities
        known = self._db.fact("capabilities")
        try:
            return Capabilities.model_validate_json(known) if known else None
        except ValidationError:  # written by another version; the worker will say it anew
            return None

    def models(self) -> list[ModelInfo]:
        return self.registry.all()

    def default_model(self) -> str:
        """The one that was used last, else the first."""
        last = self._db.fact("last_model")
        return last if last in {model.name for model in self.models()} else self.registry.get("").name

    def job(self, job_id: int) -> Job:
        if job := self.jobs.get(job_id):
            return job
        raise JobNotFound(f"There is no job {job_id}.")

    # What can be done

    async def submit(self, request: GenerationRequest) -> Job:
        """Freeze the request and queue it. It is on the disk when this returns."""
        resolved, model = self.resolve(request)
        job = self.jobs.add(resolved, model)
        self._db.remember("last_model", model.name)
        self._wake.set()
        return job

    def resolve(self, request: GenerationRequest) -> tuple[GenerationRequest, ModelInfo]:
        """Nothing is open any more: checkpoint, size and seed are named, and every choice exists."""
        model = self.registry.get(request.model or self.default_model())
        self._check_choices(request)
        named = GenerationRequest.model_validate(
            {
                **request.model_dump(),
                "model": model.name,
                "width": request.width or model.width,
                "height": request.height or model.height,
                "cfg_scale": request.cfg_scale if "cfg_scale" in request.model_fields_set else model.cfg_scale,
                "seed": request.seed if request.seed >= 0 else random.randrange(SEED_LIMIT),
            }
        )
        return self._prepare(named), model

    async def cancel(self, job_id: int) -> Job:
        """A running job stops within one step and keeps its finished pictures."""
        job = self.job(job_id)
        if job.state == JobState.QUEUED:
            self.jobs.cancelled(job_id)
        elif job.state == JobState.RUNNING:
            if progress := self.running.get(job_id):
                progress.stopping = True
            self.engine.interrupt(job_id, Interrupt.STOP)
        return self.job(job_id)

    def skip(self, job_id: int) -> Job:
        """Leave out the images that are being made, go on with the next ones."""
        job = self.job(job_id)
        if job.state != JobState.RUNNING:
            raise NotNow(f"Job {job_id} is {job.state}; only a running job can skip an image.")
        self.engine.interrupt(job_id, Interrupt.SKIP)
        return job

    def retry(self, job_id: int) -> Job:
        """Queue a failed or cancelled job again. Finished pictures stay; the missing ones are made."""
        job = self.jobs.retry(self.job(job_id).id)
        if job is None:
            raise NotNow(
                f"Job {job_id} is {self.job(job_id).state}; only a failed or cancelled job can be tried again."
            )
        self._wake.set()
        return job

    # How it is done

    def _check_choices(self, request: GenerationRequest) -> None:
        """On the very first start the worker has not said yet what it can do; then it checks by itself."""
        if can := self.capabilities:
            for what, value, choices in (
                ("sampler", request.sampler, can.samplers),
                ("schedule", request.schedule, can.schedules),
            ):
                if value not in choices:
                    raise UnknownChoice(what, value, list(choices))

    def _on_status(self, status: WorkerStatus) -> None:
        log.info("Worker: %s %s", status.state, status.detail)
        if status.state == WorkerState.READY and status.capabilities:
            try:
                self._db.remember("capabilities", status.capabilities.model_dump_json())
            except sqlite3.OperationalError:  # a full disk must not end the worker's keeper
                log.exception("The worker's greeting cannot be kept")
        self.events.changed()

    def _recover(self) -> None:
        """After a crash: what was written counts, what was begun is queued again."""
        for picture in self.jobs.half_saved():
            size = self.outputs.recover(picture.id)
            if size and picture.job and (job := self.jobs.get(picture.job)):
                width, height = size
                text = infotext.dump(job.task, picture.unit or 0, job.model, VERSION)
                self.jobs.saved(picture.model_copy(update={"width": width, "height": height, "infotext": text}))
        self._requeue_orphans()
        self._forget_the_oldest()

    async def _run_forever(self) -> None:
        while True:
            await self.engine.ready()
            self._wake.clear()
            try:
                worked = await self._run_next()
            except Exception:  # a border: whatever it was, as a full disk under the database, the queue goes on later
                log.exception("The queue could not go on")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if not worked:
                    await self._wake.wait()

    async def _run_next(self) -> bool:
        """Run the oldest queued job to its end. False if there is none."""
        self._requeue_orphans()
        if (job := self.jobs.claim()) is None:
            return False
        self.running[job.id] = Progress(job=job.id, task=job.task)
        try:
            await self._run(job)
        except PipelineError as error:
            self.jobs.failed(job.id, type(error).__name__, str(error))
        except asyncio.CancelledError:
            if self.running[job.id].stopping:
                self.jobs.cancelled(job.id)
            else:
                self.jobs.requeue(job.id, CLOSED, to_blame=False)
            raise
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # a border: a bug costs this job, not the queue
            log.exception("Job %s failed", job.id)
            self.jobs.failed(
                job.id, type(error).__name__, f"Something went wrong inside ({error}). The log tells more."
            )
        finally:
            del self.running[job.id]
            self.events.changed()
        self._forget_the_oldest()
        return True

    def _forget_the_oldest(self) -> None:
        self.jobs.prune()
        self.events.prune()

    def _requeue_orphans(self) -> None:
        """Jobs that run in nobody's hands: the application died, or an ending could not be written down."""
        for job_id in self.jobs.unfinished():
            if job_id not in self.running:
                self.jobs.requeue(job_id, CLOSED)

    async def _run(self, job: Job) -> None:
        units = self.jobs.missing(job.id)
        self.running[job.id].begin(units)
        assignment = Assignment(job=job.id, task=job.task, model=job.model, units=units)
        try:
            async with aclosing(self.engine.run(assignment)) as events:
                async for event in events:
                    await self._take(job, event)
        except WorkerDied as error:
            if self.running[job.id].stopping:
                return self.jobs.cancelled(job.id)
            if job.attempts >= ATTEMPTS:
                raise WorkerDied(
                    f"This job has ended the worker {ATTEMPTS} times. Make it smaller, or look into the log."
                ) from error
            self.jobs.requeue(job.id, "The worker ended in the middle of this job. A new one goes on where it stopped.")

    async def _take(self, job: Job, event: Event) -> None:
        """Write down what the worker says."""
        match event:
            case Started():
                if self.running[job.id].stopping:  # the wish came while there was no worker to hear it
                    self.engine.interrupt(job.id, Interrupt.STOP)
            case Step():
                self.running[job.id].take(event)
                self.events.changed()
            case Decoding() | Note():
                self.running[job.id].take(event)
                self.events.changed()
            case Picture():
                self.jobs.saved(await self._save(job, event))
                self.running[job.id].done += 1
            case Skipped():
                self.jobs.skipped(job.id, event.units)
            case Done():
                self.jobs.done(job.id, event.seconds)
            case Stopped():
                self.jobs.cancelled(job.id)
            case Failed():
                self.jobs.failed(job.id, event.error, event.message)

    async def _save(self, job: Job, picture: Picture) -> PictureInfo:
        path = self.jobs.reserved(job.id, picture.unit) or self._next_path(picture.seed)
        self.jobs.reserve(job.id, picture.unit, path)
        text = infotext.dump(job.task, picture.unit, job.model, VERSION)
        width, height = await asyncio.to_thread(self.outputs.write, path, picture.png, text)
        return PictureInfo(
            id=path, width=width, height=height, seed=picture.seed, infotext=text, job=job.id, unit=picture.unit
        )

    def _next_path(self, seed: int) -> str:
        folder = self.outputs.folder()
        if folder not in self._numbers:
            self._numbers = {folder: max(self.outputs.highest_number(folder), self.jobs.highest_number(folder))}
        self._numbers[folder] += 1
        return self.outputs.name(folder, self._numbers[folder], seed)
