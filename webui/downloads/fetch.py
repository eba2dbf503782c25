"""One resumable transfer: from an address, or a path on this machine, to a verified `.part` file."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from webui.downloads.folders import gigabytes, readable
from webui.downloads.part import BLOCK, Part
from webui.downloads.types import DownloadFailed, Rules, TryLater, Wanted
from webui.downloads.web import Patience, Web

BUFFER = 2**20
PROGRESS_BYTES = 2**20
"""A connection that brought so much was worth it: failures are counted anew."""

RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True)
class Reports:
    """How a transfer tells its owner."""

    received: Callable[[int, int | None], None]
    """Bytes of this file on the disk, and how many it will be."""

    say: Callable[[str], None]
    validator: Callable[[str], None]
    """To be remembered for the next start: by this the server knows whether the file is still the same."""

    room: Callable[[int], None]
    """Raises NoRoom if so many more bytes do not fit."""


class Transfer:
    def __init__(self, web: Web, rules: Rules, wanted: Wanted, path: Path, reports: Reports) -> None:
        self._web, self._rules, self._wanted, self._reports = web, rules, wanted, reports
        self._part = Part(path)
        self._validator = ""
        self._total = wanted.size
        self._resumed = False

    async def run(self, validator: str) -> str:
        """Fetch what is missing and verify the whole; its SHA-256. Raises DownloadFailed, NoRoom.

        When it is cancelled or fails, what has come lies in the `.part` file, unless it was wrong.
        """
        self._validator = validator
        try:
            if (problem := await self._once()) and self._resumed:
                problem = await self._once()  # what lay there may have been of another file, or damaged
        except OSError as error:
            raise readable(error, self._part.path) from error
        if problem:
            raise problem
        return self._part.sha256

    async def _once(self) -> DownloadFailed | None:
        """Go on from what is there, to the end. What was wrong with the result, if anything; then it is deleted."""
        self._part = Part(self._part.path)
        try:
            await asyncio.to_thread(self._part.open)
            await self._read_old()
            self._resumed = self._part.size > 0
            await self._fetch()
        finally:
            await asyncio.shield(asyncio.to_thread(self._part.close))
        problem = await asyncio.to_thread(self._problem)
        if problem:
            self._part.path.unlink(missing_ok=True)
            self._remember("")
        return problem

    async def _read_old(self) -> None:
        if self._part.path.stat().st_size:
            self._reports.say("Checking what has come already.")
        while await asyncio.to_thread(self._part.read_on):
            pass
        too_long = self._wanted.size is not None and self._part.size > self._wanted.size
        uncertain = not (self._validator or self._wanted.sha256)
        if self._part.size and (too_long or uncertain):
            await self._restart()
        self._reports.say("")
        self._report()

    async def _fetch(self) -> None:
        patience = Patience(self._rules, self._reports.say)
        attempt = self._from_disk if self._wanted.url.startswith("file:") else self._over_http
        while self._part.size == 0 or self._part.size != self._wanted.size:
            before = self._part.size
            try:
                await attempt()
            except TryLater as error:
                if self._part.size - before >= PROGRESS_BYTES:
                    patience.reset()
                await patience.wait(error)
            else:
                return

    async def _over_http(self) -> None:
        offset = self._part.size
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and self._validator:
            headers["If-Range"] = self._validator
        async with self._web.open(self._wanted.url, headers) as response:
            if not await self._begin(response, offset):
                return
            self._reports.say("")
            async with self._buffered() as buffer:
                async for chunk in response.aiter_raw():
                    await self._take(buffer, chunk)
        if self._total is not None and self._part.size < self._total:
            raise self._short(response.url.host)

    async def _begin(self, response: httpx.Response, offset: int) -> bool:
        """Look at the answer's head. False if nothing is left to fetch. Raises DownloadFailed, TryLater, NoRoom."""
        start, total = span(response)
        if response.status_code == 416:
            if total == self._part.size:
                return False
            await self._restart()
            raise TryLater(f"{response.url.host} has a shorter file now, so it is fetched from the start.", 0)
        if response.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
            raise page(response.url.host)
        if response.status_code == 206 and start != offset:
            await self._restart()
            raise TryLater(f"{response.url.host} sends another part than asked for.", 0 if offset else None)
        if response.status_code == 200 and offset:  # it cannot resume, or the file has changed
            await self._restart()
        if None not in (total, self._wanted.size) and total != self._wanted.size:
            raise DownloadFailed(
                f"{response.url.host} offers {total} bytes where {self._wanted.size} are listed, so this is another "
                "file. Try again later, or take another source."
            )
        self._total = total if total is not None else self._wanted.size
        self._remember(strong_validator(response))
        self._reports.room((self._total or 0) - self._part.size)
        self._report()
        return True

    async def _from_disk(self) -> None:
        source = Path(url2pathname(urlsplit(self._wanted.url).path))
        with source.open("rb") as file:
            file.seek(self._part.size)
            self._reports.room((self._total or 0) - self._part.size)
            while block := await asyncio.to_thread(file.read, BLOCK):
                await asyncio.to_thread(self._part.write, block)
                self._report()
        if self._part.size != self._total:
            raise DownloadFailed(f"{source} has changed while it was copied. Try again when nobody writes to it.")

    @asynccontextmanager
    async def _buffered(self) -> AsyncIterator[bytearray]:
        """Whatever ends the reading, what has come is written."""
        buffer = bytearray()
        try:
            yield buffer
        finally:
            await self._write(buffer)

    async def _take(self, buffer: bytearray, chunk: bytes) -> None:
        buffer += chunk
        if self._total is not None and self._part.size + len(buffer) > self._total:
            raise DownloadFailed("The server sends more than it had promised. Take another source.")
        if len(buffer) >= BUFFER:
            await self._write(buffer)
        else:
            self._report(len(buffer))

    async def _write(self, buffer: bytearray) -> None:
        data = bytes(buffer)
        buffer.clear()
        await asyncio.to_thread(self._part.write, data)
        self._report()

    async def _restart(self) -> None:
        await asyncio.to_thread(self._part.restart)
        self._remember("")

    def _remember(self, validator: str) -> None:
        if validator != self._validator:
            self._validator = validator
            self._reports.validator(validator)

    def _report(self, buffered: int = 0) -> None:
        self._reports.received(self._part.size + buffered, self._total)

    def _short(self, host: str) -> TryLater:
        return TryLater(f"{host} broke off after {gigabytes(self._part.size)} of {gigabytes(self._total or 0)}.")

    def _problem(self) -> DownloadFailed | None:
        wanted, part = self._wanted, self._part
        if part.is_page():
            return page(urlsplit(wanted.url).hostname or "The source")
        if wanted.size is not None and part.size != wanted.size:
            return DownloadFailed(
                f"{part.size} bytes came where {wanted.size} are listed, so it was deleted. Take another source."
            )
        if wanted.sha256 and part.sha256 != wanted.sha256:
            return DownloadFailed(
                f"The file is damaged or another one: its SHA-256 is {part.sha256} instead of {wanted.sha256}, so it "
                "was deleted. Press Resume to fetch it again; if that does not help, take another source."
            )
        return None


def page(host: str) -> DownloadFailed:
    return DownloadFailed(
        f"{host} sends a web page instead of a model. Open the address in a browser: it may ask you to sign in, or the "
        "file has moved. Give the address of the file itself."
    )


def span(response: httpx.Response) -> tuple[int, int | None]:
    """Where the body starts in the file, and how long the whole file is, as far as the server says."""
    if response.status_code == 200:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isdecimal() else None
    match = RANGE.fullmatch(response.headers.get("content-range", "").strip())
    if match is None:
        return -1, None
    start, _, total = match.groups()
    return int(start or -1), int(total) if total != "*" else None


def strong_validator(response: httpx.Response) -> str:
    """For If-Range: weak tags are not allowed there (RFC 9110, 13.1.5)."""
    tag: str = response.headers.get("etag", "")
    if tag.startswith('"'):
        return tag
    modified: str = response.headers.get("last-modified", "")
    return modified
