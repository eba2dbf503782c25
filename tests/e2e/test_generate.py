"""The Generate page in a browser."""

import os
import re
import signal

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Open, fill, pictures
from tests.server import Server

pytestmark = pytest.mark.browser

READY = re.compile("Ready")


def test_generate_with_what_is_pre_filled(page: Page, server: Server) -> None:
    before = pictures(server)
    expect(page.locator("#txt2img_prompt textarea")).not_to_have_value("")
    page.click("#txt2img_generate")
    expect(page.locator("#txt2img_gallery .ink-about")).to_contain_text("Steps: 20")
    expect(page.locator("#txt2img_gallery .ink-frame img")).to_have_js_property("naturalWidth", 128)
    (file,) = pictures(server) - before
    picture = page.locator("#txt2img_gallery .ink-frame img")
    expect(picture).to_have_attribute("src", re.compile(rf"/api/v1/images/.*{re.escape(file.name)}$"))
    box = picture.bounding_box()
    assert box is not None
    assert box["width"] > 400, "a small picture is shown enlarged"


def test_a_reload_loses_nothing(page: Page, open_page: Open, server: Server) -> None:
    before = pictures(server)
    fill(page, prompt="a red heart", batch_count=4, steps=60, seed=100)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#txt2img_gallery .ink-live img")).to_be_visible()  # the first preview

    second = open_running(page)
    page.reload()
    for tab in (page, second):
        expect(tab.locator(".ink-progress")).to_contain_text(re.compile(r"Picture \d of 4 · step \d+ of 60"))
        expect(tab.locator("#txt2img_gallery .ink-frame img")).to_have_attribute("src", re.compile("^blob:"))
    expect(page.locator("#txt2img_prompt textarea")).to_have_value("a red heart")
    expect(page.locator("#txt2img_batch_count input")).to_have_value("4")

    for tab in (page, second):
        expect(tab.locator("#txt2img_gallery .ink-strip img")).to_have_count(4, timeout=180_000)
        expect(tab.locator("#status")).to_contain_text(READY)
    assert {file.stem.split("-")[-1] for file in pictures(server) - before} == {"100", "101", "102", "103"}

    page.click("#txt2img_gallery .ink-strip button >> nth=1")
    expect(page.locator("#txt2img_gallery .ink-about")).to_contain_text("Seed: 101")
    page.click("#txt2img_reuse_seed")
    expect(page.locator("#txt2img_seed input")).to_have_value("101")


def open_running(page: Page) -> Page:
    """A second tab, in the middle of a job."""
    tab = page.context.new_page()
    tab.goto(page.url)
    return tab


def test_stop(page: Page, server: Server) -> None:
    before = pictures(server)
    fill(page, steps=150)
    page.click("#txt2img_generate")
    page.click("#txt2img_interrupt")
    expect(page.locator("#status")).to_contain_text(READY)
    expect(page.locator("#txt2img_interrupt")).to_be_hidden()
    assert pictures(server) == before


def test_the_page_says_that_the_worker_died_and_the_job_goes_on(page: Page, server: Server) -> None:
    before = pictures(server)
    fill(page, steps=60, batch_count=2, seed=300)
    page.click("#txt2img_generate")
    expect(page.locator("#txt2img_gallery .ink-live img")).to_be_visible()
    os.kill(server.worker_pid(), signal.SIGKILL)
    expect(page.locator("#txt2img_gallery .ink-notice")).to_contain_text("The worker ended in the middle of this job")
    expect(page.locator("#status")).to_contain_text("The worker died")
    expect(page.locator("#txt2img_gallery .ink-strip img")).to_have_count(2, timeout=180_000)
    expect(page.locator("#status")).to_contain_text(READY)
    assert len(pictures(server) - before) == 2


def test_skip_goes_on_with_the_next_picture(page: Page, server: Server) -> None:
    before = pictures(server)
    fill(page, steps=40, batch_count=2, seed=200)
    page.click("#txt2img_generate")
    expect(page.locator(".ink-progress")).to_contain_text("step")
    page.click("#txt2img_skip")
    expect(page.locator("#txt2img_gallery .ink-about")).to_contain_text("Seed: 201")
    expect(page.locator("#status")).to_contain_text(READY)
    assert [file.stem.split("-")[-1] for file in pictures(server) - before] == ["201"]


def test_a_second_job_waits(page: Page) -> None:
    fill(page, steps=150)
    page.click("#txt2img_generate")
    expect(page.locator("#txt2img_interrupt")).to_be_visible()
    fill(page, steps=1, seed=301)
    page.click("#txt2img_generate")
    expect(page.locator(".ink-queue")).to_have_text("1 waiting")
    page.click("#txt2img_interrupt")
    expect(page.locator("#txt2img_gallery .ink-about")).to_contain_text("Seed: 301")
    expect(page.locator(".ink-queue")).to_be_empty()


def test_a_wrong_size_is_said(page: Page) -> None:
    fill(page, width=100)
    page.click("#txt2img_generate")
    expect(page.locator(".toast-body")).to_contain_text("width: must be a multiple of 8")


def test_swap_and_random(page: Page) -> None:
    fill(page, width=64, height=192, seed=5)
    page.click("#txt2img_res_switch_btn")
    expect(page.locator("#txt2img_width input")).to_have_value("192")
    expect(page.locator("#txt2img_height input")).to_have_value("64")
    page.click("#txt2img_random_seed")
    expect(page.locator("#txt2img_seed input")).to_have_value("-1")


def test_nine_tabs(page: Page, open_page: Open) -> None:
    """Browsers allow six connections to a host: a tab that held one for itself would starve the seventh."""
    tabs = [page, *(open_page(page.context) for _ in range(8))]
    fill(page, steps=3, seed=400)
    page.click("#txt2img_generate")
    for tab in tabs:
        expect(tab.locator("#txt2img_gallery .ink-about")).to_contain_text("Seed: 400")


def test_chinese(open_page: Open) -> None:
    page = open_page(locale="zh-CN")
    expect(page.locator("#txt2img_generate")).to_have_text("生成")
    expect(page.locator("#txt2img_prompt")).to_contain_text("提示词")
    expect(page.locator("#status")).to_contain_text("已就绪")
    expect(page.locator("html")).to_have_attribute("lang", re.compile("^zh"))


def test_a_phone_has_generate_under_the_thumb(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    for name in ("prompt", "generate"):
        box = page.locator(f"#txt2img_{name}").bounding_box()
        assert box is not None
        assert 560 < box["y"] < 844 - box["height"]
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out to the side"


def test_dark_follows_the_system_until_one_chooses(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.click("#status .ink-round")
    expect(page.locator("body")).not_to_have_class(re.compile("dark"))
    page.reload()
    expect(page.locator("#status")).to_contain_text(READY)
    expect(page.locator("body")).not_to_have_class(re.compile("dark"))


def test_a_picture_and_a_mask_are_given_and_a_fold_says_that_it_is_on(page: Page, server: Server) -> None:
    page.click("#txt2img_fold_start > button")
    page.set_input_files("#txt2img_start_image input[type=file]", str(next(iter(server.pictures()))))
    canvas = page.locator("#txt2img_start_mask canvas")
    expect(canvas).to_be_visible()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    bar = page.locator("#txt2img_fold_start > button")
    expect(bar).to_contain_text("Picture · Mask")
    page.click("#txt2img_generate")
    expect(page.locator("#txt2img_gallery .ink-about")).to_contain_text("Denoising strength: 0.75")
    page.click("#txt2img_start_image button:has-text('Remove')")
    expect(bar).not_to_contain_text("Picture ·")


def test_a_result_becomes_the_picture_to_start_from(page: Page) -> None:
    page.click("#txt2img_generate")
    page.click("#txt2img_gallery button:has-text('Start from this')")
    expect(page.locator("#txt2img_fold_start > button")).to_contain_text("Picture")
    page.click("#txt2img_fold_start > button")
    expect(page.locator("#txt2img_start_image img")).to_have_js_property("naturalWidth", 128)
