"""The guard: browsers may call us by our own name, from our own pages, and by nothing else."""

import asyncio

import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from webui.config import LOOPBACK
from webui.security import Guard


async def reached(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "reached"})


GUARD = Guard(reached, (*LOOPBACK, "studio.lan"))


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "localhost"}, True),
        ({"host": "[::1]:7860"}, True),
        ({"host": "STUDIO.lan:7860", "origin": "http://studio.lan:7860"}, True),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}, True),
        ({"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
        ({}, False),
        ({"host": "evil.example"}, False),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, False),
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "null"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://[x"}, False),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:9999"}, False),
        ({"host": "127.0.0.1:7860", "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
    ],
)
def test_who_may_enter(headers: dict[str, str], allowed: bool) -> None:
    assert GUARD.allows(Headers(headers)) is allowed


@pytest.mark.parametrize(("kind", "answer"), [("http", "http.response.start"), ("websocket", "websocket.close")])
def test_it_stands_before_http_and_websocket(kind: str, answer: str) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": f"{kind}.connect"}

    for host, first in ((b"evil.example", answer), (b"localhost", "reached")):
        sent.clear()
        asyncio.run(GUARD({"type": kind, "headers": [(b"host", host)]}, receive, send))
        assert sent[0]["type"] == first
