"""Qwen-Image. Qwen2.5-VL reads the prompt like a picture; its last layer tells the transformer what to draw."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.families.base import PLAIN, Cond, Reading
from pipelines.families.flow import FlowModel, PaddedCond, from_patches, patches
from pipelines.families.words import cut_notes, qwen_states, text_of, unread
from pipelines.loading.parts import Family, Part
from pipelines.loading.recipes.autoencoders import QWEN_VAE
from pipelines.loading.recipes.dit import QWEN_IMAGE as TRANSFORMER
from pipelines.loading.recipes.qwen_text import QWEN_TEXT
from pipelines.prompt import READERS, Span
from pipelines.samplers import FlowLevels, NoiseLevels
from pipelines.samplers.flow import fixed, growing
from pipelines.types import ModelInfo

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
SYSTEM_TOKENS = 34
"""Of the template up to the prompt: they steer the reading and are not told to the transformer."""
FLOWS: dict[str, NoiseLevels] = {
    "": FlowLevels(growing(most=0.9, most_tokens=8192), terminal=0.02),
    "lightning": FlowLevels(fixed(3.0)),
}
"""Of the published schedulers, by variant; lightning is what has a LoRA for 4 or 8 steps in it."""


class QwenImage(FlowModel):
    """Weights in the prompt are not read: it is part of a chat."""

    reader = READERS["qwen_image"]

    def __init__(self, parts: Mapping[str, Part], info: ModelInfo, device: torch.device) -> None:
        super().__init__(parts, device)
        self.levels = FLOWS.get(info.variant, FLOWS[""])

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> PaddedCond:
        rows, lost = [], []
        part = self.parts["text_encoder"]
        for spans in prompts:
            text = TEMPLATE.format(text_of(spans))
            states = qwen_states(part, text, self.reader.tokens + SYSTEM_TOKENS, self.device)
            rows.append(states.layers[-1][0, SYSTEM_TOKENS:].to(part.dtype))
            lost.append(states.lost)
        return PaddedCond.of(rows, (*cut_notes(self.reader, lost), *unread(self.reader, prompts, reading)))

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        height, width = x.shape[-2:]
        dtype = self.parts["transformer"].dtype
        output = self.transformer(
            hidden_states=patches(x).to(dtype),
            timestep=sigma,
            encoder_hidden_states=cond.tokens.to(dtype),
            encoder_hidden_states_mask=cond.mask if isinstance(cond, PaddedCond) else None,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x),
            return_dict=False,
        )[0]
        return from_patches(output, height, width)

    @property
    def channels(self) -> int:
        return int(self.vae.config.z_dim)

    @property
    def scale(self) -> int:
        return int(2 ** len(self.vae.config.temperal_downsample))

    def from_vae(self, latent: Tensor) -> Tensor:
        mean, spread = self._statistics(latent.device)
        return (latent - mean) / spread

    def to_vae(self, latent: Tensor) -> Tensor:
        mean, spread = self._statistics(latent.device)
        return latent * spread + mean

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of each channel, [channels, 1, 1]."""
        config = self.vae.config
        mean, spread = (
            torch.tensor(row, device=device)[:, None, None] for row in (config.latents_mean, config.latents_std)
        )
        return mean, spread

    def encoded(self, pixels: Tensor) -> Tensor:
        """Its autoencoder is one for videos: a picture is a video of one frame."""
        return super().encoded(pixels.unsqueeze(2)).squeeze(2)

    def decoded(self, latent: Tensor) -> Tensor:
        return super().decoded(latent.unsqueeze(2))[:, :, 0]


QWEN_IMAGE = Family({"transformer": TRANSFORMER, "text_encoder": QWEN_TEXT, "vae": QWEN_VAE}, QwenImage)
