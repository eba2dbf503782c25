"""Step 4, only from scratch: teaches the text encoder to match captions with latents, as CLIP does (arXiv:2103.00020).

Two minutes of it give the U-Net text states that tell concepts, styles and colours apart from the start.
"""

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tools.starter.latents import CAPTIONS, SHORT, TrainingSet, load_set
from tools.starter.networks import WIDTH, new_text_encoder, token_table
from tools.starter.schedule import Clock, rate_factor
from tools.starter.tokens import UNKNOWN
from tools.starter.workers import Crew, Worker

log = logging.getLogger(__name__)

FORGOTTEN = 0.03
"""Share of words replaced by the unknown token."""


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    work: Path
    batch: int
    rate: float
    minutes: float


class Matcher(nn.Module):
    """The text encoder, a small tower for latents, and a guess of the latents from the text."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.text = new_text_encoder(rows)
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        self.picture = nn.Sequential(nn.Flatten(), nn.Linear(4 * 16 * 16, 384), nn.GELU(), nn.Linear(384, WIDTH))
        self.guess = nn.Linear(WIDTH, 4 * 16 * 16)
        self.scale = nn.Parameter(torch.tensor(2.6))
        with torch.no_grad():
            token_table(self.text)[UNKNOWN] = 0

    def forward(self, latents: Tensor, captions: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities (B, B) of captions and pictures, and the error of the guess; `places` (B,) summarise."""
        states = self.text(input_ids=captions).last_hidden_state[torch.arange(len(captions)), places]
        noisy = latents + 0.1 * torch.randn_like(latents)
        left, right = F.normalize(self.project(states), dim=-1), F.normalize(self.picture(noisy), dim=-1)
        return left @ right.T * self.scale.exp().clamp(max=50), F.mse_loss(self.guess(states), latents.flatten(1))


def make_batch(data: TrainingSet, count: int, chance: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, captions with some words forgotten, and where to read them: the first end token or padding after it."""
    chosen = torch.from_numpy(chance.choice(len(data.latents), count, p=data.weights.numpy(), replace=False))
    pick = torch.randint(0, CAPTIONS, (count,))
    captions, ends = data.captions[chosen, pick][:, :SHORT], data.ends[chosen, pick].clamp(max=SHORT - 1)
    column = torch.arange(SHORT)
    word = (column > 0) & (column < ends[:, None])
    captions = torch.where(word & (torch.rand(captions.shape) < FORGOTTEN), UNKNOWN, captions)
    later = (ends + (torch.rand(count) * (SHORT - ends)).long()).clamp(max=SHORT - 1)
    return data.latents[chosen], captions, torch.where(torch.rand(count) < 0.5, ends, later)


def train(worker: Worker, settings: Settings) -> None:
    """Trains for the given minutes and writes text.safetensors."""
    data = load_set(settings.work / "train.safetensors")
    torch.manual_seed(0)
    matcher = Matcher(data.tokens.rows).to(worker.device)
    parameters, table = list(matcher.parameters()), token_table(matcher.text)
    optimizer = torch.optim.AdamW(parameters, settings.rate, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    torch.manual_seed(worker.rank)
    chance = np.random.default_rng(worker.rank)
    clock, step = Clock.lasting(worker.agree(time.time()), settings.minutes), 0
    while (done := clock.progress(worker.agree(time.time()))) < 1:
        batch = make_batch(data, settings.batch, chance)
        similar, error = matcher(*(tensor.to(worker.device) for tensor in batch))
        right = torch.arange(settings.batch, device=worker.device)
        contrast = (F.cross_entropy(similar, right) + F.cross_entropy(similar.T, right)) / 2
        torch.autograd.backward(contrast + 0.5 * error)
        if table.grad is not None:
            table.grad[UNKNOWN] = 0
        worker.average([value.grad for value in parameters if value.grad is not None])
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * rate_factor(done, step, warmup=50, constant=0.0, floor=0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if worker.leads and step % 50 == 0:
            hits = float((similar.argmax(1) == right).float().mean())
            log.info("step %d, contrast %.3f, right %.2f, error %.3f", step, contrast, hits, error)
    if worker.leads:
        save_file(matcher.text.state_dict(), settings.work / "text.safetensors")


def read_text(path: Path) -> dict[str, Tensor]:
    """The state of the text encoder with the small token table."""
    state: dict[str, Tensor] = load_file(path)
    return state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--batch", type=int, default=64, help="pictures a worker and step")
    parser.add_argument("--rate", type=float, default=1.5e-3)


def run(options: argparse.Namespace) -> None:
    settings = Settings(options.work, options.batch, options.rate, options.minutes)
    Crew(options.device, options.workers, options.work / "text.pids").run(train, settings)
