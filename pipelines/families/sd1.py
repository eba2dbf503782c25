"""Stable Diffusion 1.x, for inpainting and InstructPix2Pix as well. Its prompts are read by OpenAI's CLIP."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from pipelines.families.base import PLAIN, Cond, Reading
from pipelines.families.clip import ClipPrompts, Layer
from pipelines.families.unet import UNetModel
from pipelines.loading.parts import Family, Part, Recipe
from pipelines.loading.recipes.clip import clip
from pipelines.loading.recipes.ldm import UNET, vae
from pipelines.prompt import Span
from pipelines.tokenizers.clip import tokenizer_of
from pipelines.types import ModelInfo

SCALE = 0.18215
"""Of latents, so that they have unit variance: Rombach et al. 2022, appendix G."""


class SD1(UNetModel):
    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "unet": UNET,
        "vae": vae(SCALE),
        "text_encoder": clip(("cond_stage_model.transformer.", "")),
    }
    PAD: ClassVar[int | None] = None
    """What follows the end of a prompt; None: the end again."""
    LAYER: ClassVar[Layer] = Layer()

    def __init__(self, parts: Mapping[str, Part], info: ModelInfo, device: torch.device) -> None:
        super().__init__(parts, info, device)
        self.text_encoder: Any = parts["text_encoder"].module
        self.prompts = ClipPrompts(tokenizer_of(info.path), device, parts["text_encoder"])
        self.tokenizer = self.prompts.tokenizer

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        """Rows of [chunks * 77, width]."""
        chunks = self.prompts.chunks(prompts, reading)
        features, _ = self.prompts.read(self.parts["text_encoder"], self.LAYER, chunks, self.PAD)
        tokens = features.to(self.parts["unet"].dtype)
        return Cond(tokens.reshape(len(prompts), -1, tokens.shape[-1]), notes=chunks.notes)


FAMILY = Family(SD1.RECIPES, SD1)
