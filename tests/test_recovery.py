"""Crashes, as they happen: kill -9 of the worker and of the whole application in the middle of a batch of four."""

import json
import os
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import httpx
import PIL.Image
import psutil
import pytest

from tests.server import Server, wait_for

pytestmark = pytest.mark.slow

BATCH = {"prompt": "a cat", "model": "tiny", "steps": 120, "seed": 40, "batch_count": 4}


def pixels(server: Server, job: int) -> dict[int, bytes]:
    """Of each picture of a job, by seed."""
    found = {}
    for picture in server.job(job)["pictures"]:
        with PIL.Image.open(server.data / "outputs" / picture["id"]) as image:
            assert image.info["parameters"] == picture["infotext"]
            found[picture["seed"]] = image.tobytes()
    return found


def begin(server: Server) -> int:
    """Submit the batch and wait until some of it, but not all, is done."""
    job = server.submit(**BATCH)
    wait_for(lambda: len(server.job(job)["pictures"]) >= 1)
    assert len(server.job(job)["pictures"]) < 4, "too fast to be disturbed"
    return job


def event_types(server: Server, job: int) -> list[str]:
    """From the server's stream of events, which begins at the first one."""
    types: list[str] = []
    with httpx.stream("GET", f"{server.url}/api/v1/events?since=0", timeout=30) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                types += [event["type"]] if event["job"] == job else []
                if types and types[-1] == "done":
                    break
    return types


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Generator[Server, None, None]:
    running = Server(tmp_path_factory.mktemp("data"), models).until_ready()
    yield running
    running.close()


@pytest.fixture(scope="module")
def expected(server: Server) -> dict[int, bytes]:
    """The pixels of the batch when nobody is killed, by seed."""
    job = server.submit(**BATCH)
    assert server.until_done(job)["state"] == "done"
    return pixels(server, job)


def test_killed_worker(server: Server, expected: dict[int, bytes]) -> None:
    before = set(server.pictures())
    job, worker = begin(server), server.worker_pid()
    first = server.job(job)["pictures"][0]
    os.kill(worker, signal.SIGKILL)
    assert server.until_done(job)["state"] == "done"
    assert server.worker_pid() != worker
    assert len(set(server.pictures()) - before) == 4
    assert pixels(server, job) == expected
    assert server.job(job)["pictures"][0] == first, "a finished image stays"
    types = event_types(server, job)
    assert types.count("interrupted") == 1
    assert types.count("picture") == 4


def test_killed_application(start_server: Callable[[], Server], expected: dict[int, bytes]) -> None:
    server = start_server().until_ready()
    job, worker = begin(server), server.worker_pid()
    waiting = server.submit(**{**BATCH, "batch_count": 1, "steps": 2, "prompt": "later"})
    server.kill()
    wait_for(lambda: not psutil.pid_exists(worker))  # it notices by itself: no orphan keeps the GPU
    server = start_server().until_ready()
    assert server.until_done(job)["state"] == "done"
    assert server.until_done(waiting)["state"] == "done", "the queue is as it was"
    assert len(server.pictures()) == 5, "four of the batch and the later one"
    assert pixels(server, job) == expected
    types = event_types(server, job)
    assert types.count("interrupted") == 1
    assert types.count("picture") == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which libraries a process has loaded")
def test_the_web_process_never_loads_torch(server: Server) -> None:
    server.http.get("/")
    assert server.until_done(server.submit(**{**BATCH, "batch_count": 1, "steps": 2}))["state"] == "done"

    def libraries(pid: int) -> set[str]:
        return {Path(mapped.path).name for mapped in psutil.Process(pid).memory_maps()}

    assert any("torch" in name for name in libraries(server.worker_pid())), "it would be seen"
    assert not any("torch" in name for name in libraries(server.process.pid))


def test_a_second_application_on_the_same_folder_is_refused(start_server: Callable[[], Server]) -> None:
    first = start_server()
    wait_for(first.answers)
    second = start_server()
    assert second.process.wait(60) != 0


def test_a_cancel_beside_a_dying_worker_is_not_lost(server: Server) -> None:
    job = begin(server)
    os.kill(server.worker_pid(), signal.SIGKILL)
    server.http.delete(f"/api/v1/jobs/{job}")
    assert server.until_done(job)["state"] == "cancelled"
