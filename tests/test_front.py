"""The first second: a splash page, honest words to API clients, and the reason if nothing comes of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from webui.front import Front


@asynccontextmanager
async def opened(front: Front) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Drives the ASGI lifespan by hand, as uvicorn does."""
    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    answers: asyncio.Queue[object] = asyncio.Queue()
    life = asyncio.create_task(front({"type": "lifespan"}, messages.get, answers.put))
    messages.put_nowait({"type": "lifespan.startup"})
    await answers.get()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://localhost") as client:
        yield client
    messages.put_nowait({"type": "lifespan.shutdown"})
    await life


def test_from_splash_to_application() -> None:
    async def scenario() -> None:
        ready, log = asyncio.Event(), []

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
            log.append("open")
            yield
            log.append("closed")

        async def build() -> Starlette:
            await ready.wait()
            return Starlette(routes=[Route("/", lambda _: PlainTextResponse("the page"))], lifespan=lifespan)

        async with opened(Front(build)) as client:
            assert "Inkstone" in (await client.get("/")).text
            early = await client.get("/api/v1/status")
            assert (early.status_code, early.headers["retry-after"]) == (503, "1")
            assert "starting" in early.json()["error"]["message"]
            assert (await client.get("/healthz")).json() == {"ready": False, "trouble": ""}
            ready.set()
            await asyncio.sleep(0.01)
            assert (await client.get("/")).text == "the page"
            assert (await client.get("/healthz")).json()["ready"]
        assert log == ["open", "closed"]

    asyncio.run(scenario())


def test_a_start_that_fails_is_told() -> None:
    async def scenario() -> None:
        async def build() -> Starlette:
            raise RuntimeError("the roof is missing")

        async with opened(Front(build)) as client:
            await asyncio.sleep(0.01)
            assert "the roof is missing" in (await client.get("/healthz")).json()["trouble"]
            assert "the roof is missing" in (await client.get("/api/v1/jobs")).json()["error"]["message"]

    asyncio.run(scenario())
