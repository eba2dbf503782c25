"""Who may talk to us: browsers that call us by our own name, from our own pages. ASGI, for HTTP and WebSocket.

A local server is reachable by every web page that its user has open: by a form post to 127.0.0.1, by a WebSocket,
which no browser policy covers, and by a host name that suddenly resolves to 127.0.0.1 (DNS rebinding).
"""

from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.allows(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "This page may not connect here."})
        else:
            message = "This address or page may not use Inkstone. Open it by its own address, or set allowed_hosts."
            await JSONResponse({"error": {"type": "Forbidden", "message": message}}, 403)(scope, receive, send)

    def allows(self, headers: Headers) -> bool:
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if _name(host) not in self._hosts:
            return False
        if origin is not None and origin.lower().partition("://")[2] != host:
            return False
        navigates = headers.get("sec-fetch-mode") == "navigate"
        return navigates or headers.get("sec-fetch-site") != "cross-site"


def _name(host: str) -> str:
    """Without the port; IPv6 keeps its brackets."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host
