"""The native API over the whole application, with a real session on a tiny model in this process."""

import base64
import contextlib
import io
import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from app import create_app
from pipelines.engine import InlineEngine
from webui.config import Settings

DEEP: Any = 0
for _ in range(210):
    DEEP = [DEEP]

ADDRESS = "http://localhost"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def client(data: Path, models: Path) -> Generator[TestClient, None, None]:
    from tests.tiny import boot

    settings = Settings(data_dir=data, models_dir=models, device="cpu", no_browser=True)
    app = create_app(settings, InlineEngine(lambda: boot({"warm": str(models / "tiny"), "step_seconds": 0.05})))
    with TestClient(app, base_url=ADDRESS) as client:
        wait_for(lambda: client.get("/api/v1/status").json()["worker"]["state"] == "ready")
        wait_for(lambda: all(model["sha256"] for model in client.get("/api/v1/models").json()))  # computed beside
        yield client


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def submit(client: TestClient, **request: Any) -> int:
    answer = client.post("/api/v1/jobs", json={"model": "tiny", "steps": 2, **request})
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


def job(client: TestClient, number: int) -> dict[str, Any]:
    body: dict[str, Any] = client.get(f"/api/v1/jobs/{number}").json()["job"]
    return body


def finished(client: TestClient, number: int) -> dict[str, Any]:
    wait_for(lambda: job(client, number)["state"] in ("done", "failed", "cancelled"))
    return job(client, number)


def test_a_job_from_submit_to_picture(client: TestClient, data: Path) -> None:
    done = finished(client, submit(client, prompt="a {x|x}", seed=7, batch_count=2))
    assert done["state"] == "done", done
    assert done["task"]["prompt"] == "a x", "the wildcards extension saw it"
    assert (done["task"]["width"], done["task"]["height"]) == (64, 64), "the model's own size"
    assert [picture["seed"] for picture in done["pictures"]] == [7, 8]
    for picture in done["pictures"]:
        answer = client.get(picture["url"])
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (data / "outputs" / picture["id"]).read_bytes() == answer.content
        with PIL.Image.open(io.BytesIO(answer.content)) as image:
            assert image.info["parameters"] == picture["infotext"]
            assert "Model hash: " in picture["infotext"]
        thumbnail = client.get(picture["thumbnail"])
        assert thumbnail.headers["content-type"] == "image/webp"
        info = client.get(f"/api/v1/image-info/{picture['id']}").json()
        assert info["infotext"] == picture["infotext"]
    listed = client.get("/api/v1/images", params={"limit": 1}).json()
    assert listed["images"][0]["id"] == done["pictures"][-1]["id"]
    assert listed["next"]


def test_an_open_seed_is_drawn_and_frozen(client: TestClient) -> None:
    seeds = {client.post("/api/v1/jobs", json={"model": "tiny", "steps": 1}).json()["task"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert min(seeds) >= 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"width": 65}, "width: must be a multiple of 8"),
        ({"height": 5000}, "height: must be a multiple of 8"),
        ({"sampler": "nope"}, "Choose one of: DPM++ 2M, "),
        ({"schedule": "nope"}, "Choose one of: Automatic"),
        ({"model": "nope"}, "There are: tiny, starter"),
        ({"steps": 0}, "steps: "),
        ({"batch_size": 17}, "batch_size: "),
        ({"seed": -2}, "seed: "),
        ({"prompt": "x" * 10_000_000}, "prompt: string should have at most 20000 characters"),
        ({"prompt": 5}, "prompt: "),
        ({"stepz": 5}, "stepz: "),
        ({"extras": {"a": DEEP}}, "extras: must be text and numbers, nested at most 100 deep"),
        ([], "The body: "),
    ],
)
def test_bad_input_is_named_in_a_sentence(client: TestClient, body: Any, words: str) -> None:
    answer = client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]
    assert len(answer.content) < 2000, "the input is not sent back"


@pytest.mark.parametrize(
    "text", ['{"cfg_scale": NaN}', '{"cfg_scale": Infinity}', '{"cfg_scale": 1e999}', "{", "", "\x00", "[" * 200_000]
)
def test_what_is_no_json_is_no_server_error(client: TestClient, text: str) -> None:
    answer = client.post("/api/v1/jobs", content=text, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("prompt", ["\x00", "\u2028", "猫" * 5000, "<script>", "'; DROP TABLE jobs; --", "\x1b[31m"])
def test_odd_prompts_come_back_as_they_are(client: TestClient, prompt: str) -> None:
    done = finished(client, submit(client, prompt=prompt, steps=1))
    assert (done["state"], done["task"]["prompt"]) == ("done", prompt)
    info = client.get(f"/api/v1/image-info/{done['pictures'][0]['id']}").json()
    assert info["infotext"].startswith(prompt)


@pytest.mark.parametrize("body", ['{"prompt": "\\ud800"}', '{"extras": {"a": "\\ud800"}}'])
def test_half_a_character_is_refused(client: TestClient, body: str) -> None:
    answer = client.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


def test_a_body_beyond_all_bounds_is_refused(client: TestClient) -> None:
    assert client.post("/api/v1/jobs", content=b" " * (65 * 2**20)).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/jobs/999999", 404),
        ("DELETE", "/api/v1/jobs/999999", 404),
        ("POST", "/api/v1/jobs/999999/retry", 404),
        ("POST", "/api/v1/jobs/1/skip", 409),
        ("POST", "/api/v1/jobs/1/retry", 409),
        ("GET", "/api/v1/jobs/x", 422),
        ("GET", "/api/v1/jobs/99999999999999999999999", 422),
        ("GET", "/api/v1/events?since=99999999999999999999999", 422),
        ("GET", "/api/v1/images/a%00b.png", 404),
        ("GET", f"/api/v1/images/{'x' * 5000}.png", 404),
        ("GET", "/api/v1/images/nope.png", 404),
        ("GET", "/api/v1/images/..%2flibrary.sqlite", 404),
        ("GET", "/api/v1/images/library.sqlite", 404),
        ("GET", "/api/v1/thumbnails/.cache/x.webp", 404),
        ("GET", "/api/v1/images?after=nonsense", 400),
        ("GET", f"/api/v1/images?after={'9' * 5000}", 400),
        ("GET", "/api/v1/images?limit=0", 422),
    ],
)
def test_errors_are_typed(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"type", "message"}


def test_cancel_running_and_queued(client: TestClient) -> None:
    running, queued = submit(client, steps=150), submit(client, steps=150)
    wait_for(lambda: job(client, running)["state"] == "running")
    assert client.delete(f"/api/v1/jobs/{queued}").json()["state"] == "cancelled"
    client.delete(f"/api/v1/jobs/{running}")
    assert finished(client, running)["state"] == "cancelled"
    assert finished(client, queued)["pictures"] == []


def test_skip_makes_the_other_images(client: TestClient) -> None:
    number = submit(client, steps=20, batch_count=2)
    wait_for(lambda: (client.get(f"/api/v1/jobs/{number}").json()["progress"] or {}).get("step", 0) > 0)
    client.post(f"/api/v1/jobs/{number}/skip")
    done = finished(client, number)
    assert done["state"] == "done"
    assert [picture["unit"] for picture in done["pictures"]] == [1]


def test_a_cancelled_job_can_be_tried_again(client: TestClient) -> None:
    number = submit(client, steps=30, batch_count=2, seed=1)
    wait_for(lambda: bool(job(client, number)["pictures"]))
    client.delete(f"/api/v1/jobs/{number}")
    first = finished(client, number)
    assert len(first["pictures"]) == 1
    client.post(f"/api/v1/jobs/{number}/retry")
    wait_for(lambda: len(job(client, number)["pictures"]) == 2)
    assert job(client, number)["pictures"][0] == first["pictures"][0], "what was finished is not made again"


def test_a_full_disk_fails_the_job_with_words_and_retry_mends_it(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        number = submit(client)
        failed = finished(client, number)
    assert (failed["state"], failed["error"]) == ("failed", "DiskFull")
    assert "Free some space" in failed["message"]
    client.post(f"/api/v1/jobs/{number}/retry")
    wait_for(lambda: job(client, number)["state"] == "done")
    assert len(job(client, number)["pictures"]) == 1


def test_models_and_status(client: TestClient) -> None:
    assert [model["name"] for model in client.get("/api/v1/models").json()] == ["tiny", "starter"]
    status = client.get("/api/v1/status").json()
    assert status["worker"]["capabilities"]["device"] == "cpu"


def test_events_are_replayed_over_sse(client: TestClient) -> None:
    """TestClient reads a stream to its end only, and this one has none: so ask the log, which the stream sends on."""
    number = submit(client)
    finished(client, number)
    types = [event["type"] for event in live_events(client, since=0, until=("done", number)) if event["job"] == number]
    assert types == ["queued", "started", "picture", "done"]


def live_events(client: TestClient, since: int | None, until: tuple[str, int]) -> list[dict[str, Any]]:
    """What the page's WebSocket tells, up to an event of this type of this job."""
    events = []
    address = "/api/v1/live" if since is None else f"/api/v1/live?since={since}"
    with client.websocket_connect(address) as socket:
        while True:
            message = socket.receive()
            if text := message.get("text"):
                body = json.loads(text)
                if body["type"] == "event":
                    events.append(body["event"])
                    if (body["event"]["type"], body["event"]["job"]) == until:
                        return events


def test_a_page_gets_state_previews_and_pictures(client: TestClient) -> None:
    before = finished(client, submit(client))
    seen: list[str] = []
    with client.websocket_connect("/api/v1/live") as socket:
        hello = socket.receive_json()
        assert hello["type"] == "hello"
        assert [picture["id"] for picture in hello["pictures"]] == [picture["id"] for picture in before["pictures"]]
        state = socket.receive_json()
        assert state["type"] == "state"
        assert state["worker"]["state"] == "ready"
        number = submit(client, steps=10)
        while "done" not in seen:
            message = socket.receive()
            if data := message.get("bytes"):
                assert int.from_bytes(data[:4], "big") == number
                with PIL.Image.open(io.BytesIO(data[4:])) as preview:
                    assert preview.format == "JPEG"
                seen.append("preview")
            else:
                body = json.loads(message["text"])
                seen.append(body["event"]["type"] if body["type"] == "event" else body["type"])
                if body["type"] == "state" and body["running"]:
                    assert body["running"][0]["job"] == number
    assert {"queued", "started", "state", "preview", "picture"} <= set(seen)


def test_a_page_that_was_away_gets_what_it_missed_and_no_hello(client: TestClient) -> None:
    number = submit(client)
    finished(client, number)
    with client.websocket_connect("/api/v1/live?since=0") as socket:
        assert socket.receive_json()["seq"] == 1
    with client.websocket_connect("/api/v1/live?since=999999999") as socket:
        assert socket.receive_json()["type"] == "hello", "it knows a future that never was: begin anew"


def test_two_pages_see_the_same(client: TestClient) -> None:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(client.websocket_connect("/api/v1/live")) for _ in range(9)]
        number = submit(client)
        for socket in sockets:
            types = []
            while "done" not in types:
                message = socket.receive()
                body = json.loads(message.get("text") or "{}")
                if body.get("type") == "event" and body["event"]["job"] == number:
                    types.append(body["event"]["type"])
            assert types == ["queued", "started", "picture", "done"]


def test_the_openapi_page_needs_no_other_host(client: TestClient) -> None:
    page = client.get("/api/docs").text
    assert "swagger" in page
    assert "https://" not in page
    paths = client.get("/api/openapi.json").json()["paths"]
    assert {"/api/v1/jobs", "/api/v1/jobs/{job_id}", "/api/v1/models", "/api/v1/events"} <= set(paths)


def test_a_bad_since_is_refused(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/v1/live?since=x"):
        pass


def test_the_plan_of_a_picture(client: TestClient) -> None:
    plan = client.get("/api/v1/plan", params={"model": "tiny", "width": 64, "height": 64}).json()
    assert plan["plan"]["fits"] is True
    assert 0 < plan["need_bytes"] < plan["free_bytes"]


@pytest.mark.parametrize(("wish", "words"), [({"width": 101}, "multiple of 8"), ({"model": "gone"}, "gone")])
def test_a_plan_of_what_cannot_be_asked_for_says_why(client: TestClient, wish: dict[str, Any], words: str) -> None:
    """While somebody types that is no error, which a browser would put into its console."""
    answer = client.get("/api/v1/plan", params=wish)
    assert answer.status_code == 200
    assert words in answer.json()["trouble"]


def test_a_picture_is_given_once_and_named_in_jobs(client: TestClient) -> None:
    data = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "red").save(data, "PNG")
    answer = client.post("/api/v1/inputs", content=data.getvalue())
    assert (answer.status_code, answer.json()["width"]) == (201, 64)
    name = answer.json()["id"]
    again = client.get(f"/api/v1/inputs/{name}")
    assert (again.content, again.headers["content-type"]) == (data.getvalue(), "image/png")
    text = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    number = submit(client, start={"image": text, "denoising_strength": 0.5})
    assert job(client, number)["task"]["start"]["image"] == name
    assert finished(client, number)["state"] == "done"


def test_a_picture_that_is_none_is_refused(client: TestClient) -> None:
    answer = client.post("/api/v1/inputs", content=b"not a picture")
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "BadPicture")
    for start in ("%%%", "2020-01-01/nothing.png"):
        refused = client.post("/api/v1/jobs", json={"start": {"image": start}})
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "BadPicture")
    assert client.get("/api/v1/inputs/..%2Flibrary.sqlite").status_code in (404, 422)


def test_a_plot_is_one_job_with_a_sheet(client: TestClient) -> None:
    axes = [{"name": "CFG Scale", "values": "1-3"}, {"name": "Sampler", "values": "Euler, Euler a"}]
    script = {"kind": "xyz", "axes": axes}
    wanted = {"request": {"model": "tiny", "steps": 1, "prompt": "a cat"}, "script": script}
    assert client.post("/api/v1/plots/count", json=wanted).json() == {"pictures": 6}
    number = client.post("/api/v1/plots", json=wanted).json()["id"]
    pictures = finished(client, number)["pictures"]
    assert len(pictures) == 7
    assert "CFG scale: 3, " in pictures[2]["infotext"]
    assert "X Type: CFG Scale" in pictures[6]["infotext"]
    assert pictures[6]["width"] > 3 * 64
    assert pictures[6]["height"] > 2 * 64


def test_a_plot_that_cannot_be_made_says_which_value(client: TestClient) -> None:
    for name, values, reason in (
        ("Steps", "0, 5", "0: steps"),
        ("Sampler", "Euler, Eular", "Eular"),
        ("Checkpoint name", "tiny, none", "none"),
        ("Stepz", "1", "no axis"),
    ):
        script = {"kind": "xyz", "axes": [{"name": name, "values": values}]}
        answer = client.post("/api/v1/plots", json={"request": {"model": "tiny"}, "script": script})
        assert answer.status_code == 422, answer.text
        assert reason in answer.json()["error"]["message"]
