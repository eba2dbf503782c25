"""A job waits for a model that is still being downloaded: over the whole application, with a server that stalls."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import create_app
from pipelines.engine import InlineEngine
from tests.checkpoints import save_checkpoint
from tests.test_api import ADDRESS, finished, job, wait_for
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


@pytest.mark.slow
def test_a_job_waits_for_its_model(tmp_path: Path) -> None:
    from tests.tiny import boot

    far = save_checkpoint(tmp_path / "far" / "dream.safetensors", "sd1")
    with stalling(far) as (host, release):
        settings = Settings(
            data_dir=tmp_path, models_dir=tmp_path / "models", device="cpu", no_browser=True, download_hosts=(host,)
        )
        with TestClient(create_app(settings, InlineEngine(lambda: boot({}))), base_url=ADDRESS) as client:
            unknown = client.post("/api/v1/jobs", json={"model": "dream.safetensors"})
            assert unknown.status_code == 422, "nobody brings it yet"
            added = client.post("/api/v1/downloads", json={"source": f"http://{host}/dream.safetensors"})
            assert added.status_code == 201, added.text
            wait_for(lambda: client.get("/api/v1/downloads").json()[0]["received"] > 0)

            request = {"model": "dream.safetensors", "width": 64, "height": 64, "steps": 1}
            number = client.post("/api/v1/jobs", json=request).json()["id"]
            waits = job(client, number)
            assert waits["state"] == "blocked"
            assert waits["task"]["seed"] >= 0, "the seed is drawn already"
            time.sleep(0.2)
            assert job(client, number)["state"] == "blocked"

            release()
            done = finished(client, number)
            assert done["state"] == "done", done
            assert done["model"]["family"] == "sd1"
            assert done["task"]["seed"] == waits["task"]["seed"]
            assert (tmp_path / "models" / "Stable-diffusion" / "dream.safetensors").is_file()


@pytest.mark.slow
def test_a_job_whose_model_never_comes_fails_with_a_sentence(tmp_path: Path) -> None:
    far = save_checkpoint(tmp_path / "far" / "dream.safetensors", "sd1")
    from tests.tiny import boot

    with stalling(far) as (host, _):
        settings = Settings(
            data_dir=tmp_path, models_dir=tmp_path / "models", device="cpu", no_browser=True, download_hosts=(host,)
        )
        with TestClient(create_app(settings, InlineEngine(lambda: boot({}))), base_url=ADDRESS) as client:
            client.post("/api/v1/downloads", json={"source": f"http://{host}/dream.safetensors"})
            wait_for(lambda: client.get("/api/v1/downloads").json()[0]["received"] > 0)
            number = client.post("/api/v1/jobs", json={"model": "dream.safetensors"}).json()["id"]
            download = client.get("/api/v1/downloads").json()[0]["id"]
            client.post(f"/api/v1/downloads/{download}/cancel")
            failed = finished(client, number)
            assert failed["state"] == "failed"
            assert "dream.safetensors" in failed["message"]


@pytest.mark.slow
def test_a_job_waits_for_the_vae_of_its_checkpoint(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from tests.tiny import boot

    whole = load_file(save_checkpoint(tmp_path / "whole.safetensors", "sd1"))
    inside = "first_stage_model."
    (tmp_path / "models").mkdir()
    save_file(
        {name: tensor for name, tensor in whole.items() if not name.startswith(inside)},
        tmp_path / "models" / "bare.safetensors",
    )
    vae = {name.removeprefix(inside): tensor for name, tensor in whole.items() if name.startswith(inside)}
    save_file(vae, tmp_path / "some_vae.safetensors")
    with stalling(tmp_path / "some_vae.safetensors") as (host, release):
        settings = Settings(
            data_dir=tmp_path, models_dir=tmp_path / "models", device="cpu", no_browser=True, download_hosts=(host,)
        )
        with TestClient(create_app(settings, InlineEngine(lambda: boot({}))), base_url=ADDRESS) as client:
            request = {"model": "bare", "width": 64, "height": 64, "steps": 1}
            refused = client.post("/api/v1/jobs", json=request)
            assert refused.status_code == 422
            assert "VAE" in refused.json()["error"]["message"]
            client.post("/api/v1/downloads", json={"source": f"http://{host}/some_vae.safetensors"})
            number = client.post("/api/v1/jobs", json=request).json()["id"]
            assert job(client, number)["state"] == "blocked"
            release()
            done = finished(client, number)
            assert done["state"] == "done", done
            assert done["model"]["companions"]["vae"]["name"] == "some_vae.safetensors"
