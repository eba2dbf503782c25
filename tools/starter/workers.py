"""Training in step: one process on a GPU, or several single-thread ones on a CPU that average their parameters.

On a busy machine two single-thread workers beat one with two threads: an operation of two threads waits for the
slower core each time, two workers wait for each other only when they average (local SGD, arXiv:1805.09767).
"""

import logging
import multiprocessing
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=8)
"""How long a worker waits for the others: as long as somebody may pause them with SIGSTOP."""


@dataclass(frozen=True)
class Worker:
    """One of `count` processes that train the same network."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The leader's value, for all."""
        if self.count == 1:
            return value
        said = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(said, 0)
        return float(said.item())

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces every tensor by its mean over the workers, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


@dataclass(frozen=True)
class Crew:
    """Where to train, with how many processes."""

    device: str
    count: int
    pids: Path
    """Receives the process ids, for `kill -STOP` and `kill -CONT`."""

    def run(self, train: Callable[..., None], *arguments: Any) -> None:
        """Calls `train(worker, *arguments)` in every worker and waits; `train` must be a module's function."""
        port = _free_port()
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_work, args=(k, self, port, train, arguments)) for k in range(self.count)]
        for worker in workers:
            worker.start()
        self.pids.write_text(" ".join(str(worker.pid) for worker in workers) + "\n")
        try:
            wait_for(workers)
        finally:
            self.pids.unlink(missing_ok=True)


def wait_for(workers: Sequence[BaseProcess]) -> None:
    """Returns when all are done. When one fails, the others would wait for it: they are ended."""
    while any(worker.is_alive() for worker in workers):
        connection.wait([worker.sentinel for worker in workers if worker.is_alive()])
        if any(worker.exitcode for worker in workers):
            for worker in workers:
                worker.terminate()
    for worker in workers:
        if worker.exitcode:
            raise SystemExit(f"a worker ended with code {worker.exitcode}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(rank: int, crew: Crew, port: int, train: Callable[..., None], arguments: Sequence[Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if crew.count > 1:
        torch.set_num_threads(1)
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=crew.count, timeout=PATIENCE)
    train(Worker(rank, crew.count, torch.device(crew.device)), *arguments)
    if crew.count > 1:
        dist.destroy_process_group()
