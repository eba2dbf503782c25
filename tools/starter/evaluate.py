"""Step 6: a score without a person: does the training picture nearest to `NAME, 3d render` show NAME, in that style?"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tools.starter.concepts import read_concepts
from tools.starter.latents import TrainingSet, load_set
from tools.starter.pictures import SIDE, Style

log = logging.getLogger(__name__)

BATCH = 20
STEPS = 15
GUIDANCE = 4.0
OTHER_STYLES: tuple[tuple[Style, str], ...] = (("flat", "flat icon"), ("line", "line art"), ("glyph", "silhouette"))


class Task(BaseModel):
    """One picture to draw and what it should be."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    name: str
    style: Style
    seed: int


class Score(BaseModel):
    """Shares of pictures. `top1`, `top5`: the right concept is the nearest, among the five nearest (3D and flags);
    `style`: the nearest picture has the right style; `other`: top-1 of the flat, line and silhouette pictures."""

    model_config = ConfigDict(frozen=True)

    drawn: int
    concepts: int
    top1: float
    top5: float
    style: float
    other: float

    def __str__(self) -> str:
        shares = f"top-1 {self.top1:.3f}, top-5 {self.top5:.3f}, style {self.style:.3f}, other styles {self.other:.3f}"
        return f"{shares} ({self.drawn} pictures, {self.concepts} concepts)"


def plan(names: Sequence[str], count: int) -> list[Task]:
    """`count` of the sorted names evenly, all of them in 3D and every fourth in one more style."""
    ordered = sorted(names)
    picked = [ordered[place * len(ordered) // count] for place in range(min(count, len(ordered)))]
    tasks = []
    for seed, name in enumerate(picked):
        if name.startswith("flag of "):
            tasks.append(Task(prompt=name, name=name, style="flag", seed=seed))
            continue
        tasks.append(Task(prompt=f"{name}, 3d render", name=name, style="3d", seed=seed))
        if seed % 4 == 0:
            style, words = OTHER_STYLES[seed // 4 % len(OTHER_STYLES)]
            tasks.append(Task(prompt=f"{name}, {words}", name=name, style=style, seed=seed))
    return tasks


def draw(pipe: Any, tasks: Sequence[Task]) -> Tensor:
    """Latents of the drawn pictures, shape (n, 1024)."""
    parts = []
    for start in range(0, len(tasks), BATCH):
        batch = tasks[start : start + BATCH]
        parts.append(
            pipe(
                [task.prompt for task in batch],
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                width=SIDE,
                height=SIDE,
                generator=[torch.Generator().manual_seed(task.seed) for task in batch],
                output_type="latent",
            ).images
        )
    return torch.cat(parts).float().cpu().flatten(1)


def rate(drawn: Tensor, tasks: Sequence[Task], data: TrainingSet, names: frozenset[str]) -> Score:
    """Compares with the training pictures of `names` only, so that a longer list does not make it harder."""
    kept = [place for place, name in enumerate(data.labels.names) if name in names]
    shown, styles = [data.labels.names[k] for k in kept], [data.labels.styles[k] for k in kept]
    nearest = torch.cdist(drawn, data.latents[kept].flatten(1)).argsort(1)
    hits: dict[str, list[bool]] = {"top1": [], "top5": [], "style": [], "other": []}
    for task, order in zip(tasks, nearest.tolist(), strict=True):
        ranked = list(dict.fromkeys(shown[place] for place in order))
        hits["style"].append(styles[order[0]] == task.style)
        if task.style in ("3d", "flag"):
            hits["top1"].append(ranked[0] == task.name)
            hits["top5"].append(task.name in ranked[:5])
        else:
            hits["other"].append(ranked[0] == task.name)
    shares = {key: sum(found) / max(1, len(found)) for key, found in hits.items()}
    return Score(drawn=len(tasks), concepts=len(set(shown)), **shares)


def load_pipeline(folder: Path, device: str = "cpu") -> Any:
    """In float32: the files hold float16, and diffusers mixes both if it is not told."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def evaluate(folder: Path, work: Path, which: str, count: int, device: str = "cpu") -> Score:
    """The score of a pipeline folder on the list `first` or `wide`; the same on every run."""
    data = load_set(work / "train.safetensors")
    names = read_concepts().named(which) & set(data.labels.names)
    tasks = plan(sorted(names), count)
    return rate(draw(load_pipeline(folder, device), tasks), tasks, data, frozenset(names))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", default=Path("models/starter"))
    parser.add_argument("--list", choices=("first", "wide"), default="wide")
    parser.add_argument("--count", type=int, default=100, help="names to draw")


def run(options: argparse.Namespace) -> None:
    score = evaluate(options.folder, options.work, options.list, options.count, options.device)
    log.info("%s, list %s: %s", options.folder, options.list, score)
