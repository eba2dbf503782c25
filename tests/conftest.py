"""What many tests need: a tiny real model, settings in a fresh folder, and a real server to talk to."""

import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.server import Server
from webui.config import Settings

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks a model hub for anything fails
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads would only wait for each other


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one checkpoint in it, `tiny`."""
    from tests.tiny import save_sd1

    folder = tmp_path_factory.mktemp("models")
    save_sd1(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def tiny(models: Path) -> Path:
    """The folder of the tiny checkpoint."""
    return models / "tiny"


@pytest.fixture
def settings(tmp_path: Path, models: Path) -> Settings:
    return Settings(data_dir=tmp_path, models_dir=models, device="cpu", no_browser=True)


@pytest.fixture
def start_server(tmp_path: Path, models: Path) -> Generator[Callable[[], Server], None, None]:
    """Starts the real application on `tmp_path` and the tiny model, as often as it is called; ends them all."""
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(tmp_path, models))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
