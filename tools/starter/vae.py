"""Step 2: trains the VAE on crops of the pictures, or only its decoder, to which the latents made so far stay valid."""

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from torch import Tensor, nn

from tools.starter.concepts import read_concepts
from tools.starter.data import load_pictures
from tools.starter.networks import SCALING, new_vae
from tools.starter.pictures import SIDE, Pixels
from tools.starter.schedule import Clock, rate_factor
from tools.starter.workers import Crew, Worker

log = logging.getLogger(__name__)

CROP = 64
HELD_OUT = 50
"""Every 50th picture is kept for the signal-to-noise ratio."""
SAVE_SECONDS = 240.0


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    work: Path
    base: Path | None
    decoder_only: bool
    batch: int
    rate: float
    minutes: float


def edges(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of the differences of neighbouring pixels: keeps outlines sharp."""
    across = F.l1_loss(a[..., 1:] - a[..., :-1], b[..., 1:] - b[..., :-1])
    return across + F.l1_loss(a[..., 1:, :] - a[..., :-1, :], b[..., 1:, :] - b[..., :-1, :])


def chroma(a: Tensor, b: Tensor) -> Tensor:
    """L1 of opponent colours at a quarter of the size; without it a young VAE spends its channels on brightness."""
    red, green, blue = F.avg_pool2d(a - b, 4).unbind(1)
    return (red - green).abs().mean() + (blue - 0.5 * (red + green)).abs().mean()


def difference(made: Tensor, images: Tensor) -> Tensor:
    """What the decoder is punished for; both (B, 3, h, w) in -1..1."""
    plain = F.l1_loss(made, images) + 0.5 * F.mse_loss(made, images)
    coarse = F.l1_loss(F.avg_pool2d(made, 4), F.avg_pool2d(images, 4))
    return plain + 0.5 * edges(made, images) + 0.5 * coarse + chroma(made, images)


def forward(vae: Any, images: Tensor, decoder_only: bool) -> Tensor:
    """The loss of a batch. The frozen encoder's latents get a little noise, as those from the U-Net are not perfect."""
    if decoder_only:
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode()
        noise = torch.randn_like(latents) * 0.06 / SCALING * torch.rand(len(latents), 1, 1, 1, device=images.device)
        return difference(vae.decode(latents + noise).sample, images)
    spread = vae.encode(images).latent_dist
    divergence: Tensor = 0.5 * (spread.mean**2 + spread.logvar.exp() - 1 - spread.logvar).mean()
    made: Tensor = vae.decode(spread.sample()).sample
    return difference(made, images) + 5e-4 * divergence


def as_images(pixels: Pixels) -> Tensor:
    """(B, h, w, 3) bytes as (B, 3, h, w) in -1..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def ratio(vae: Any, pixels: Pixels, chosen: list[int]) -> float:
    """Mean peak signal-to-noise ratio of decoded pictures in decibels."""
    images = as_images(pixels[chosen].copy()).to(next(vae.parameters()).device)
    with torch.no_grad():
        made = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    error = (made - images).pow(2).mean((1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


@torch.no_grad()
def fold(vae: Any, mean: Tensor, spread: Tensor) -> None:
    """Changes the first and last layer of the latents so that each channel has mean 0 and variance (1 / 0.18215)^2.

    `mean` and `spread` (4,) are those of the latents now. Stable Diffusion's scaling factor holds exactly then.
    """
    gain = 1 / (SCALING * spread)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= gain.view(4, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) * gain
    into.bias[4:] += 2 * gain.log()  # the second half is the log of the variance
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= gain.view(1, 4, 1, 1)


class Crops:
    """Random pictures or crops of them; those of the concept lists four times as often."""

    def __init__(self, work: Path, side: int, seed: int) -> None:
        pictures, self.pixels = load_pictures(work)
        wide, count = read_concepts().wide, len(pictures)
        weights = np.array([min(p.weight, 0.5) * (4 if p.name in wide else 1) for p in pictures])
        weights[np.arange(count) % HELD_OUT == 7] = 0
        self.held_out = [i for i in range(count) if i % HELD_OUT == 7 and pictures[i].name in wide][:48]
        self.chances, self.side = weights / weights.sum(), side
        self.chance = np.random.default_rng(seed)

    def batch(self, count: int) -> Tensor:
        """(count, 3, side, side) in -1..1, half of them mirrored."""
        cut = np.empty((count, self.side, self.side, 3), np.uint8)
        for place, index in enumerate(self.chance.choice(len(self.chances), count, p=self.chances)):
            top, left = self.chance.integers(0, SIDE - self.side + 1, 2)
            crop = self.pixels[index, top : top + self.side, left : left + self.side]
            cut[place] = crop[:, ::-1] if self.chance.random() < 0.5 and self.side < SIDE else crop
        return as_images(cut)


def normalise(vae: Any, crops: Crops) -> None:
    """Folds the mean and spread of the latents of a thousand pictures."""
    with torch.no_grad():
        images = (as_images(crops.pixels[start : start + 50].copy()) for start in range(0, len(crops.pixels), 550))
        device = next(vae.parameters()).device
        latents = torch.cat([vae.encode(batch.to(device)).latent_dist.mode() for batch in images])
    fold(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))


def prepare(settings: Settings) -> tuple[Any, list[nn.Parameter]]:
    """The VAE and what of it is trained."""
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(settings.base, dtype=torch.float32) if settings.base else new_vae()
    if settings.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    return vae, [value for value in vae.parameters() if value.requires_grad]


def train(worker: Worker, settings: Settings) -> None:
    """Trains for the given minutes; the leader writes the folder `vae`."""
    vae, parameters = prepare(settings)
    vae.to(worker.device)
    crops = Crops(settings.work, SIDE if settings.decoder_only else CROP, seed=worker.rank)
    optimizer = torch.optim.AdamW(parameters, settings.rate, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    torch.manual_seed(100 + worker.rank)
    clock, step, saved = Clock.lasting(worker.agree(time.time()), settings.minutes), 0, time.monotonic()
    if worker.leads:
        log.info("held-out signal-to-noise ratio at first: %.2f dB", ratio(vae, crops.pixels, crops.held_out))
    while (done := clock.progress(worker.agree(time.time()))) < 1:
        loss = forward(vae, crops.batch(settings.batch).to(worker.device), settings.decoder_only)
        torch.autograd.backward(loss)
        worker.average([value.grad for value in parameters if value.grad is not None])
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * rate_factor(done, step, warmup=100, constant=0.2)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if worker.leads and step % 100 == 0:
            log.info("step %d, %.0f %% of the time, loss %.4f", step, 100 * done, loss.detach())
        if worker.leads and time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            vae.save_pretrained(settings.work / "vae-unfinished")
            log.info("held-out signal-to-noise ratio: %.2f dB", ratio(vae, crops.pixels, crops.held_out))
    if worker.leads:
        if not settings.decoder_only:
            normalise(vae, crops)
        vae.save_pretrained(settings.work / "vae")
        log.info("held-out signal-to-noise ratio: %.2f dB", ratio(vae, crops.pixels, crops.held_out))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=8, help="crops a worker and step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--base", type=Path, help="a VAE's folder to start from; without it a new one")
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder, and so all latents, as they are")


def run(options: argparse.Namespace) -> None:
    if options.decoder_only and options.base is None:
        raise SystemExit("--decoder-only needs --base, the folder of the VAE whose encoder stays")
    settings = Settings(options.work, options.base, options.decoder_only, options.batch, options.rate, options.minutes)
    Crew(options.device, options.workers, options.work / "vae.pids").run(train, settings)
