"""Step 3: the training set of text encoder and U-Net: latents of the chosen pictures, captions as tokens, weights."""

import argparse
import logging
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from tools.starter.captions import caption
from tools.starter.concepts import Concepts, read_concepts
from tools.starter.data import load_pictures
from tools.starter.networks import LONG, SCALING
from tools.starter.pictures import Picture, Pixels, Style
from tools.starter.tokens import TokenTable

log = logging.getLogger(__name__)

CAPTIONS = 16
"""Of each picture."""
SHORT = 32
"""Tokens of a caption while training; most of the 77 would be padding."""

STYLE_WEIGHTS = {"3d": 1.0, "flat": 0.5, "line": 0.35, "glyph": 0.12, "flag": 0.6}


class Labels(BaseModel):
    """What each picture shows; kept in the file's header."""

    model_config = ConfigDict(frozen=True)

    names: tuple[str, ...]
    styles: tuple[Style, ...]


@dataclass(frozen=True)
class TrainingSet:
    """N pictures: latents (N, 4, 16, 16) of unit variance; captions (N, 16, 77) and their last tokens (N, 16)."""

    latents: Tensor
    captions: Tensor
    ends: Tensor
    weights: Tensor
    empty: Tensor
    tokens: TokenTable
    labels: Labels


def weight_of(picture: Picture, concepts: Concepts) -> float:
    """How often a picture is drawn, relative to the others."""
    share = STYLE_WEIGHTS[picture.style] * (0.25 if picture.background else 1) * (0.25 if picture.recolored else 1)
    return share * (1.4 if picture.name in concepts.added else 1.0)  # the later ones start from nothing


def encode(vae: Any, pixels: Pixels, chosen: list[int], device: str) -> Tensor:
    """Latents of unit variance, shape (n, 4, 16, 16)."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(chosen), 64):
            batch = torch.from_numpy(pixels[chosen[start : start + 64]].copy()).to(device)
            images = batch.permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append((vae.encode(images).latent_dist.mode() * SCALING).cpu())
    return torch.cat(parts)


def write_captions(pictures: list[Picture], concepts: Concepts) -> list[str]:
    """16 of each picture. A tag that many things share (`animal`) says too little and is left out."""
    chance = random.Random(0)
    spread = Counter(tag for _, tag in {(picture.name, tag) for picture in pictures for tag in picture.tags})
    written = []
    for picture in pictures:
        telling = picture.model_copy(update={"tags": tuple(tag for tag in picture.tags if spread[tag] <= 3)})
        aliases = concepts.aliases.get(picture.name, ())
        written += [caption(telling, aliases, chance) for _ in range(CAPTIONS)]
    return written


def load_set(path: Path) -> TrainingSet:
    with safe_open(path, framework="pt") as file:
        return TrainingSet(
            latents=file.get_tensor("latents").float(),
            captions=file.get_tensor("captions"),
            ends=file.get_tensor("ends"),
            weights=file.get_tensor("weights"),
            empty=file.get_tensor("empty"),
            tokens=TokenTable(file.get_tensor("tokens").numpy()),
            labels=Labels.model_validate_json(file.metadata()["labels"]),
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", type=Path, default=Path("models/starter"), help="a pipeline folder: its tokenizer")
    parser.add_argument("--vae", type=Path, help="the VAE's folder; without it that of --base")
    parser.add_argument("--everything", action="store_true", help="all pictures, not only those of concepts.toml")


def run(options: argparse.Namespace) -> None:
    concepts = read_concepts()
    pictures, pixels = load_pictures(options.work)
    wanted = concepts.wide
    chosen = [i for i, picture in enumerate(pictures) if options.everything or picture.name in wanted]
    used = [pictures[i] for i in chosen]
    vae = AutoencoderKL.from_pretrained(options.vae or options.base / "vae", dtype=torch.float32)
    latents = encode(vae.to(options.device).eval(), pixels, chosen, options.device)
    log.info("latents: mean %.3f, standard deviation %.3f (should be 0 and 1)", latents.mean(), latents.std())
    tokenizer = CLIPTokenizer.from_pretrained(options.base / "tokenizer")
    asked = {"padding": "max_length", "truncation": True, "max_length": LONG, "return_tensors": "np"}
    ids = tokenizer([*write_captions(used, concepts), ""], **asked)["input_ids"].astype(np.int64)
    ends = (ids == tokenizer.eos_token_id).argmax(1)
    if ends.max() >= SHORT:
        log.warning("the longest caption has %d tokens, of which %d are trained on", ends.max() + 1, SHORT)
    tokens = TokenTable.of(ids)
    small = torch.from_numpy(tokens.compact(ids))
    weights = torch.tensor([weight_of(picture, concepts) for picture in used], dtype=torch.float64)
    tensors = {
        "latents": latents.half().contiguous(),
        "captions": small[:-1].view(len(used), CAPTIONS, LONG),
        "ends": torch.from_numpy(ends[:-1]).view(len(used), CAPTIONS),
        "weights": weights / weights.sum(),
        "empty": small[-1].clone(),
        "tokens": torch.from_numpy(tokens.clip_ids),
    }
    labels = Labels(names=tuple(p.name for p in used), styles=tuple(p.style for p in used))
    save_file(tensors, options.work / "train.safetensors", metadata={"labels": labels.model_dump_json()})
    log.info("%d pictures of %d concepts, %d tokens", len(used), len(set(labels.names)), tokens.rows - 1)
