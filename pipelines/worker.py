"""The child process of ProcessEngine: orders in, events out, each as one JSON message. Imports no torch itself."""

import gc
import importlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from pipelines.engine import Interrupts, OnStatus, Session
from pipelines.frozen import Frozen
from pipelines.types import Assignment, Event, Interrupt, ModelInfo, WorkerState, WorkerStatus

log = logging.getLogger(__name__)


class Run(Frozen):
    """Work on this. `run` numbers the attempt, so that a late stop never hits the next attempt at the same job."""

    type: Literal["run"] = "run"
    run: int
    assignment: Assignment


class Wish(Frozen):
    type: Literal["wish"] = "wish"
    run: int
    how: Interrupt


class Hint(Frozen):
    """This model is likely to be asked for next."""

    type: Literal["hint"] = "hint"
    model: ModelInfo


class Report(Frozen):
    """What the worker says: about a run, or (`run` 0) about itself."""

    run: int
    event: Annotated[Event | WorkerStatus, Field(discriminator="type")]


Order = Run | Wish | Hint
ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="type")])
Send = Callable[[int, Event | WorkerStatus], None]


def serve(pipe: Connection, boot: str, settings: dict[str, JsonValue]) -> None:
    """The child's life. `boot` names a function `module:name(settings) -> Session`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C goes to the whole group; the parent decides when we end
    runs: queue.Queue[Run] = queue.Queue()
    hints: queue.Queue[Hint] = queue.Queue()
    interrupts = Interrupts()
    threading.Thread(target=_read_orders, args=(pipe, runs, hints, interrupts), daemon=True).start()
    speaking = threading.Lock()

    def send(run: int, event: Event | WorkerStatus) -> None:
        message = Report(run=run, event=event).model_dump_json().encode()
        with speaking:
            pipe.send_bytes(message)

    def report(status: WorkerStatus) -> None:
        send(0, status)

    gc.disable()  # millions of objects that stay: walking them costs a second of the start
    try:
        session = _boot(boot, settings)
    except Exception as error:  # a border: whatever keeps the worker from starting is told to the page
        log.exception("The worker could not start")
        report(WorkerStatus(state=WorkerState.FAILED, detail=f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from error
    report(session.status())
    session.warm(report)
    gc.enable()
    gc.collect()
    gc.freeze()  # and spares every later collection, as at a change of model, 0.2 s
    threading.Thread(target=_follow_hints, args=(session, hints, report), daemon=True).start()
    while True:
        order = runs.get()
        _work(session, order, send, report, interrupts)


def _boot(boot: str, settings: dict[str, JsonValue]) -> Session:
    module, _, name = boot.partition(":")
    session: Session = getattr(importlib.import_module(module), name)(settings)
    return session


def _work(
    session: Session,
    order: Run,
    send: Send,
    report: OnStatus,
    interrupts: Interrupts,
) -> None:
    session.run(
        order.assignment,
        emit=lambda event: send(order.run, event),
        wish=lambda: interrupts.take(order.run),
        report=report,
    )
    interrupts.forget(order.run)


def _follow_hints(session: Session, hints: queue.Queue[Hint], report: OnStatus) -> None:
    """Only the latest counts: a newer one ends the loading for the one before."""
    while True:
        hint = hints.get()
        if hints.empty():
            session.hint(hint.model, lambda: None if hints.empty() else Interrupt.STOP, report)


def _read_orders(pipe: Connection, runs: queue.Queue[Run], hints: queue.Queue[Hint], interrupts: Interrupts) -> None:
    """A wish must be seen while a job runs, a run must wait. The end of the pipe is the end of the parent."""
    while True:
        try:
            order = ORDER.validate_json(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        except ValueError:  # cannot be: both sides are of one version. A worker that hears nothing more is no use
            log.exception("An order cannot be read")
            os._exit(1)
        match order:
            case Wish():
                interrupts.add(order.run, order.how)
            case Hint():
                hints.put(order)
            case Run():
                runs.put(order)
