"""Downloads: add, pause, resume, cancel; a few run at once; all of it survives a restart. Lives in the event loop."""

import asyncio
import logging
import re
import sqlite3
import time
from pathlib import Path, PurePosixPath

from pipelines.errors import PipelineError
from pipelines.types import Kind
from webui.db import Database
from webui.downloads.delivery import Delivery, Hooks, Kit
from webui.downloads.folders import FOLDERS, discard, readable, safe_name
from webui.downloads.meter import Meter
from webui.downloads.sources import first_name, parse, shown
from webui.downloads.store import DownloadStore
from webui.downloads.tokens import Tokens
from webui.downloads.types import (
    UNFINISHED,
    BadSource,
    Download,
    DownloadInfo,
    DownloadNotFound,
    DownloadNotNow,
    DownloadState,
    Mode,
    NoRoom,
    Rules,
    file_of,
)
from webui.downloads.web import Web

log = logging.getLogger(__name__)

SHA256 = re.compile(r"[0-9a-f]{64}")
LOST = "Its state could not be written down; perhaps the disk is full. Press Resume."


class Downloads:
    def __init__(self, db: Database, models_dir: Path, tokens: Tokens, rules: Rules, hooks: Hooks) -> None:
        self.tokens = tokens
        self._store, self._rules, self._hooks = DownloadStore(db), rules, hooks
        self._models_dir = models_dir.absolute()
        self._kit = Kit(self._models_dir, Web(rules, tokens, hooks.resolve), rules, self._store, hooks)
        self._running: dict[int, asyncio.Task[None]] = {}
        self._meters: dict[int, Meter] = {}
        self._told = 0.0
        self._open = False

    async def start(self) -> None:
        """Go on with what ran or waited when Inkstone ended."""
        self._store.requeue()
        self._store.prune()
        self._open = True
        self._fill()

    async def close(self) -> None:
        """Stop the transfers; they go on at the next start."""
        self._open = False
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._kit.web.aclose()

    # What is there

    def list(self) -> tuple[DownloadInfo, ...]:
        """Newest first."""
        return tuple(map(self._info, self._store.all()))

    snapshot = list

    def get(self, number: int) -> DownloadInfo:
        return self._info(self._row(number))

    def waiting_for(self, name: str) -> DownloadInfo | None:
        """The download that may still bring the model of this name; paused and failed ones too: look at the state."""
        wanted = name.casefold()
        for download in reversed(self._store.unfinished()):
            own = {download.name, PurePosixPath(download.name).stem, download.source}
            if wanted in {text.casefold() for text in own}:
                return self._info(download)
        return None

    # What can be done

    async def add(
        self,
        source: str,
        kind: Kind | None = None,
        name: str | None = None,
        sha256: str | None = None,
        mode: Mode = "auto",
    ) -> DownloadInfo:
        """Queue a download, or go on with the one that was asked for in the same way before. Raises BadSource."""
        parsed = parse(source, self._rules)
        if kind is not None and kind not in FOLDERS:
            raise BadSource(f"A model cannot be added as {kind}. Choose another kind, or leave it open.")
        sha256 = (sha256 or "").strip().lower().removeprefix("sha256:") or None
        if sha256 and not SHA256.fullmatch(sha256):
            raise BadSource("A SHA-256 has 64 digits from 0 to 9 and a to f.")
        wished = safe_name(name) if name and name.strip() else None
        for other in self._store.unfinished():
            if (other.source, other.asked_name, other.asked_sha256) != (parsed.text, wished, sha256):
                continue
            if other.state != DownloadState.FAILED:
                return self._info(other)
            if kind in (None, other.kind) and mode == other.mode:
                return await self.resume(other.id)
        first = wished or first_name(parsed)
        number = self._store.add(parsed.text, first, (wished, sha256), kind, mode)
        self._fill()
        self._changed(now=True)
        return self.get(number)

    async def pause(self, number: int) -> DownloadInfo:
        self._expect(number, "paused", DownloadState.QUEUED, DownloadState.RUNNING)
        return await self._stop(number, DownloadState.PAUSED)

    async def resume(self, number: int) -> DownloadInfo:
        """Go on with a paused download, or try a failed or cancelled one again."""
        lost = self.get(number).message == LOST
        if not lost:
            states = (DownloadState.PAUSED, DownloadState.FAILED, DownloadState.CANCELLED)
            self._expect(number, "resumed", *states)
        if self._row(number).state in (DownloadState.FAILED, DownloadState.CANCELLED):
            self._store.set_plan(number, None, None, None)  # the source may list another file by now
        self._store.set_state(number, DownloadState.QUEUED)
        self._fill()
        self._changed(now=True)
        return self.get(number)

    async def cancel(self, number: int) -> DownloadInfo:
        """Stop for good and delete what has come."""
        download = self._expect(number, "cancelled", *UNFINISHED)
        info = await self._stop(number, DownloadState.CANCELLED)
        if info.state == DownloadState.CANCELLED:
            await asyncio.to_thread(self._discard, self._row(download.id))
            self._store.set_received(number, 0, info.total)
        return self.get(number)

    async def remove(self, number: int) -> None:
        """Take it off the list; one that is not finished is cancelled first. A finished model stays."""
        if self._row(number).state in UNFINISHED:
            await self.cancel(number)
        self._store.delete([number])
        self._changed(now=True)

    # How it is done

    def _fill(self) -> None:
        """Start what may run."""
        while self._open and len(self._running) < self._rules.parallel and (download := self._store.next()):
            self._store.set_state(download.id, DownloadState.RUNNING)
            self._meters[download.id] = Meter(download.received, download.total)
            task = asyncio.create_task(self._run(download))
            self._running[download.id] = task
            task.add_done_callback(lambda task, number=download.id: self._ended(number, task))  # type: ignore[misc]

    async def _run(self, download: Download) -> None:
        meter = self._meters[download.id]
        state, message = DownloadState.DONE, ""
        try:
            path = await Delivery(self._kit, download, meter, self._changed).run()
            await asyncio.to_thread(self._hooks.on_done, path)
        except NoRoom as error:
            state, message = DownloadState.PAUSED, str(error)
        except PipelineError as error:
            state, message = DownloadState.FAILED, str(error)
        except OSError as error:
            problem = readable(error, Path(error.filename or self._models_dir))
            state = DownloadState.PAUSED if isinstance(problem, NoRoom) else DownloadState.FAILED
            message = str(problem)
        finally:
            self._store.set_received(download.id, meter.received, meter.total)
        log.info("Download %s, %s: %s %s", download.id, download.name, state, message)
        self._store.set_state(download.id, state, message)

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        del self._running[number], self._meters[number]
        if not task.cancelled() and (error := task.exception()):
            log.error("Download %s went wrong", number, exc_info=error)
        try:
            self._fill()
        except sqlite3.OperationalError:  # a full disk; whoever adds or resumes one will be told
            log.exception("The next download could not be started")
        self._changed(now=True)

    async def _stop(self, number: int, state: DownloadState) -> DownloadInfo:
        """It may have ended by itself in the meantime; then that holds."""
        if task := self._running.get(number):
            task.cancel()
            await asyncio.wait([task])
        overruled = {DownloadState.QUEUED, DownloadState.RUNNING}
        if state == DownloadState.CANCELLED:
            overruled |= {DownloadState.PAUSED, DownloadState.FAILED}
        if self._row(number).state in overruled:
            self._store.set_state(number, state)
        self._changed(now=True)
        return self.get(number)

    def _discard(self, download: Download) -> None:
        shared = {other.target for other in self._store.unfinished() if other.id != download.id}
        if download.target and download.target not in shared:
            target = file_of(self._models_dir, download.target)
            discard(target.with_name(f"{target.name}.part"))

    def _row(self, number: int) -> Download:
        if download := self._store.get(number):
            return download
        raise DownloadNotFound(f"There is no download {number}.")

    def _expect(self, number: int, done: str, *states: DownloadState) -> Download:
        download = self._row(number)
        if download.state not in states:
            raise DownloadNotNow(f"Download {number} is {download.state}, so it cannot be {done}.")
        return download

    def _info(self, download: Download) -> DownloadInfo:
        info = DownloadInfo(
            id=download.id,
            source=shown(download.source),
            name=download.name,
            kind=download.kind,
            state=download.state,
            received=download.received,
            total=download.total,
            message=download.message,
        )
        if download.state != DownloadState.RUNNING:
            return info
        if meter := self._meters.get(download.id):
            live = {
                "received": meter.received,
                "total": meter.total,
                "message": meter.message,
                "bytes_per_second": meter.bytes_per_second,
                "seconds_left": meter.seconds_left,
            }
            return info.model_copy(update=live)
        # Nobody runs it: the disk was too full to write down its end
        return info.model_copy(update={"state": DownloadState.PAUSED, "message": LOST})

    def _changed(self, now: bool = False) -> None:
        if now or time.monotonic() - self._told >= self._rules.progress_seconds:
            self._told = time.monotonic()
            self._hooks.on_change()
