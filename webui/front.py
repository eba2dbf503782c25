"""The door: a splash page from the first moment, the real application as soon as it is built. ASGI."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

SPLASH = Path(__file__).parent / "splash.html"


class Front:
    def __init__(self, build: Callable[[], Awaitable[Any]]) -> None:
        """`build` gives a Starlette application; it is called once the server listens."""
        self._build = build
        self._app: ASGIApp | None = None
        self._trouble = ""
        self._closing = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http" and scope["path"] == "/healthz":
            await JSONResponse({"ready": self._app is not None, "trouble": self._trouble})(scope, receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1013, "reason": "Inkstone is starting."})
        else:
            await self._not_yet(scope["path"])(scope, receive, send)

    def _not_yet(self, path: str) -> Response:
        headers = {"Retry-After": "1", "Cache-Control": "no-store"}
        if path == "/":
            return HTMLResponse(SPLASH.read_text("utf-8"), headers=headers)
        message = self._trouble or "Inkstone is starting. Ask again in a second."
        return JSONResponse({"error": {"type": "Starting", "message": message}}, 503, headers)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        life = asyncio.create_task(self._live())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._closing.set()
        await life
        await send({"type": "lifespan.shutdown.complete"})

    async def _live(self) -> None:
        """Build the application and keep it open; its start and its end must happen in one task."""
        try:
            app = await self._build()
            async with app.router.lifespan_context(app):
                self._app = app
                await self._closing.wait()
                self._app = None
        except Exception as error:  # a border: the splash page tells why there is no application
            log.exception("Inkstone could not start")
            self._trouble = f"Inkstone could not start: {error}"
