"""SDXL and its refiner: two text encoders, a pooled prompt, and a network that is told sizes. Podell et al. 2023."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipelines.families.base import PLAIN, Cond, Reading
from pipelines.families.clip import OPEN_CLIP_PAD, Chunks, ClipPrompts, tokenizer_of, weighted
from pipelines.families.unet import UNetModel
from pipelines.loading.parts import Config, Family, Part, Recipe
from pipelines.loading.recipes.clip import clip
from pipelines.loading.recipes.ldm import UNET, vae
from pipelines.loading.weights import names_in
from pipelines.prompt import Span
from pipelines.samplers.levels import ALIGNED_SDXL
from pipelines.types import ModelInfo

SCALE = 0.13025
LIKED, DISLIKED = 6.0, 2.5
"""Marks from 0 to 10 that the refiner was trained with: what to draw towards, and what to stay away from."""
ZERO_SNR = "ztsnr"
"""A tensor of this name says that a model for v was trained up to pure noise (Lin et al. 2023)."""
VAE = vae(SCALE)


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
        self._prompts = self._tokenizer(info.path)
        self.tokenizer = self._prompts.tokenizer

    def _tokenizer(self, path: Path) -> ClipPrompts:
        """Both encoders have the same vocabulary; only what they are filled up with differs."""
        return ClipPrompts(tokenizer_of(path), self.parts["text_encoder"])

    def schedule(self, path: Path) -> Config:
        return {**super().schedule(path), **({"rescale_betas_zero_snr": True} if ZERO_SNR in names_in(path) else {})}

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        """Rows of [chunks * 77, width of both], and the pooled output of the first chunk of each."""
        first = self._prompts.chunks(prompts, self.device)
        second = self._prompts.chunks(prompts, self.device, OPEN_CLIP_PAD)
        one, _ = self._features("text_encoder", first)
        two, pooled = self._features("text_encoder_2", second)
        return self._cond(torch.cat([one, two], -1), pooled, len(prompts))

    def _features(self, part: str, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Of the layer before the last, without the final norm; and of the whole prompt, if the encoder gives that."""
        encoder: Any = self.parts[part].module
        output = encoder(chunks.ids, output_hidden_states=True)
        return weighted(output.hidden_states[-2].float(), chunks.weights), output[0][:: chunks.of_each]

    def _cond(self, features: Tensor, pooled: Tensor, count: int) -> Cond:
        dtype = self.parts["unet"].dtype
        return Cond(features.to(dtype).reshape(count, -1, features.shape[-1]), pooled.to(dtype))

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
        return ClipPrompts(tokenizer_of(path, "tokenizer_2"), self.parts["text_encoder_2"])

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        features, pooled = self._features("text_encoder_2", self._prompts.chunks(prompts, self.device, OPEN_CLIP_PAD))
        return self._cond(features, pooled, len(prompts))

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
