"""The Gallery page in a browser."""

import re

import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, expect

from tests.e2e.conftest import fill
from tests.server import Server

pytestmark = pytest.mark.browser

MANY = 350


@pytest.fixture(scope="module")
def album(server: Server) -> None:
    """More pictures than a page of the API holds, one of them with a strange name."""
    folder = server.data / "outputs" / "2001-01-01"
    folder.mkdir(parents=True)
    for number in range(MANY):
        PIL.Image.new("RGB", (32, 32), (number % 256, 90, 120)).save(folder / f"{number:05}-{number}.png")
    text = PngInfo()
    text.add_text("parameters", "<b>a dog</b>\nSteps: 9, Sampler: Euler, CFG scale: 4.5, Seed: 77, Size: 64x96")
    PIL.Image.new("RGB", (64, 96), "teal").save(folder / "my dog #1 100%.png", pnginfo=text)


@pytest.mark.usefixtures("album")
def test_pictures_and_their_dialog(page: Page) -> None:
    fill(page, prompt="a tree", steps=2, seed=500)
    page.click("#txt2img_generate")
    expect(page.locator("#txt2img_gallery .ink-about")).to_contain_text("Seed: 500")
    page.click("#tab_gallery-button")
    expect(page.locator(".ink-tile img").first).to_have_js_property("complete", True)
    page.click(".ink-tile >> nth=0")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Seed: 500")
    page.keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("my dog #1 100%.png")
    expect(dialog).to_contain_text("<b>a dog</b>")  # as text: what files say is never markup
    expect(dialog.locator("img")).to_have_js_property("naturalHeight", 96)
    page.keyboard.press("ArrowLeft")
    expect(dialog).to_contain_text("Seed: 500")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


@pytest.mark.usefixtures("album")
def test_settings_of_a_picture_go_back_into_the_form(page: Page) -> None:
    page.click("#tab_gallery-button")
    page.get_by_role("button", name="my dog").click()
    page.get_by_role("button", name="Use these settings").click()
    for name, value in (("prompt", "<b>a dog</b>"), ("steps", "9"), ("seed", "77"), ("height", "96")):
        field = page.locator(f"#txt2img_{name} :is(textarea, input[type=number])")
        expect(field).to_have_value(value)
        expect(field).to_be_visible()


@pytest.mark.usefixtures("album")
def test_scrolling_never_ends_and_draws_little(page: Page) -> None:
    page.click("#tab_gallery-button")
    count = page.locator("#gallery p").first
    expect(count).to_have_text(re.compile(r"\d+ pictures"))
    total = int(count.inner_text().split()[0])
    assert total > MANY
    oldest = page.get_by_role("button", name="2001-01-01/00000-0.png")
    for _ in range(100):
        page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
        page.wait_for_timeout(50)
        if oldest.count():
            break
    expect(oldest).to_be_visible()
    assert page.locator(".ink-tile").count() < total / 2


@pytest.mark.usefixtures("album")
def test_a_new_picture_appears_by_itself(page: Page, server: Server) -> None:
    page.click("#tab_gallery-button")
    expect(page.locator(".ink-tile").first).to_be_visible()
    server.submit(prompt="a house", steps=2, seed=600)
    expect(page.get_by_role("button", name="a house").first).to_be_visible()
