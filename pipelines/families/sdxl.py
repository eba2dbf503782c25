"""SDXL and its refiner: two text encoders, a pooled prompt, and a network that is told sizes. Podell et al. 2023."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipelines.families.base import PLAIN, Cond, Reading
from pipelines.families.clip import OPEN_CLIP_PAD, Chunks, ClipPrompts, Layer
from pipelines.families.unet import UNetModel
from pipelines.loading.parts import Config, Family, Part, Recipe
from pipelines.loading.recipes.clip import clip
from pipelines.loading.recipes.ldm import UNET, vae
from pipelines.loading.weights import names_in
from pipelines.prompt import Span
from pipelines.samplers.levels import ALIGNED_SDXL
from pipelines.tokenizers.clip import tokenizer_of
from pipelines.types import ModelInfo

SCALE = 0.13025
LIKED, DISLIKED = 6.0, 2.5
"""Marks from 0 to 10 that the refiner was trained with: what to draw towards, and what to stay away from."""
ZERO_SNR = "ztsnr"
"""A tensor of this name says that a model for v was trained up to pure noise (Lin et al. 2023)."""
VAE = vae(SCALE)
LAYER = Layer(normed=False, least=2)
"""The layer before the last, of both encoders."""


class SDXL(UNetModel):
    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": clip(("conditioner.embedders.0.transformer.", "")),
        "text_encoder_2": clip(("conditioner.embedders.1.model.", ""), projected=True),
    }
    SIZED = True

    def __init__(self, parts: Mapping[str, Part], info: ModelInfo, device: torch.device) -> None:
        super().__init__(parts, info, device)
        self.levels.aligned = ALIGNED_SDXL
        self.prompts = self._tokenizer(info.path)
        self.tokenizer = self.prompts.tokenizer

    def _tokenizer(self, path: Path) -> ClipPrompts:
        """Both encoders have the same vocabulary; only what they are filled up with differs."""
        return ClipPrompts(tokenizer_of(path), self.device, self.parts["text_encoder"], self.parts["text_encoder_2"])

    def schedule(self, path: Path) -> Config:
        return {**super().schedule(path), **({"rescale_betas_zero_snr": True} if ZERO_SNR in names_in(path) else {})}

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        """Rows of [chunks * 77, width of both], and the pooled output of the first chunk of each."""
        chunks = self.prompts.chunks(prompts, reading)
        one, _ = self.prompts.read(self.parts["text_encoder"], LAYER, chunks)
        two, pooled = self.prompts.read(self.parts["text_encoder_2"], LAYER, chunks, OPEN_CLIP_PAD)
        return self._cond(torch.cat([one, two], -1), pooled, chunks)

    def _cond(self, features: Tensor, pooled: Tensor, chunks: Chunks) -> Cond:
        dtype, count = self.parts["unet"].dtype, len(chunks.rows) // chunks.of_each
        tokens = features.to(dtype).reshape(count, -1, features.shape[-1])
        return Cond(tokens, pooled[:: chunks.of_each].to(dtype), notes=chunks.notes)

    def told(self, x: Tensor, cond: Cond) -> dict[str, Any]:
        """The picture's own size, uncropped, at its own size."""
        pooled, sizes = self._sizes(x, cond)
        return {
            "encoder_hidden_states": cond.tokens,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes},
        }

    def _sizes(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        height, width = (side * self.scale for side in x.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device)
        return _pooled(cond), sizes.to(cond.tokens.dtype).expand(len(x), -1)


class Refiner(SDXL):
    """The last steps of SDXL: the second text encoder alone, and marks for beauty instead of a target size."""

    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "unet": UNET,
        "vae": VAE,
        "text_encoder_2": clip(("conditioner.embedders.0.model.", ""), projected=True),
    }

    def _tokenizer(self, path: Path) -> ClipPrompts:
        return ClipPrompts(tokenizer_of(path, "tokenizer_2"), self.device, self.parts["text_encoder_2"])

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        chunks = self.prompts.chunks(prompts, reading)
        return self._cond(*self.prompts.read(self.parts["text_encoder_2"], LAYER, chunks, OPEN_CLIP_PAD), chunks)

    def _sizes(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        height, width = (side * self.scale for side in x.shape[-2:])
        pooled = _pooled(cond)
        away = cond.away or (False,) * len(x)
        rows = [[height, width, 0, 0, DISLIKED if row else LIKED] for row in away]
        return pooled, torch.tensor(rows, device=self.device, dtype=pooled.dtype)


def _pooled(cond: Cond) -> Tensor:
    if cond.pooled is None:
        raise ValueError("SDXL needs the pooled output of its text encoder")
    return cond.pooled


FAMILY = Family(SDXL.RECIPES, SDXL)
REFINER = Family(Refiner.RECIPES, Refiner)
