"""One server and one browser for all of these tests. A page fails its test on any error, and on any outside request."""

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.server import Server

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE = 60_000
"""Milliseconds. Only a hang takes this long: no test measures time."""

Open = Callable[..., Page]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server, None, None]:
    """As after a fresh checkout: no folder given, so the starter model draws."""
    server = Server(tmp_path_factory.mktemp("data"))
    try:
        yield server.until_ready()
    finally:
        server.close()


@pytest.fixture(scope="package")  # not "session": while it is open, no other test can run an event loop in this thread
def browser() -> Iterator[Browser]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(server: Server, browser: Browser) -> Generator[Open, None, None]:
    """Opens a tab of our page and waits until it knows the worker; of one browser, or of a new one with `options`."""
    troubles: list[str] = []
    contexts: list[BrowserContext] = []

    def open_page(context: BrowserContext | None = None, **options: Any) -> Page:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, "locale": "en-US"} | options)
            context.set_default_timeout(PATIENCE)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("console", lambda line: troubles.append(f"console: {line.text}") if line.type == "error" else None)
        page.on("request", lambda request: troubles.extend(outside(request.url, server.url)))
        page.goto(server.url)
        expect(page.locator("#status [data-state]")).to_have_attribute("data-state", "ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def outside(url: str, home: str) -> list[str]:
    own = (home + "/", home.replace("http", "ws") + "/", "data:", f"blob:{home}/")
    return [] if url.startswith(own) else [f"request to another host: {url}"]


@pytest.fixture
def page(open_page: Open) -> Page:
    return open_page()


def fill(page: Page, **values: object) -> None:
    """Type into the form; the names are those of A1111's element ids."""
    for name, value in values.items():
        page.locator(f"#txt2img_{name} :is(textarea, input[type=number])").fill(str(value))


def pictures(server: Server) -> set[Path]:
    return set(server.pictures())
