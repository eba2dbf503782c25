"""The default engine: one child process with the device in it. A crash there costs the image in progress, no more."""

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import threading
from collections.abc import AsyncGenerator

from pydantic import JsonValue

from pipelines.engine import OnStatus, ignore
from pipelines.errors import WorkerDied
from pipelines.types import Assignment, Ending, Event, Interrupt, ModelInfo, WorkerState, WorkerStatus
from pipelines.worker import Hint, Order, Report, Run, Wish, serve

log = logging.getLogger(__name__)

PAUSE_SECONDS = (0.0, 1.0, 3.0, 10.0, 30.0)
"""Before the next worker starts, by how many in a row died before they were ready."""


class ProcessEngine:
    slots = 1

    def __init__(self, boot: str, settings: dict[str, JsonValue]) -> None:
        """`boot` names a function `module:name(settings) -> Session`, called in the child."""
        self.status = WorkerStatus()
        self.on_status: OnStatus = ignore
        self._boot, self._settings = boot, settings
        self._numbers = itertools.count(1)
        self._runs: dict[int, int] = {}  # job -> number of the run that is at it
        self._streams: dict[int, asyncio.Queue[Event | None]] = {}  # run -> its events; None: the worker died
        self._greeted = asyncio.Event()
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the worker, for the log and for tests that kill it."""
        return self._child.pid if self._child else None

    async def start(self) -> None:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_one_alive())

    async def ready(self) -> None:
        await self.start()
        while not self._greeted.is_set():  # a worker may be ready and dead again before a waiter wakes up
            await self._greeted.wait()

    async def run(self, assignment: Assignment) -> AsyncGenerator[Event, None]:
        await self.ready()
        number = next(self._numbers)
        events = self._streams[number] = asyncio.Queue()
        self._runs[assignment.job] = number
        event: Event | None = None
        try:
            self._send(Run(run=number, assignment=assignment))
            while not isinstance(event, Ending):
                event = await events.get()
                if event is None:
                    raise WorkerDied("The worker ended in the middle of this job.")
                yield event
        finally:
            del self._streams[number], self._runs[assignment.job]
            if not isinstance(event, Ending):
                self._send(Wish(run=number, how=Interrupt.STOP))

    def interrupt(self, job: int, how: Interrupt) -> None:
        if job in self._runs:
            self._send(Wish(run=self._runs[job], how=how))

    def hint(self, model: ModelInfo) -> None:
        self._send(Hint(model=model))

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._child is not None:
            await asyncio.to_thread(self._child.stop)

    def _send(self, message: Order) -> None:
        """A worker that is gone hears nothing; its runs learn that from the end of its pipe."""
        if self._child is not None:
            self._child.send(message)

    async def _keep_one_alive(self) -> None:
        failures = 0
        while True:
            if self.status.state == WorkerState.STARTING:
                self._tell(self.status)  # else the page goes on saying how the last one ended
            try:
                # "cold": the one before died, perhaps of the model that it warmed; and its job knows its own
                self._child = Child(self._boot, {**self._settings, "cold": self._child is not None})
            except OSError as error:  # no memory, no process, no file handle is left
                self._tell(WorkerStatus(state=WorkerState.FAILED, detail=f"The worker cannot be started: {error}"))
            else:
                async for report in self._child.reports():
                    self._take(report)
                if self.status.state != WorkerState.FAILED:
                    self._tell(WorkerStatus(state=WorkerState.DIED, detail=self._child.obituary()))
            failures = 0 if self._greeted.is_set() else failures + 1
            self._greeted.clear()
            for events in self._streams.values():
                events.put_nowait(None)
            await asyncio.sleep(PAUSE_SECONDS[min(failures, len(PAUSE_SECONDS) - 1)])

    def _take(self, report: Report) -> None:
        if isinstance(report.event, WorkerStatus):
            if report.event.state == WorkerState.READY:
                self._greeted.set()
            self._tell(report.event)
        elif report.run in self._streams:  # else: the tail of a run that was given up
            self._streams[report.run].put_nowait(report.event)

    def _tell(self, status: WorkerStatus) -> None:
        self.status = status
        try:
            self.on_status(status)
        except Exception:  # a border: whoever listens cannot end the keeper
            log.exception("Nobody could be told of %s", status.state)


class Child:
    """A worker process and the thread that reads from it."""

    def __init__(self, boot: str, settings: dict[str, JsonValue]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, boot, settings), name="worker", daemon=True)
        self._process.start()
        theirs.close()
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()
        threading.Thread(target=self._read, args=(asyncio.get_running_loop(),), daemon=True).start()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def reports(self) -> AsyncGenerator[Report, None]:
        """Everything that the worker says, up to its death."""
        while (report := await self._reports.get()) is not None:
            yield report

    def send(self, message: Order) -> None:
        with contextlib.suppress(OSError):  # it died a moment ago
            self._pipe.send_bytes(message.model_dump_json().encode())

    def obituary(self) -> str:
        """How it ended, in words."""
        self._process.join(1)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
        return f"exit code {code}"

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        report: Report | None = None
        while True:
            try:
                report = Report.model_validate_json(self._pipe.recv_bytes())
            except (
                EOFError,
                OSError,
                ValueError,
            ):  # ValueError: half a message, from a worker that died while speaking
                report = None
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._reports.put_nowait, report)
            if report is None:
                self._process.kill()
                return
