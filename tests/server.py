"""The application as a user starts it: a process of its own, spoken to over HTTP."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 120.0
"""Only a hang takes this long: no test measures time."""


class Server:
    def __init__(self, data: Path, models: Path | None = None) -> None:
        self.data, self.port = data, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        models_flag = ["--models-dir", str(models)] if models else []
        self.process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(self.port), "--data-dir", str(data), "--no-browser", *models_flag],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def until_ready(self) -> "Server":
        """The pages are there and the worker takes jobs."""
        wait_for(lambda: self.answers() and self.http.get("/healthz").json()["ready"])
        wait_for(lambda: self.http.get("/api/v1/status").json()["worker"]["state"] == "ready")
        return self

    def submit(self, **request: Any) -> int:
        answer = self.http.post("/api/v1/jobs", json=request)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def job(self, number: int) -> dict[str, Any]:
        body: dict[str, Any] = self.http.get(f"/api/v1/jobs/{number}").json()["job"]
        return body

    def until_done(self, number: int) -> dict[str, Any]:
        wait_for(lambda: self.job(number)["state"] in ("done", "failed", "cancelled"))
        return self.job(number)

    def worker_pid(self) -> int:
        """The child that has torch loaded: the one with the most memory."""
        children = psutil.Process(self.process.pid).children()
        return int(max(children, key=lambda child: child.memory_info().rss).pid)

    def pictures(self) -> list[Path]:
        return sorted(path for path in (self.data / "outputs").glob("[0-9]*/*") if path.suffix == ".png")

    def kill(self) -> None:
        """As a power cut would: nobody is asked."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def answers(self) -> bool:
        """Somebody listens: the splash page is there."""
        assert self.process.poll() is None, "the server ended by itself"
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS, pause: float = 0.05) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)
