"""Flux.1: dev, schnell and fill. A transformer over patches, told by T5 what to draw and by CLIP in one vector."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import BadModel
from pipelines.families.base import PLAIN, Call, Cond, Reading, covered
from pipelines.families.flow import FlowModel, from_patches, patches, places
from pipelines.families.words import clip_pooled, t5_features, unread
from pipelines.loading.parts import Family, Part
from pipelines.loading.recipes.clip import clip
from pipelines.loading.recipes.dit import FLUX as TRANSFORMER
from pipelines.loading.recipes.ldm import vae
from pipelines.loading.recipes.t5 import T5
from pipelines.prompt import READERS, Span
from pipelines.samplers import FlowLevels
from pipelines.samplers.flow import fixed, growing
from pipelines.types import ModelInfo

GUIDANCE = {"fill": 30.0}
DEFAULT_GUIDANCE = 3.5
"""What its makers recommend for dev. The network is told it, and has learned to draw as if it were guided so."""

DEV_TOKENS, SCHNELL_TOKENS = 512, 256
"""To this length T5's prompts were filled up in training."""
MASK_CHANNELS = 64
"""A pixel mask of 8 x 8 to each latent, as channels."""


class Flux(FlowModel):
    """A weight in the prompt multiplies T5's features of its words; CLIP's one vector knows none."""

    joint_regions = True
    """Texts of regions can stand one behind the other, kept apart by a mask."""

    reader = READERS["flux"]

    def __init__(self, parts: Mapping[str, Part], info: ModelInfo, device: torch.device) -> None:
        super().__init__(parts, device)
        config = self.transformer.config
        self.guidance = GUIDANCE.get(info.variant, DEFAULT_GUIDANCE) if config.guidance_embeds else None
        self.levels = FlowLevels(growing() if config.guidance_embeds else fixed(1.0))
        self.reader = self.reader._replace(tokens=DEV_TOKENS if config.guidance_embeds else SCHNELL_TOKENS)
        self.fill = config.in_channels == config.out_channels + 64 + 4 * MASK_CHANNELS
        self._nothing: Tensor | None = None
        if not self.fill and config.in_channels != config.out_channels:
            raise BadModel(f"{info.name} draws after another picture, as control models do. These cannot be run yet.")

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        tokens, notes = t5_features(self.parts["text_encoder_2"], prompts, self.reader, self.device, reading)
        pooled = clip_pooled(self.parts["text_encoder"], prompts, self.device)
        return Cond(tokens, pooled, notes=(*notes, *unread(self.reader, prompts, reading)))

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        height, width = x.shape[-2:]
        dtype = self.parts["transformer"].dtype
        told = {
            "guidance": None if self.guidance is None else torch.full_like(sigma, self.guidance),
            "pooled_projections": None if cond.pooled is None else cond.pooled.to(dtype),
            "encoder_hidden_states": cond.tokens.to(dtype),
            "txt_ids": torch.zeros(cond.tokens.shape[1], 3, device=self.device),
            "img_ids": places(height // 2, width // 2, (3, 1, 2), self.device),
        }
        with self.asides.heard(Call(x, sigma, float(sigma[0]), cond, told)) as call:
            tokens = self._tokens(call).to(dtype)
            output = self.transformer(hidden_states=tokens, timestep=sigma, return_dict=False, **call.told)[0]
        return from_patches(output, height, width)

    def beside(self, picture: Tensor, mask: Tensor, hidden: float = 1.0) -> Tensor | None:
        """Of fill: the picture without what lies under the mask, and the mask in pixels."""
        if not self.fill:
            return None
        shown = self.to_latent(covered(picture, mask, hidden))
        return torch.cat([shown, functional.pixel_unshuffle(mask.to(shown), self.scale)], 1)

    def _tokens(self, call: Call) -> Tensor:
        """Of the latents, and for fill of what is beside them: without a picture that is grey under a mask that covers
        all of it, encoded in the first step of a size, and kept."""
        tokens = patches(call.x)
        if not self.fill:
            return tokens
        height, width = call.x.shape[-2:]
        shown = self._blank(height, width) if call.beside is None else call.beside
        rows, columns = shown.shape[-2:]
        shown = functional.pad(shown, (0, width - columns, 0, height - rows), mode="replicate")
        return torch.cat([tokens, patches(shown).expand(len(tokens), -1, -1)], -1)

    def _blank(self, height: int, width: int) -> Tensor:
        if self._nothing is None or self._nothing.shape[-2:] != (height, width):
            grey = torch.full((1, 3, height * self.scale, width * self.scale), 0.5)
            self._nothing = self.beside(grey, torch.ones_like(grey[:, :1]))
        assert self._nothing is not None  # fill always has something beside
        return self._nothing


CLIP_L = clip(("text_encoders.clip_l.transformer.", ""))
VAE = vae(0.3611, 0.1159)
"""Published with the models: Z-Image has the same."""

FLUX = Family({"transformer": TRANSFORMER, "text_encoder": CLIP_L, "text_encoder_2": T5, "vae": VAE}, Flux)
