"""The one object that pages and APIs talk to: submit, cancel, look. The queue itself is worked off in runner.py."""

import asyncio
import contextlib
import logging
import sqlite3
from pathlib import Path

from pydantic import ValidationError

from pipelines.engine import Engine
from pipelines.errors import ModelNotFound, PipelineError
from pipelines.library.watcher import Watcher
from pipelines.request import GenerationRequest
from pipelines.types import Capabilities, Format, Interrupt, Kind, ModelInfo, WorkerState, WorkerStatus
from webui.arrivals import Arrivals
from webui.convert import converted
from webui.db import Database
from webui.downloads import Downloads, DownloadState
from webui.estimates import Estimate, estimate
from webui.events import EventLog
from webui.jobs import Job, JobState, JobStore
from webui.outputs import Outputs
from webui.progress import Progress
from webui.resolve import Resolved, Resolver, seeded
from webui.runner import Runner

log = logging.getLogger(__name__)


class JobNotFound(PipelineError): ...


class NotNow(PipelineError):
    """The job is in a state in which this cannot be done."""


class Studio:
    def __init__(
        self,
        engine: Engine,
        db: Database,
        resolver: Resolver,
        outputs: Outputs,
        downloads: Downloads,
    ) -> None:
        self.engine, self.outputs, self.downloads = engine, outputs, downloads
        self.registry, self.inputs = resolver.registry, resolver.inputs
        self.models_version = 0
        """Counts the changes of the models folders, so that pages know when to look again."""
        self._db, self._resolver = db, resolver
        self.events = EventLog(db)
        self.jobs = JobStore(db, self.events)
        self._runner = Runner(engine, self.jobs, self.events, outputs, self.inputs)
        self._arrivals = Arrivals(self.jobs, self.registry, downloads, self.resolve)
        self._watcher = Watcher(self.registry)
        self._told: tuple[str, str] = ("", "")
        self._converting: set[Path] = set()
        self._states: dict[int, DownloadState] = {}

    async def __aenter__(self) -> "Studio":
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._runner.recover)
        self.registry.on_change = self.models_changed
        self._watcher.start()
        await self.downloads.start()
        self._unblock()  # a model may have arrived while nobody looked
        self.engine.on_status = self._on_status
        self._on_status(self.engine.status)  # it may have been ready before anyone listened
        await self.engine.start()
        self._runner.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watcher.close()
        await self.downloads.close()
        await self._runner.close()
        await self.engine.close()

    # What is there

    @property
    def running(self) -> dict[int, Progress]:
        return self._runner.running

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
        return self._resolver.default_model()

    def job(self, job_id: int) -> Job:
        if job := self.jobs.get(job_id):
            return job
        raise JobNotFound(f"There is no job {job_id}.")

    # What can be done

    async def submit(self, request: GenerationRequest) -> Job:
        """Freeze the request and queue it. It is on the disk when this returns.

        If its model is still being downloaded, it waits for that, blocked.
        """
        request = await asyncio.to_thread(self._resolver.pictures, request)
        try:
            resolved = self.resolve(request)
        except ModelNotFound:
            if (awaited := self._arrivals.on_its_way(request)) is None:
                raise
            name = request.model or awaited.name
            model = ModelInfo(name=name, family="", path=Path(name), size_bytes=0)
            return self.jobs.add(Resolved(seeded(request), model, {}), awaited.id)
        job = self.jobs.add(resolved)
        self._db.remember("last_model", resolved.model.name)
        self._db.remember("warm", resolved.model.model_dump_json())  # what a new worker loads first
        self._runner.wake()
        return job

    def resolve(self, request: GenerationRequest) -> Resolved:
        """What would be frozen in a job. Raises PipelineError."""
        return self._resolver(request, self.capabilities)

    async def cancel(self, job_id: int) -> Job:
        """A running job stops within one step and keeps its finished pictures."""
        job = self.job(job_id)
        if job.state in (JobState.QUEUED, JobState.BLOCKED):
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
        self._unblock()
        return job

    # Models

    def estimate(self, request: GenerationRequest) -> Estimate:
        """What this picture would need, before it is asked for."""
        resolved = self.resolve(request)
        return estimate(self._db, resolved.task, resolved.model, self.capabilities, self.worker)

    def hint(self, name: str) -> None:
        """This checkpoint was chosen: the worker may load it before the first job asks for it."""
        model = self.registry.get(name)
        self.engine.hint(model.model_copy(update={"companions": self.registry.companions(model)}))

    async def convert(self, kind: Kind, name: str) -> ModelInfo:
        """A safetensors file beside a pickled one. In a process of its own: it needs torch, and memory for a while."""
        info = next((each for each in self.registry.all(kind) if each.name == name), None)
        if info is None:
            raise ModelNotFound(f"There is no {kind} file named {name!r}. Refresh the list.")
        if info.format != Format.PICKLE:
            raise NotNow(f"{info.name} is no pickle: there is nothing to convert.")
        if info.path in self._converting:
            raise NotNow(f"{info.name} is being converted already.")
        self._converting.add(info.path)
        try:
            made = await converted(info.path)
        finally:
            self._converting.discard(info.path)
        await asyncio.to_thread(self.registry.scan)
        if found := next((each for each in self.registry.models() if each.path == made), None):
            return found
        raise NotNow(f"{made} was written, but a file of the same name in an earlier folder hides it.")

    def models_changed(self) -> None:
        """Files came or went: pages look again, jobs may have got what they waited for. Called in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: Inkstone ends
            self._loop.call_soon_threadsafe(self._look_again)

    def downloads_changed(self) -> None:
        """Something is new in the list of downloads; mostly it is only how far they are."""
        states = {each.id: each.state for each in self.downloads.snapshot()}
        if states != self._states:
            self._states = states
            self._unblock()
        self.events.changed()

    # How it is done

    def _look_again(self) -> None:
        self.models_version += 1
        self._unblock()
        self.events.changed()

    def _unblock(self) -> None:
        self._arrivals.look()
        self._runner.wake()

    def _on_status(self, status: WorkerStatus) -> None:
        if (status.state, status.detail) != self._told:  # while it loads it says so ten times a second
            self._told = (status.state, status.detail)
            log.info("Worker: %s %s", *self._told)
        if status.state == WorkerState.READY and status.capabilities:
            try:
                self._db.remember("capabilities", status.capabilities.model_dump_json())
            except sqlite3.OperationalError:  # a full disk must not end the worker's keeper
                log.exception("The worker's greeting cannot be kept")
        self.events.changed()
