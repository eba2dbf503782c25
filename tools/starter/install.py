"""Step 7: makes a pipeline folder of a checkpoint and puts it in the place of models/starter if it scores no lower."""

import argparse
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from tools.starter.checkpoint import Checkpoint
from tools.starter.evaluate import evaluate
from tools.starter.networks import UNET, grow, new_sampler, new_text_encoder

log = logging.getLogger(__name__)

NOTES = ("*.md", "*.txt", "LICENSE*", "NOTICE*", "inkstone.json")
"""Files of the old folder that are no part of a pipeline and stay."""


class LowerScore(Exception):
    """The new model draws worse than the one in place."""


def load_average(checkpoint: Checkpoint) -> dict[str, Any]:
    """U-Net and text encoder with the running average of their weights."""
    unet, text = UNet2DConditionModel(**UNET), new_text_encoder(checkpoint.tokens.rows)
    networks: dict[str, nn.Module] = {"unet": unet, "text": text}
    for name, network in networks.items():
        network.load_state_dict(checkpoint.part(f"average_{name}"))
    return {"unet": unet, "text_encoder": grow(text, checkpoint.tokens)}


def assemble(checkpoint: Path, vae: Path, tokenizer: Path, out: Path) -> None:
    """Writes a StableDiffusionPipeline folder in float16."""
    pipe = StableDiffusionPipeline(
        **{name: network.half() for name, network in load_average(Checkpoint(checkpoint)).items()},
        vae=AutoencoderKL.from_pretrained(vae, dtype=torch.float16),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        scheduler=new_sampler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(out)
    tidy(out)


def tidy(folder: Path) -> None:
    """Lets others read the files, and takes out the path from which the VAE was read."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    config = folder / "vae/config.json"
    kept = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
    config.write_text(json.dumps(kept, indent=2) + "\n")


def keep_notes(old: Path, new: Path) -> None:
    for pattern in NOTES:
        for note in old.glob(pattern):
            shutil.copy2(note, new / note.name)


def replace_model(new: Path, target: Path, score: Callable[[Path], float], force: bool = False) -> None:
    """Moves the folder `new` to `target` in two renames, or raises LowerScore and leaves both where they are."""
    if target.exists():
        if not force and (before := score(target)) > (after := score(new)):
            raise LowerScore(f"{after:.3f} is lower than the {before:.3f} of {target}; --force ignores that")
        keep_notes(target, new)
        old = target.with_name(target.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--target", type=Path, default=Path("models/starter"))
    parser.add_argument("--vae", type=Path, help="the VAE's folder; without it that of --target")
    parser.add_argument("--count", type=int, default=100, help="names to draw for the score")
    parser.add_argument("--force", action="store_true", help="replace the present model whatever its score")


def run(options: argparse.Namespace) -> None:
    target: Path = options.target
    new = target.with_name(target.name + ".new")
    shutil.rmtree(new, ignore_errors=True)

    def score(folder: Path) -> float:
        found = evaluate(folder, options.work, "wide", options.count, options.device)
        log.info("%s: %s", folder, found)
        return found.top1

    assemble(options.checkpoint, options.vae or target / "vae", target / "tokenizer", new)
    try:
        replace_model(new, target, score, options.force)
    except LowerScore as lower:
        shutil.rmtree(new)
        raise SystemExit(str(lower)) from lower
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    log.info("%s: %.1f MB", target, size / 1e6)
