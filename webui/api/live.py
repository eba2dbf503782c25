"""One WebSocket for a page: what happened since it last looked, the present state, and previews.

Text messages are JSON: `hello` (the latest pictures, for a page that knows nothing), `event` (numbered, each once) and
`state` (complete, the latest wins). Binary messages are previews: the job's number in 4 bytes, then a JPEG.
A page that is slow gets fewer states and previews, but every event.
"""

import asyncio
import logging
from typing import Annotated, Any

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect

from webui.studio import Studio

log = logging.getLogger(__name__)

DOWNLOADS = 20
"""So many of the newest are part of the state; GET /api/v1/downloads has them all."""


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.websocket("/live")
    async def live(socket: WebSocket, since: Annotated[int | None, Query(ge=0, lt=2**63)] = None) -> None:
        await socket.accept()
        try:
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(LivePage(studio, socket).serve(since))
                while (await socket.receive())["type"] != "websocket.disconnect":
                    pass  # pages have nothing to say here
                sender.cancel()
        except* (WebSocketDisconnect, RuntimeError):  # the tab was closed while we spoke: starlette says it in two ways
            log.debug("A page went away")

    return router


class LivePage:
    def __init__(self, studio: Studio, socket: WebSocket) -> None:
        self._studio, self._socket = studio, socket
        self._state: dict[str, Any] = {}
        self._frames: dict[int, int] = {}  # job -> number of the preview that was sent last

    async def serve(self, since: int | None) -> None:
        events = self._studio.events
        oldest, newest = events.span()
        seq = since if since is not None and oldest <= since <= newest else newest
        if seq != since:
            pictures = [picture.model_dump(mode="json") for picture in self._studio.jobs.latest_pictures()]
            await self._socket.send_json({"type": "hello", "seq": seq, "pictures": pictures})
        with events.watch() as watcher:
            while True:
                while news := events.since(seq):
                    for event in news:
                        seq = event.seq
                        body = event.model_dump(mode="json", exclude={"seq"})
                        await self._socket.send_json({"type": "event", "seq": seq, "event": body})
                await self._send_state()
                await self._send_previews()
                await watcher.wait()

    async def _send_state(self) -> None:
        running = [progress.public() for progress in self._studio.running.values()]
        worker = self._studio.worker.model_dump(mode="json")
        downloads = [each.model_dump(mode="json") for each in self._studio.downloads.snapshot()[:DOWNLOADS]]
        state = {
            "type": "state",
            "worker": worker,
            "running": running,
            "queued": self._studio.jobs.queued(),
            "downloads": downloads,
            "models": self._studio.models_version,
        }
        if state != self._state:
            self._state = state
            await self._socket.send_json(state)

    async def _send_previews(self) -> None:
        for progress in list(self._studio.running.values()):
            if progress.preview and self._frames.get(progress.job) != progress.frame:
                self._frames[progress.job] = progress.frame
                await self._socket.send_bytes(progress.job.to_bytes(4, "big") + progress.preview)
