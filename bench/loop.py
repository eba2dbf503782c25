"""Our sampling loop against diffusers' own pipeline: same model, sampler, steps and size, in turns.

Counted are seconds of the CPU in one thread: on a busy machine wall time says nothing, and with more threads waiting
counts as work. `python -m bench.loop [model folder]`
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.rows import Row
from pipelines.request import GenerationRequest
from pipelines.types import Assignment, Event, Failed, ModelInfo

STARTER = Path(__file__).parent.parent / "models" / "starter"
PROMPT = "a purple car, 3d render"
CFG = 4.0


Rows = list[Row]


def run(model: Path = STARTER, steps: int = 20, size: int = 128, rounds: int = 5) -> Rows:
    """The medians over `rounds` turns, after one turn that is not counted."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for sampler in ("DPM++ 2M", "Euler") for row in compare(model, sampler, steps, size, rounds)]
    finally:
        torch.set_num_threads(threads)


def compare(model: Path, sampler: str, steps: int, size: int, rounds: int) -> Rows:
    from pipelines.loading.manager import ModelManager

    request = GenerationRequest(
        prompt=PROMPT, width=size, height=size, steps=steps, seed=1, cfg_scale=CFG, sampler=sampler, schedule="Karras"
    )
    info = ModelInfo(name="model", family="sd1", path=model, size_bytes=0, width=size, height=size)
    models = ModelManager(torch_cpu())
    loaded = models.get(info, lambda status: None)
    forwards = Stopwatch()
    unet = loaded.parts["unet"].module
    unet.register_forward_pre_hook(forwards.start)
    unet.register_forward_hook(forwards.stop)
    loop = Loop(forwards)
    ways: dict[str, Callable[[], object]] = {
        "ours": partial(draw, loaded, request, loop),
        "diffusers": diffusers_pipeline(loaded, model, request),
        "session": whole_job(models, info, request),
    }
    totals: dict[str, list[float]] = {name: [] for name in ways}
    around: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            forwards.seconds = 0.0
            start = time.process_time()
            way()
            total = time.process_time() - start
            if turn:
                totals[name].append(total)
                around[name].append(total - forwards.seconds)
    around_a_step = Row(f"{sampler}: ours, around the U-Net", statistics.median(loop.seconds) * 1000, "CPU ms a step")
    return [*rows(sampler, steps, totals, around), around_a_step]


def rows(sampler: str, steps: int, totals: dict[str, list[float]], around: dict[str, list[float]]) -> Rows:
    median = {name: statistics.median(seconds) for name, seconds in totals.items()}
    rest = {name: statistics.median(seconds) * 1000 for name, seconds in around.items()}
    ratios = [ours / theirs for ours, theirs in zip(totals["ours"], totals["diffusers"], strict=True)]
    extra = (rest["session"] - rest["ours"]) / steps
    return [
        Row(f"{sampler}: ours / diffusers", statistics.median(ratios), ""),
        *(Row(f"{sampler}: {name}", seconds, "CPU s a picture") for name, seconds in median.items()),
        *(Row(f"{sampler}: {name}, all but the U-Net", value, "CPU ms a picture") for name, value in rest.items()),
        Row(f"{sampler}: previews, events and PNG", extra, "CPU ms a step"),
    ]


class Stopwatch:
    """The time inside a module, by its hooks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def start(self, *_: object) -> None:
        self._start = time.process_time()

    def stop(self, *_: object) -> None:
        self.seconds += time.process_time() - self._start


class Loop:
    """The time of a step that is not the U-Net's, told by a loop's `on_step`."""

    def __init__(self, forwards: Stopwatch) -> None:
        self.seconds: list[float] = []
        self._forwards = forwards
        self._last = (0.0, 0.0)

    def on_step(self, index: int, x0: object) -> None:
        now, inside = time.process_time(), self._forwards.seconds
        if index:
            self.seconds.append(now - self._last[0] - (inside - self._last[1]))
        self._last = now, inside


def torch_cpu() -> Any:
    import torch

    return torch.device("cpu")


def draw(loaded: Any, request: GenerationRequest, loop: Loop) -> None:
    from pipelines.generate import batches, generate
    from pipelines.kit import SoloKit

    kit = SoloKit(loaded)
    [batch] = batches(request, [0], kit)
    [_] = generate(request, kit, batch, loop.on_step)


def diffusers_pipeline(loaded: Any, model: Path, request: GenerationRequest) -> Callable[[], object]:
    """Around the very same modules, so that only the loops differ."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

    kind = {"DPM++ 2M": DPMSolverMultistepScheduler, "Euler": EulerDiscreteScheduler}[request.sampler]
    parts = {name: part.module for name, part in loaded.parts.items()}
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, local_files_only=True, **parts)
    pipe.scheduler = kind.from_config({**pipe.scheduler.config, "timestep_spacing": "linspace"}, use_karras_sigmas=True)
    pipe.set_progress_bar_config(disable=True)

    def once() -> object:
        return pipe(
            request.prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.cfg_scale,
            generator=torch.Generator().manual_seed(request.seed),
        ).images[0]

    return once


def whole_job(models: Any, info: ModelInfo, request: GenerationRequest) -> Callable[[], object]:
    """As a worker does it, with previews, events and the PNG."""
    from pipelines.session import Session

    session = Session(models, torch_cpu())
    assignment = Assignment(job=1, task=request, model=info, units=(0,))

    def once() -> object:
        events: list[Event] = []
        session.run(assignment, events.append, lambda: None, lambda status: None)
        if isinstance(events[-1], Failed):
            raise RuntimeError(events[-1].message)
        return events

    return once


def main() -> None:
    for row in run(Path(sys.argv[1]) if len(sys.argv) > 1 else STARTER):
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
