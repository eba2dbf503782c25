"""Step 5: trains the U-Net, and the text encoder with it, to predict v (arXiv:2202.00512) by the clock."""

import argparse
import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from tools.starter.checkpoint import Checkpoint, Progress, restore_moments, save_checkpoint
from tools.starter.latents import CAPTIONS, SHORT, load_set
from tools.starter.networks import LONG, NOISE, new_text_encoder, new_unet, shrink, token_table
from tools.starter.schedule import Clock, rate_factor
from tools.starter.text import read_text
from tools.starter.tokens import UNKNOWN
from tools.starter.workers import Crew, Worker

log = logging.getLogger(__name__)

DROPPED = 0.1
"""Share of captions replaced by the empty one, for classifier-free guidance (arXiv:2207.12598)."""
EXCHANGE = 4
"""Steps between two averages over the workers."""
ALL_LONG_FROM = 0.85
"""Progress from which all captions are padded to 77 tokens, as Stable Diffusion does; before it one batch in five."""
SAVE_SECONDS = 300.0


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    work: Path
    base: Path | None
    batch: int
    rate: float
    minutes: float

    @property
    def checkpoint(self) -> Path:
        return self.work / "unet.safetensors"


def stratified_times(count: int) -> Tensor:
    """One time step in each of `count` equal parts of 0..999, shuffled: less noise in the gradient than chance."""
    return ((torch.arange(count) + torch.rand(count)) / count * 1000).long()[torch.randperm(count)]


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy latents and the v to predict; all (B, 4, 16, 16), `alphas` cumulative, (B, 1, 1, 1)."""
    signal, spread = alphas.sqrt(), (1 - alphas).sqrt()
    return signal * latents + spread * noise, signal * noise - spread * latents


class Trainer:
    """Networks, running average, optimiser and data of one worker."""

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self.worker, self.settings = worker, settings
        self.data = load_set(settings.work / "train.safetensors")
        self.chances = self.data.weights.numpy()
        torch.manual_seed(0)  # new networks begin alike in all workers
        self.networks = nn.ModuleDict(self._networks()).to(worker.device).train()
        self.average = copy.deepcopy(self.networks).requires_grad_(False)
        self.table = token_table(self.networks["text"])
        text = [value for value in self.networks["text"].parameters() if value is not self.table]
        groups: list[dict[str, Any]] = [
            {"params": list(self.networks["unet"].parameters()), "base": settings.rate},
            {"params": text, "base": settings.rate / 2},
            {"params": [self.table], "base": settings.rate, "weight_decay": 0.0},
        ]
        self.parameters = [value for group in groups for value in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, settings.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.alphas = DDPMScheduler(**NOISE).alphas_cumprod
        now = worker.agree(time.time())
        self.progress = Progress(clock=Clock.lasting(now, settings.minutes))
        if settings.checkpoint.exists():
            self._resume(now)
        self.resumed_at = self.progress.step
        torch.manual_seed(1000 * self.progress.step + worker.rank)
        self.chance = np.random.default_rng([worker.rank, self.progress.step])

    def _networks(self) -> dict[str, nn.Module]:
        """From a pipeline folder, or new with the pre-trained text encoder."""
        base = self.settings.base
        if base is None:
            text = new_text_encoder(self.data.tokens.rows)
            text.load_state_dict(read_text(self.settings.work / "text.safetensors"))
            return {"unet": new_unet(), "text": text}
        unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)
        big = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
        return {"unet": unet, "text": shrink(big, self.data.tokens)}

    def _resume(self, now: float) -> None:
        """Continues to the old deadline; when that is over, the same weights start a new round."""
        saved = Checkpoint(self.settings.checkpoint)
        if not np.array_equal(saved.tokens.clip_ids, self.data.tokens.clip_ids):
            raise ValueError(f"{self.settings.checkpoint} was trained with other captions: move it away to start anew")
        for name, network in self.networks.items():
            network.load_state_dict(saved.part(name))
            self.average[name].load_state_dict(saved.part(f"average_{name}"))
        restore_moments(self.optimizer, saved.part("adam"))
        clock = saved.progress.clock if now < saved.progress.clock.deadline else self.progress.clock
        self.progress = saved.progress.model_copy(update={"clock": clock})

    def batch(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Latents (B, 4, 16, 16) and token rows (B, tokens)."""
        count = self.settings.batch
        chosen = torch.from_numpy(self.chance.choice(len(self.chances), count, p=self.chances))
        captions = self.data.captions[chosen, torch.randint(0, CAPTIONS, (count,))]
        captions = torch.where(torch.rand(count, 1) < DROPPED, self.data.empty, captions)[:, :tokens]
        return self.data.latents[chosen].to(self.worker.device), captions.to(self.worker.device)

    def step(self, factor: float, tokens: int) -> float:
        """One update at `factor` of the learning rate; returns the mean square error of v."""
        latents, captions = self.batch(tokens)
        noise, times = torch.randn_like(latents), stratified_times(len(latents))
        alphas = self.alphas[times].view(-1, 1, 1, 1).to(latents.device)
        noisy, target = add_noise(latents, noise, alphas)
        # bfloat16 only on a GPU: without matrix instructions for it a CPU is slower than in float32
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
            states = self.networks["text"](input_ids=captions).last_hidden_state
            guess = self.networks["unet"](noisy, times.to(latents.device), states, return_dict=False)[0]
        loss = F.mse_loss(guess.float(), target)
        torch.autograd.backward(loss)
        if self.table.grad is not None:
            self.table.grad[UNKNOWN] = 0
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        pictures = self.progress.pictures + self.settings.batch * self.worker.count
        self.progress = self.progress.model_copy(update={"step": self.progress.step + 1, "pictures": pictures})
        return float(loss.detach())

    @torch.no_grad()
    def blend(self) -> None:
        """Averages over the workers, and over about the last thousand steps."""
        self.worker.average(self.parameters)
        if self.worker.leads:
            keep = min(0.999, (1 + self.progress.step) / (20 + self.progress.step)) ** EXCHANGE
            for mean, new in zip(self.average.parameters(), self.networks.parameters(), strict=True):
                mean.lerp_(new, 1 - keep)

    def save(self) -> None:
        networks = dict(self.networks.items()) | {f"average_{name}": net for name, net in self.average.items()}
        save_checkpoint(self.settings.checkpoint, self.progress, self.data.tokens, networks, self.optimizer)


class Report:
    """Says now and then how the training goes."""

    def __init__(self, trainer: Trainer, every: int = 100) -> None:
        self.trainer, self.every = trainer, every
        self.begin, self.pictures = time.monotonic(), trainer.progress.pictures
        self.mean: float | None = None

    def add(self, error: float, factor: float) -> None:
        self.mean = error if self.mean is None else 0.99 * self.mean + 0.01 * error
        progress = self.trainer.progress
        if progress.step % self.every == 0:
            speed = (progress.pictures - self.pictures) / (time.monotonic() - self.begin)
            done = progress.clock.progress(time.time())
            text = "step %d, %.1f %% of the time, error of v %.4f, rate x %.3f, %.1f pictures/s, %d pictures"
            log.info(text, progress.step, 100 * done, self.mean, factor, speed, progress.pictures)


def train(worker: Worker, settings: Settings) -> None:
    """Trains to the deadline; the leader saves every five minutes and at the end."""
    trainer = Trainer(worker, settings)
    report, saved, done = Report(trainer), time.monotonic(), 0.0
    while True:
        since = trainer.progress.step - trainer.resumed_at
        if since % EXCHANGE == 0:
            done = trainer.progress.clock.progress(worker.agree(time.time()))
            if done >= 1:
                break
        long = done > ALL_LONG_FROM or trainer.chance.random() < 0.2
        factor = rate_factor(done, since)
        error = trainer.step(factor, LONG if long else SHORT)
        if (since + 1) % EXCHANGE == 0:
            trainer.blend()
        if worker.leads:
            report.add(error, factor)
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = time.monotonic()
                trainer.save()
    if worker.leads:
        trainer.save()
        log.info("done: %s", settings.checkpoint)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=120, help="ignored while a checkpoint's deadline is ahead")
    parser.add_argument("--batch", type=int, default=12, help="pictures a worker and step; 256 on a GPU")
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--base", type=Path, default=Path("models/starter"), help="the pipeline folder to start from")
    parser.add_argument("--scratch", action="store_true", help="a new U-Net, and the text encoder of step 4")


def run(options: argparse.Namespace) -> None:
    base = None if options.scratch else options.base
    settings = Settings(options.work, base, options.batch, options.rate, options.minutes)
    Crew(options.device, options.workers, options.work / "unet.pids").run(train, settings)
