"""Stable Diffusion 1.x. diffusers and transformers own the modules; this file owns the mathematics around them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from pipelines.errors import BadModel, PipelineError
from pipelines.families.base import Cond
from pipelines.loading import check_folder, load_module, load_part, read_config
from pipelines.prompt import Span
from pipelines.samplers import NoiseLevels

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler/scheduler_config.json")
PREDICTIONS = ("epsilon", "v_prediction")


class SD1:
    def __init__(self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, scheduler: dict[str, Any]) -> None:
        self.unet, self.vae, self.text_encoder, self.tokenizer = unet, vae, text_encoder, tokenizer
        self.device: torch.device = unet.device
        self._dtype: torch.dtype = unet.dtype  # of all parts; the property walks all weights, 1.5 ms each time
        self.levels = NoiseLevels.of_config(scheduler)
        self.prediction: str = scheduler.get("prediction_type", "epsilon")
        if self.prediction not in PREDICTIONS:
            raise BadModel(f"The model predicts {self.prediction!r}; {' and '.join(PREDICTIONS)} are known.")
        if not text_encoder.config.vocab_size // 2 <= len(tokenizer) <= text_encoder.config.vocab_size:
            raise BadModel("The model's tokenizer does not fit its text encoder. Download it again.")
        if unet.config.in_channels != vae.config.latent_channels:
            raise BadModel("The model takes more than a latent, as inpainting models do. These cannot be run yet.")

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "SD1":
        check_folder(path, PARTS)
        disable_progress_bar()  # of transformers: a worker has no terminal
        return cls(
            load_module(UNet2DConditionModel.from_pretrained, path / "unet", device),
            load_module(AutoencoderKL.from_pretrained, path / "vae", device),
            load_module(CLIPTextModel.from_pretrained, path / "text_encoder", device),
            load_part(CLIPTokenizer.from_pretrained, path / "tokenizer"),
            read_config(path / "scheduler" / "scheduler_config.json"),
        )

    def encode(self, prompts: Sequence[Sequence[Span]]) -> Cond:
        """Prompts of any length: chunks of 75 tokens are encoded apart and joined, as A1111 does."""
        tokens = [self._tokens(spans) for spans in prompts]
        room = self.text_encoder.config.max_position_embeddings - 2
        chunks = max(1, *(math.ceil(len(row) / room) for row in tokens))
        begin, end = (self.tokenizer.bos_token_id, 1.0), (self.tokenizer.eos_token_id, 1.0)
        rows = []
        for row in tokens:
            for start in range(0, chunks * room, room):
                chunk = row[start : start + room]
                rows.append([begin, *chunk, *[end] * (room + 1 - len(chunk))])
        ids = torch.tensor([[token for token, _ in row] for row in rows], device=self.device)
        features = self.text_encoder(ids)[0].float()
        weights = torch.tensor([[weight for _, weight in row] for row in rows], device=self.device)
        features = _weighted(features, weights).to(self._dtype)
        return Cond(features.reshape(len(tokens), -1, features.shape[-1]))

    def _tokens(self, spans: Sequence[Span]) -> list[tuple[int, float]]:
        return [
            (token, span.weight)
            for span in spans
            for token in self.tokenizer(span.text, add_special_tokens=False, verbose=False).input_ids
        ]

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return (self.unet.config.in_channels, height // self._scale, width // self._scale)

    @property
    def _scale(self) -> int:
        """Pixels of a picture to one of its latent, along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def predict(self, x: Tensor, sigma: float, cond: Cond) -> Tensor:
        """Karras et al. 2022, equation 7, with c_skip and c_out of what the model was trained to predict."""
        shrink = 1 / math.sqrt(sigma**2 + 1)
        step = torch.full((len(x),), self.levels.step(sigma), device=self.device)
        output: Tensor = self.unet((x * shrink).to(self._dtype), step, cond.tokens, return_dict=False)[0].float()
        if self.prediction == "v_prediction":  # v = alpha noise - sigma x0, Salimans and Ho 2022, appendix D
            return x * shrink**2 - output * (sigma * shrink)
        return x - output * sigma

    def to_latent(self, pixels: Tensor) -> Tensor:
        pixels = (pixels * 2 - 1).to(self.device, self._dtype)
        latent: Tensor = self.vae.encode(pixels).latent_dist.mode().float() * self.vae.config.scaling_factor
        return latent

    def decode(self, latent: Tensor) -> PIL.Image.Image:
        scaled = (latent / self.vae.config.scaling_factor).to(self.device, self._dtype)
        pixels = self.vae.decode(scaled[None], return_dict=False)[0][0].float()
        if not pixels.isfinite().all():
            raise PipelineError(
                "The picture came out as invalid numbers (NaN). Lower the CFG scale and the weights in the prompt; "
                "if it stays so, the model's files are damaged or need full precision."
            )
        levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return PIL.Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """Token features times their weights, brought back to the mean that they had: A1111's emphasis 'Original'."""
    if bool((weights == 1).all()):
        return features
    weighted = features * weights[..., None]
    before, after = features.mean((1, 2), keepdim=True), weighted.mean((1, 2), keepdim=True)
    # A mean near 0 says nothing: a quotient of rounding errors. SD 1.5 has 0.1 of the spread, small models 0.001.
    telling = torch.minimum(before.abs(), after.abs()) > 0.01 * features.std((1, 2), keepdim=True)
    return weighted * torch.where(telling, before / after, 1)
