"""The pages without a browser: what they send, and what their handlers do."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import app
from pipelines.engine import InlineEngine
from pipelines.request import GenerationRequest
from pipelines.types import Capabilities, WorkerStatus
from tests.test_form import PATHS
from webui import ui
from webui.config import Settings
from webui.ui.components import ASSETS, asset

ABLE = Capabilities(
    device="cpu",
    device_name="CPU",
    memory_bytes=1,
    samplers=("DPM++ 2M", "Euler"),
    schedules=("Automatic", "Karras"),
    families=("sd1",),
    versions={},
)
Config = dict[str, Any]


def no_worker() -> Any:
    raise NotImplementedError("these tests start no worker")


class Page:
    """What a tab does: it reads the configuration, and calls handlers by number."""

    def __init__(self, settings: Settings) -> None:
        self.engine = InlineEngine(no_worker)
        self.http = TestClient(app.create_app(settings, self.engine))

    @property
    def config(self) -> Config:
        config: Config = self.http.get("/config").json()
        return config

    def component(self, elem_id: str) -> Config:
        return next(each for each in self.config["components"] if each["props"].get("elem_id") == elem_id)

    def call(self, event: str, data: list[Any], inputs: int = 0, event_data: Any = None) -> Any:
        """Of the handlers in Python of this event, the one with so many inputs."""
        for handler in self.config["dependencies"]:
            if handler["backend_fn"] and handler["targets"][0][1] == event and len(handler["inputs"]) == inputs:
                body = {"fn_index": handler["id"], "data": data, "event_data": event_data, "session_hash": "tab"}
                answer = self.http.post("/gradio_api/run/predict", json=body)
                assert answer.status_code == 200, answer.text
                return dict(zip(handler["outputs"], answer.json()["data"], strict=True))
        raise AssertionError(f"no handler of {event} with {inputs} inputs")

    def form(self, **changes: Any) -> list[Any]:
        """The values of the Generate button's inputs, in its order."""
        by_id = {each["id"]: each["props"] for each in self.config["components"]}
        handler = next(
            each
            for each in self.config["dependencies"]
            if each["backend_fn"] and each["targets"][0] == [self.component("txt2img_generate")["id"], "click"]
        )
        return [
            changes.get(by_id[number]["elem_id"].removeprefix("txt2img_"), by_id[number]["value"])
            for number in handler["inputs"]
        ]

    def generate(self, **changes: Any) -> None:
        data = self.form(**changes)
        self.call("click", data, inputs=len(data))

    def jobs(self) -> list[Config]:
        jobs: list[Config] = self.http.get("/api/v1/jobs").json()
        return jobs


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Page:
    """A page to look at, for the tests that change nothing."""
    return Page(Settings(data_dir=tmp_path_factory.mktemp("data"), models_dir=models))


@pytest.fixture
def page(settings: Settings) -> Page:
    return Page(settings)


@pytest.fixture
def greet(page: Page) -> Callable[[], Any]:
    """The worker says what it can do, and the page hears of it."""

    def greet() -> Any:
        page.engine.status = WorkerStatus(state="ready", detail="CPU", capabilities=ABLE)
        return page.call("greeted", [])

    return greet


def test_no_tab_holds_a_connection(shown: Page) -> None:
    """A browser has six for a host: one gr.State, .unload or .stream would hang the seventh tab."""
    assert shown.config["connect_heartbeat"] is False


def test_nothing_is_told_or_kept(shown: Page) -> None:
    config = shown.config
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert config["footer_links"] == []


def test_nothing_comes_from_another_host(shown: Page) -> None:
    assert not [sheet for sheet in shown.config["stylesheets"] if "//" in sheet]
    css = shown.http.get("/theme.css").text + asset("style.css")
    assert not re.search(r"""@import|url\(["']?(https?:)?//""", css)
    ours = "".join(path.read_text("utf-8") for path in ASSETS.glob("*.js"))
    assert not re.search(r"https?://", ours)


def test_it_stays_small(shown: Page) -> None:
    """What lies in a closed fold is made when that is opened: it costs its description only."""
    config = shown.config
    folds = {each["id"] for each in config["components"] if each["type"] == "accordion"}

    def count(node: Config) -> int:
        return 1 + (0 if node.get("id") in folds else sum(map(count, node.get("children") or [])))

    assert count(config["layout"]) < 150
    assert len(config["components"]) < 400
    assert len(json.dumps(config)) < 400_000


def test_handlers_are_no_second_api(shown: Page) -> None:
    assert {each["api_visibility"] for each in shown.config["dependencies"]} == {"private"}


@pytest.mark.parametrize(
    "elem_id",
    [
        *("tabs", "tab_txt2img", "quicksettings", "setting_sd_model_checkpoint", "txt2img_gallery"),
        *(f"txt2img_{name}" for name in ("prompt", "neg_prompt", "generate", "steps", "cfg_scale", "width", "height")),
        *(f"txt2img_{name}" for name in ("batch_count", "batch_size", "seed", "sampling", "scheduler")),
    ],
)
def test_names_that_scripts_of_a1111_know(shown: Page, elem_id: str) -> None:
    assert shown.component(elem_id)


def test_every_widget_can_be_used_and_has_a_name(shown: Page) -> None:
    kinds = ("textbox", "number", "slider", "dropdown")
    widgets = [each for each in shown.config["components"] if each["type"] in kinds]
    assert len(widgets) > 100  # the fields of test_form.py, and those above the folds
    for each in widgets:
        assert each["props"]["interactive"] is True
        assert each["props"]["label"].startswith("__i18n__")


def test_scripts_cannot_end_early() -> None:
    """A word or a script with a closing tag in it would cut the page's own script short."""
    assert ui.mount_options()["head"].count("</script>") == 1


def test_the_form_shows_what_the_model_likes_best(shown: Page) -> None:
    liked = {
        info["name"]: [info["width"], info["height"], info["cfg_scale"]]
        for info in shown.http.get("/api/v1/models").json()
    }
    model = shown.component("setting_sd_model_checkpoint")["props"]["value"]
    fields = ("width", "height", "cfg_scale")
    assert [shown.component(f"txt2img_{field}")["props"]["value"] for field in fields] == liked[model]
    assert list(shown.call("input", ["starter"], inputs=1).values()) == liked["starter"]


def test_generate_queues_a_job(page: Page) -> None:
    page.generate(prompt="a cat", steps=7, seed=5, batch_count=3)
    (job,) = page.jobs()
    asked = {name: job["task"][name] for name in ("prompt", "steps", "seed", "batch_count", "batch_size", "cfg_scale")}
    assert asked == {"prompt": "a cat", "steps": 7, "seed": 5, "batch_count": 3, "batch_size": 1, "cfg_scale": 7.0}


def test_an_empty_field_means_the_default(page: Page) -> None:
    page.generate(seed=None, batch_count=None)
    assert page.jobs()[0]["task"]["batch_count"] == 1


def test_the_greeting_fills_the_drop_downs_of_all_later_pages(page: Page, greet: Callable[[], Any]) -> None:
    greet()
    for elem_id, names in (("txt2img_sampling", ABLE.samplers), ("txt2img_scheduler", ABLE.schedules)):
        assert [name for name, _ in page.component(elem_id)["props"]["choices"]] == list(names)
    page.generate(sampling="Euler", scheduler="Karras")
    assert page.jobs()[0]["task"]["sampler"] == "Euler"


def test_the_form_outlives_the_tab(page: Page, greet: Callable[[], Any]) -> None:
    greet()
    saved = {"prompt": "kept", "steps": 33, "sampler": "Euler", "width": 101, "model": "gone", "schedule": 3, "?": 1}
    updates = page.call("load", [saved], inputs=1)
    given = {number: update["value"] for number, update in updates.items() if "value" in update}
    ids = [page.component(f"txt2img_{name}")["id"] for name in ("prompt", "steps", "sampling")]
    assert given == dict(zip(ids, ("kept", 33, "Euler"), strict=True)), "what no longer fits keeps its default"


def test_the_settings_of_a_picture_go_back_into_the_form(page: Page, greet: Callable[[], Any]) -> None:
    greet()
    text = "a dog\nNegative prompt: a cat\nSteps: 9, Sampler: Euler, CFG scale: 4.5, Seed: 77, Size: 64x96, Model: gone"
    updates = page.call("wanted", [], event_data={"infotext": text})
    names = ("prompt", "neg_prompt", "steps", "sampling", "cfg_scale", "seed", "width", "height")
    got = [updates[page.component(f"txt2img_{name}")["id"]] for name in names]
    assert got == ["a dog", "a cat", 9, "Euler", 4.5, 77, 64, 96]
    assert updates[page.component("setting_sd_model_checkpoint")["id"]].get("__type__") == "update"
    assert updates[page.component("tabs")["id"]]["selected"] == "txt2img"


def test_inputs_are_named_after_the_request(shown: Page) -> None:
    """The browser's store is keyed by these names, so that a new field never moves the others."""
    saves = [each["js"] for each in shown.config["dependencies"] if "inkstone.form(" in str(each["js"])]
    assert len(saves) == 2, "when the page opens, and at each change"
    for save in saves:
        names = json.loads(re.findall(r"\[.*?\]", save)[0])
        assert {name.partition(".")[0] for name in names} <= GenerationRequest.model_fields.keys()
        assert {*PATHS, "prompt", "model", "seed", "batch_size"} <= set(names)
