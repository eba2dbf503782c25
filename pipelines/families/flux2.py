"""FLUX.2 klein. Qwen3 reads the prompt; three of its layers, side by side, tell the transformer what to draw."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.errors import BadModel
from pipelines.families.base import PLAIN, Cond, Reading
from pipelines.families.flow import FlowModel, from_patches, patches, places
from pipelines.families.words import cut_notes, qwen_states, text_of, unread
from pipelines.loading.parts import Family, Part
from pipelines.loading.recipes.autoencoders import FLUX2_VAE
from pipelines.loading.recipes.dit import FLUX2 as TRANSFORMER
from pipelines.loading.recipes.qwen_text import QWEN_TEXT
from pipelines.prompt import READERS, Span
from pipelines.samplers import FlowLevels, NoiseLevels
from pipelines.samplers.flow import flux2
from pipelines.types import ModelInfo

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
"""Qwen3's chat template for an answer without thinking."""
QUARTERS = (1, 2, 3)
"""Layers 9, 18 and 27 of the 36 that Qwen3-4B and 8B have."""


class Flux2(FlowModel):
    """Weights in the prompt are not read: it is part of a chat. Latents have 32 channels and 8 pixels to a side, like
    the others'; the transformer sees 2 x 2 of them as one token, each of the 128 numbers with a mean and a spread."""

    reader = READERS["flux2"]
    levels: NoiseLevels = FlowLevels(flux2)

    def __init__(self, parts: Mapping[str, Part], info: ModelInfo, device: torch.device) -> None:
        super().__init__(parts, device)
        if self.transformer.config.guidance_embeds:
            raise BadModel(f"{info.name} is FLUX.2 dev, which cannot be run yet. Take FLUX.2 klein.")

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        """The filled-up places are told as well, as in training."""
        rows, lost = [], []
        part = self.parts["text_encoder"]
        for spans in prompts:
            states = qwen_states(part, TEMPLATE.format(text_of(spans)), self.reader.tokens, self.device, pad=True)
            last = len(states.layers) - 1
            rows.append(torch.cat([states.layers[last * quarter // 4] for quarter in QUARTERS], -1))
            lost.append(states.lost)
        notes = (*cut_notes(self.reader, lost), *unread(self.reader, prompts, reading))
        return Cond(torch.cat(rows).to(part.dtype), notes=notes)

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        height, width = x.shape[-2:]
        dtype = self.parts["transformer"].dtype
        text = torch.zeros(cond.tokens.shape[1], 4, device=self.device)
        text[:, 3] = torch.arange(len(text), device=self.device)
        output = self.transformer(
            hidden_states=patches(x).to(dtype),
            timestep=sigma,
            guidance=None,
            encoder_hidden_states=cond.tokens.to(dtype),
            txt_ids=text,
            img_ids=places(height // 2, width // 2, (4, 1, 2), self.device),
            return_dict=False,
        )[0]
        return from_patches(output, height, width)

    def from_vae(self, latent: Tensor) -> Tensor:
        mean, spread = self._statistics(latent)
        return (latent - mean) / spread

    def to_vae(self, latent: Tensor) -> Tensor:
        mean, spread = self._statistics(latent)
        return latent * spread + mean

    def _statistics(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Of each channel at even and odd rows and columns, [channels, height, width]."""
        norm = self.vae.bn
        spread = (norm.running_var.float() + self.vae.config.batch_norm_eps).sqrt()
        height, width = latent.shape[-2:]
        tiles = (1, -(-height // 2), -(-width // 2))
        mean, spread = (
            values.to(latent.device, torch.float32).reshape(-1, 2, 2).repeat(tiles)[:, :height, :width]
            for values in (norm.running_mean, spread)
        )
        return mean, spread


FLUX2 = Family({"transformer": TRANSFORMER, "text_encoder": QWEN_TEXT, "vae": FLUX2_VAE}, Flux2)
