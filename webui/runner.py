"""Works off the queue: takes one job after another, gives it to the engine, writes down what comes back."""

import asyncio
import logging
import sqlite3
from contextlib import aclosing
from pathlib import Path

from pipelines import infotext, needs
from pipelines.engine import Engine
from pipelines.errors import PipelineError, WorkerDied
from pipelines.types import (
    Assignment,
    Decoding,
    Done,
    Event,
    Failed,
    Interrupt,
    Note,
    Picture,
    Skipped,
    Started,
    Step,
    Stopped,
)
from webui import VERSION
from webui.events import EventLog
from webui.inputs import Inputs
from webui.jobs import Job, JobStore
from webui.outputs import Outputs, PictureInfo
from webui.progress import Progress
from webui.sheets import sheet

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""A job that has killed so many workers in a row is given up."""

OVERTAKES = 8
"""So many jobs in a row may pass older ones because their checkpoint is loaded already."""

RETRY_SECONDS = 5.0
DIED = "The worker ended in the middle of this job. A new one goes on where it stopped."
CLOSED = "Inkstone was closed in the middle of this job. It goes on where it stopped."


class Runner:
    def __init__(self, engine: Engine, jobs: JobStore, events: EventLog, outputs: Outputs, inputs: Inputs) -> None:
        self.running: dict[int, Progress] = {}
        self._engine, self._jobs, self._events, self._outputs = engine, jobs, events, outputs
        self._inputs = inputs
        self._numbers: dict[str, int] = {}  # folder -> the number that was given last
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._checkpoint: Path | None = None  # of the job that was taken last
        self._overtakes = 0

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run_forever()) for _ in range(self._engine.slots)]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def recover(self) -> None:
        """After a crash: what was written counts, what was begun is queued again."""
        for picture in self._jobs.half_saved():
            size = self._outputs.recover(picture.id)
            if size and picture.job and (job := self._jobs.get(picture.job)):
                width, height = size
                text = infotext.dump(job.task, picture.unit or 0, job.model, VERSION, job.files)
                self._jobs.saved(picture.model_copy(update={"width": width, "height": height, "infotext": text}))
        self._requeue_orphans()
        self._forget_the_oldest()
        self._inputs.forget_unused(self._jobs.pictures_held())

    async def _run_forever(self) -> None:
        while True:
            await self._engine.ready()
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
        if (job := self._claim()) is None:
            return False
        self.running[job.id] = Progress(job=job.id, task=job.task)
        try:
            await self._run(job)
        except PipelineError as error:
            self._jobs.failed(job.id, type(error).__name__, str(error))
        except asyncio.CancelledError:
            if self.running[job.id].stopping:
                self._jobs.cancelled(job.id)
            else:
                self._jobs.requeue(job.id, CLOSED, to_blame=False)
            raise
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # a border: a bug costs this job, not the queue
            log.exception("Job %s failed", job.id)
            self._jobs.failed(
                job.id, type(error).__name__, f"Something went wrong inside ({error}). The log tells more."
            )
        finally:
            del self.running[job.id]
            self._events.changed()
        self._forget_the_oldest()
        return True

    def _claim(self) -> Job | None:
        """The next job. One for the loaded checkpoint goes first, so that a mixed queue does not load all the time;
        but not for ever.
        """
        oldest = self._jobs.oldest_queued()
        job = self._jobs.claim(self._checkpoint if self._overtakes < OVERTAKES else None)
        if job is not None:
            self._overtakes = 0 if job.id == oldest else self._overtakes + 1
            self._checkpoint = job.model.path
        return job

    def _forget_the_oldest(self) -> None:
        self._jobs.prune()
        self._events.prune()

    def _requeue_orphans(self) -> None:
        """Jobs that run in nobody's hands: the application died, or an ending could not be written down."""
        for job_id in self._jobs.unfinished():
            if job_id not in self.running:
                self._jobs.requeue(job_id, CLOSED)

    async def _run(self, job: Job) -> None:
        units = self._jobs.missing(job.id)
        self.running[job.id].begin(units)
        images = await asyncio.to_thread(lambda: {name: self._inputs.data(name) for name in needs.pictures(job.task)})
        asked = tuple(unit for unit in units if unit < job.task.units)
        if not asked:  # only the sheet of a plot is missing
            return await self._take(job, Done(seconds=0))
        assignment = Assignment(job=job.id, task=job.task, model=job.model, units=asked, files=job.files, images=images)
        try:
            async with aclosing(self._engine.run(assignment)) as events:
                async for event in events:
                    await self._take(job, event)
        except WorkerDied as error:
            if self.running[job.id].stopping:
                return self._jobs.cancelled(job.id)
            if job.attempts >= ATTEMPTS:
                raise WorkerDied(
                    f"This job has ended the worker {ATTEMPTS} times. Make it smaller, or look into the log."
                ) from error
            self._jobs.requeue(
                job.id, "The worker ended in the middle of this job. A new one goes on where it stopped."
            )

    async def _take(self, job: Job, event: Event) -> None:
        """Write down what the worker says."""
        match event:
            case Started():
                if self.running[job.id].stopping:  # the wish came while there was no worker to hear it
                    self._engine.interrupt(job.id, Interrupt.STOP)
            case Step() | Decoding():
                self.running[job.id].take(event)
                self._events.changed()
            case Note():
                self.running[job.id].take(event)
                self._jobs.noted(job.id, event.text)
            case Picture():
                self._jobs.saved(await self._save(job, event))
                self.running[job.id].done += 1
            case Skipped():
                self.running[job.id].skip(event.units)
                self._jobs.skipped(job.id, event.units)
            case Done():
                await self._save_sheet(job)
                self._jobs.done(job.id, event.seconds)
            case Stopped():
                self._jobs.cancelled(job.id)
            case Failed():
                self._jobs.failed(job.id, event.error, event.message)

    async def _save(self, job: Job, picture: Picture) -> PictureInfo:
        path = self._jobs.reserved(job.id, picture.unit) or self._next_path(picture.seed)
        self._jobs.reserve(job.id, picture.unit, path)
        # in a thread: it may have to read a LoRA for its hash
        text = await asyncio.to_thread(infotext.dump, job.task, picture.unit, job.model, VERSION, job.files)
        width, height = await asyncio.to_thread(self._outputs.write, path, picture.png, text)
        return PictureInfo(
            id=path, width=width, height=height, seed=picture.seed, infotext=text, job=job.id, unit=picture.unit
        )

    async def _save_sheet(self, job: Job) -> None:
        """Of a plot, when all its images are there."""
        plot, task = job.task.plot, job.task
        if plot is None or task.units not in self._jobs.missing(job.id):
            return
        paths = {unit: self._outputs.root / path for unit, path in self._jobs.paths(job.id).items()}
        png = await asyncio.to_thread(sheet, plot, paths.get)
        self._jobs.saved(await self._save(job, Picture(unit=task.units, seed=task.seed, png=png)))
        self.running[job.id].done += 1

    def _next_path(self, seed: int) -> str:
        folder = self._outputs.folder()
        if folder not in self._numbers:
            self._numbers = {folder: max(self._outputs.highest_number(folder), self._jobs.highest_number(folder))}
        self._numbers[folder] += 1
        return self._outputs.name(folder, self._numbers[folder], seed)
