"""A job waits for a model that is still being downloaded: over the whole application, with a server that stalls."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from app import create_app
from pipelines.engine import InlineEngine
from tests.checkpoints import save_checkpoint
from tests.test_api import ADDRESS, finished, job, wait_for
from tests.tiny import boot
from webui.config import Settings

Release = Callable[[], None]


@contextmanager
def stalling(file: Path) -> Generator[tuple[str, Release], None, None]:
    """A host of one's own network that sends half of a file and then waits for `release`."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            released.wait(60)
            self.wfile.write(content[len(content) // 2 :])

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}", released.set
    finally:
        released.set()
        server.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Generator["Home", None, None]:
    """The application with an empty models folder, beside hosts that its downloads may reach."""
    with ExitStack() as open_ones:
        yield Home(tmp_path, open_ones)


class Home:
    def __init__(self, folder: Path, open_ones: ExitStack) -> None:
        self.folder, self._open_ones = folder, open_ones

    def starts(self, far: Path) -> Release:
        """With one model that is only on its way: `far`. Gives what lets the other half of it through."""
        host, release = self._open_ones.enter_context(stalling(far))
        self.source = f"http://{host}/{far.name}"
        settings = Settings(
            data_dir=self.folder,
            models_dir=self.folder / "models",
            device="cpu",
            no_browser=True,
            download_hosts=(host,),
        )
        app = create_app(settings, InlineEngine(lambda: boot({})))
        self.client = self._open_ones.enter_context(TestClient(app, base_url=ADDRESS))
        return release

    def fetch(self) -> int:
        """Starts the download and gives its number when the first half is there."""
        added = self.client.post("/api/v1/downloads", json={"source": self.source})
        assert added.status_code == 201, added.text
        wait_for(lambda: self.client.get("/api/v1/downloads").json()[0]["received"] > 0)
        return int(added.json()["id"])

    def ask(self, model: str) -> Any:
        return self.client.post("/api/v1/jobs", json={"model": model, "width": 64, "height": 64, "steps": 1})


def test_a_job_waits_for_its_model(home: Home) -> None:
    release = home.starts(save_checkpoint(home.folder / "far" / "dream.safetensors", "sd1"))
    assert home.ask("dream.safetensors").status_code == 422, "nobody brings it yet"
    home.fetch()
    number = home.ask("dream.safetensors").json()["id"]
    waits = job(home.client, number)
    assert waits["state"] == "blocked"
    assert waits["task"]["seed"] >= 0, "the seed is drawn already"
    time.sleep(0.2)
    assert job(home.client, number)["state"] == "blocked"

    release()
    done = finished(home.client, number)
    assert done["state"] == "done", done
    assert done["model"]["family"] == "sd1"
    assert done["task"]["seed"] == waits["task"]["seed"]
    assert (home.folder / "models" / "Stable-diffusion" / "dream.safetensors").is_file()


def test_a_job_whose_model_never_comes_fails_with_a_sentence(home: Home) -> None:
    home.starts(save_checkpoint(home.folder / "far" / "dream.safetensors", "sd1"))
    download = home.fetch()
    number = home.ask("dream.safetensors").json()["id"]
    home.client.post(f"/api/v1/downloads/{download}/cancel")
    failed = finished(home.client, number)
    assert failed["state"] == "failed"
    assert "dream.safetensors" in failed["message"]


def test_a_job_waits_for_the_vae_of_its_checkpoint(home: Home) -> None:
    whole = load_file(save_checkpoint(home.folder / "whole.safetensors", "sd1"))
    inside = "first_stage_model."
    (home.folder / "models").mkdir()
    bare = {name: tensor for name, tensor in whole.items() if not name.startswith(inside)}
    save_file(bare, home.folder / "models" / "bare.safetensors")
    vae = {name.removeprefix(inside): tensor for name, tensor in whole.items() if name.startswith(inside)}
    save_file(vae, home.folder / "some_vae.safetensors")
    release = home.starts(home.folder / "some_vae.safetensors")
    refused = home.ask("bare")
    assert refused.status_code == 422
    assert "VAE" in refused.json()["error"]["message"]
    home.fetch()
    number = home.ask("bare").json()["id"]
    assert job(home.client, number)["state"] == "blocked"
    release()
    done = finished(home.client, number)
    assert done["state"] == "done", done
    assert done["model"]["companions"]["vae"]["name"] == "some_vae.safetensors"
