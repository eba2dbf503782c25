"""The Models page in a browser: what is listed, what is wrong with a file, and how a new one comes."""

import re
from collections.abc import Generator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.checkpoints import save_checkpoint
from tests.e2e.conftest import PATIENCE
from tests.server import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder after some years, and a file that lies elsewhere."""
    import torch

    root = tmp_path_factory.mktemp("collection")
    checkpoints = root / "models" / "Stable-diffusion"
    save_checkpoint(checkpoints / "anime" / "dream.safetensors", "sd1")
    (checkpoints / "login.safetensors").write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    torch.save({"state_dict": {"weight": torch.zeros(8)}}, checkpoints / "old.ckpt")
    save_checkpoint(root / "elsewhere" / "new.safetensors", "sd1", seed=1)
    return root


@pytest.fixture(scope="module")
def house(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server, None, None]:
    server = Server(tmp_path_factory.mktemp("data"), collection / "models")
    try:
        yield server.until_ready()
    finally:
        server.close()


@pytest.fixture
def models(house: Server, browser: Browser) -> Generator[Page, None, None]:
    context = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(house.url)
    expect(page.locator("#status [data-state]")).to_have_attribute("data-state", "ready")
    page.get_by_role("tab", name="Models").click()
    yield page
    context.close()


def row(page: Page, name: str) -> Locator:
    return page.locator("#models tbody tr", has=page.get_by_text(name, exact=True))


def test_all_that_lies_there_is_listed_and_what_is_wrong_is_said(models: Page) -> None:
    expect(row(models, "anime/dream.safetensors")).to_contain_text("SD 1")
    expect(row(models, "login.safetensors")).to_contain_text("download it again")
    models.get_by_role("button", name=re.compile("^Broken")).click()
    expect(models.locator("#models tbody tr")).to_have_count(1)
    models.get_by_role("button", name=re.compile("^All")).click()
    models.get_by_placeholder("Search models").fill("dream")
    expect(models.locator("#models tbody tr")).to_have_count(1)


def test_use_takes_a_checkpoint_to_the_generate_page(models: Page, house: Server) -> None:
    row(models, "anime/dream.safetensors").get_by_role("button", name="Use").click()
    expect(models.locator("#setting_sd_model_checkpoint input")).to_have_value("anime/dream.safetensors")
    expect(models.locator("#txt2img_plan")).to_contain_text(re.compile(r"Needs .*B of .*GB"))
    for name, value in (("width", 64), ("height", 64)):
        models.locator(f"#txt2img_{name} input").fill(str(value))
    models.locator("#txt2img_steps input[type=number]").fill("1")
    models.click("#txt2img_generate")
    expect(models.locator("#txt2img_gallery .ink-about")).to_contain_text("Model: anime/dream.safetensors")


def test_a_path_is_added_and_the_list_shows_it_by_itself(models: Page, collection: Path) -> None:
    models.locator("#models_source").fill(str(collection / "elsewhere" / "new.safetensors"))
    models.get_by_role("button", name="Add", exact=True).click()
    expect(row(models, "new.safetensors")).to_contain_text("SD 1")
    expect(models.locator(".ink-downloads")).to_contain_text("Ready")


def test_a_pickle_is_converted_once(models: Page, collection: Path) -> None:
    row(models, "old.ckpt").get_by_role("button", name="Convert to safetensors").click()
    expect(row(models, "old.safetensors")).to_be_visible()
    assert (collection / "models" / "Stable-diffusion" / "old.ckpt").is_file(), "the original stays"


def test_what_cannot_be_added_is_said(models: Page) -> None:
    models.locator("#models_source").fill("http://127.0.0.1/model.safetensors")
    models.get_by_role("button", name="Add", exact=True).click()
    expect(
        models.locator("#models").get_by_text(re.compile("https|refused|network", re.IGNORECASE)).last
    ).to_be_visible()
