"""From the command to the third picture, on the real application with the starter model, and its memory."""

import tempfile
import time
from pathlib import Path

import httpx
import psutil

from bench.rows import Row
from tests.server import Server, wait_for

MEBIBYTE = 2**20


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        server = Server(Path(folder))
        try:
            return _measure(server, began)
        finally:
            server.close()


def _measure(server: Server, began: float) -> list[Row]:
    rows: list[Row] = []

    def note(name: str) -> None:
        rows.append(Row(name, time.perf_counter() - began, "s"))

    while not server.answers():
        time.sleep(0.005)
    note("command to splash page")
    wait_for(lambda: server.http.get("/healthz").json()["ready"], pause=0.02)
    server.http.get("/").raise_for_status()
    note("command to real page")
    wait_for(lambda: server.http.get("/api/v1/status").json()["worker"]["state"] == "ready", pause=0.02)
    note("command to worker ready")
    rows += [
        Row(f"{name} picture, 128 px, 20 steps", _picture(server, seed), "s")
        for seed, name in enumerate(("first", "second", "third"))
    ]
    rows.append(_submit(server.http))
    processes = psutil.Process(server.process.pid)
    rows.append(Row("peak memory of the web process", _peak(processes), "MiB"))
    rows.append(Row("peak memory of the worker", _peak(psutil.Process(server.worker_pid())), "MiB"))
    return rows


def _picture(server: Server, seed: int) -> float:
    """From the request to the file, in seconds, as the job's own clock tells: polling does not count."""
    job = server.until_done(server.submit(prompt="a purple car, 3d render", seed=seed))
    return float(job["finished"] - job["created"])


def _submit(client: httpx.Client) -> Row:
    """Median time of POST /jobs, up to the answer: the job is on the disk then."""
    times = []
    for _ in range(9):
        began = time.perf_counter()
        answer = client.post("/api/v1/jobs", json={"prompt": "x"})
        times.append(time.perf_counter() - began)
        client.delete(f"/api/v1/jobs/{answer.json()['id']}")
    return Row("submit over HTTP", sorted(times)[4] * 1000, "ms")


def _peak(process: psutil.Process) -> float:
    """The high-water mark of resident memory, where the system keeps one."""
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return float(process.memory_info().rss) / MEBIBYTE
