"""The OpenAPI page in a browser: complete, and from nowhere else."""

import pytest
from playwright.sync_api import Page, expect

from tests.server import Server

pytestmark = pytest.mark.browser


def test_the_api_page_shows_the_api(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/api/docs")
    expect(page.locator("h1, h2").first).to_contain_text("Inkstone")
    expect(page.get_by_text("/api/v1/jobs", exact=True).first).to_be_visible()
