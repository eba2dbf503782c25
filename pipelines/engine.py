"""Where jobs run. The web side sees only this: an async stream of events for each assignment. No torch here."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from pipelines.types import Assignment, Ending, Event, Interrupt, ModelInfo, WorkerStatus

OnStatus = Callable[[WorkerStatus], None]


class Interrupts:
    """The wishes of users about runs, seen by the worker within one step. Safe across threads."""

    def __init__(self) -> None:
        self._wishes: dict[int, Interrupt] = {}
        self._lock = threading.Lock()

    def add(self, run: int, how: Interrupt) -> None:
        with self._lock:
            if self._wishes.get(run) != Interrupt.STOP:
                self._wishes[run] = how

    def take(self, run: int) -> Interrupt | None:
        """The wish about this run. A skip is taken once; a stop stays until `forget`."""
        with self._lock:
            wish = self._wishes.get(run)
            if wish == Interrupt.SKIP:
                del self._wishes[run]
            return wish

    def forget(self, run: int) -> None:
        with self._lock:
            self._wishes.pop(run, None)


class Session(Protocol):
    """One device at work, with torch behind it (`pipelines/session.py`)."""

    def status(self) -> WorkerStatus: ...

    def warm(self, report: OnStatus) -> None:
        """Load the model that is likely to be asked for first, and say so."""
        ...

    def hint(self, model: ModelInfo, wish: Callable[[], Interrupt | None], report: OnStatus) -> None:
        """This model is likely to be asked for next: load it, beside a running job if there is room for both, or at
        least read its file ahead. Called in a thread of its own; never raises.
        """
        ...

    def run(
        self,
        assignment: Assignment,
        emit: Callable[[Event], None],
        wish: Callable[[], Interrupt | None],
        report: OnStatus,
    ) -> None:
        """Always ends with exactly one Ending."""
        ...


class Engine(Protocol):
    slots: int
    """How many jobs may run at once."""
    status: WorkerStatus
    on_status: OnStatus
    """Called in the event loop with every change of the worker's state."""

    async def start(self) -> None:
        """Begin to boot, and return at once. A second call does nothing."""
        ...

    async def ready(self) -> None:
        """Wait until a worker takes jobs."""
        ...

    def run(self, assignment: Assignment) -> AsyncGenerator[Event, None]:
        """Run one assignment up to its Ending. Raises WorkerDied; closing the stream stops the run."""
        ...

    def interrupt(self, job: int, how: Interrupt) -> None:
        """Tell the worker that is at this job."""
        ...

    def hint(self, model: ModelInfo) -> None:
        """This model is likely to be asked for next. The latest hint counts."""
        ...

    async def close(self) -> None: ...


def ignore(_: WorkerStatus) -> None:
    """The `on_status` of an engine that nobody watches yet."""


class InlineEngine:
    """The session in a thread of this process: for tests, and for looking at a job in a debugger."""

    slots = 1

    def __init__(self, boot: Callable[[], Session]) -> None:
        self.status = WorkerStatus()
        self.on_status: OnStatus = ignore
        self._boot = boot
        self._interrupts = Interrupts()
        self._running: set[int] = set()
        self._starting: asyncio.Task[Session] | None = None
        self._hints: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._starting is None:
            self._starting = asyncio.create_task(asyncio.to_thread(self._start))

    async def ready(self) -> None:
        await self._session()

    async def run(self, assignment: Assignment) -> AsyncGenerator[Event, None]:
        session, job = await self._session(), assignment.job
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._running.add(job)

        def emit(event: Event) -> None:
            self._loop.call_soon_threadsafe(events.put_nowait, event)

        work = asyncio.create_task(
            asyncio.to_thread(session.run, assignment, emit, lambda: self._interrupts.take(job), self._report)
        )
        try:
            event: Event | None = None
            while not isinstance(event, Ending):
                event = await events.get()
                yield event
        finally:
            self._interrupts.add(job, Interrupt.STOP)
            await work
            self._running.discard(job)
            self._interrupts.forget(job)

    def interrupt(self, job: int, how: Interrupt) -> None:
        if job in self._running:
            self._interrupts.add(job, how)

    def hint(self, model: ModelInfo) -> None:
        if self._starting is None:
            return

        async def load() -> None:
            session = await self._session()
            await asyncio.to_thread(session.hint, model, lambda: None, self._report)

        self._hints.add(task := asyncio.create_task(load()))
        task.add_done_callback(self._hints.discard)

    async def close(self) -> None:
        await asyncio.gather(*self._hints, return_exceptions=True)
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)

    async def _session(self) -> Session:
        await self.start()
        assert self._starting is not None
        return await asyncio.shield(self._starting)

    def _start(self) -> Session:
        session = self._boot()
        self._report(session.status())
        session.warm(self._report)
        return session

    def _report(self, status: WorkerStatus) -> None:
        self._loop.call_soon_threadsafe(self._tell, status)

    def _tell(self, status: WorkerStatus) -> None:
        self.status = status
        self.on_status(status)
