"""The three networks: their sizes, and how the text encoder is built around a small token table."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tools.starter.tokens import CLIP_VOCABULARY, TokenTable

WIDTH = 192
"""Of the text states and of cross-attention."""

SCALING = 0.18215
"""Stable Diffusion's factor from the VAE's latents to those of standard deviation 1."""

LONG = 77
"""Tokens of a prompt in Stable Diffusion, with padding."""

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (16, 32, 64, 96),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "mid_block_add_attention": False,
    "sample_size": 128,
    "scaling_factor": SCALING,
}

TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": LONG,
    "projection_dim": WIDTH,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": None,
}


def new_unet() -> Any:
    return UNet2DConditionModel(**UNET)


def new_vae() -> Any:
    return AutoencoderKL(**VAE)


def new_text_encoder(rows: int = CLIP_VOCABULARY) -> Any:
    return CLIPTextModel(CLIPTextConfig(vocab_size=rows, **TEXT))


def new_sampler() -> Any:
    """What the pipeline folder names as its scheduler."""
    return DPMSolverMultistepScheduler(
        **NOISE, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1
    )


def token_table(text_encoder: nn.Module) -> nn.Parameter:
    """The parameter of shape (rows, width)."""
    table = next(value for name, value in text_encoder.named_parameters() if "token_embedding" in name)
    return table


def swap_table(text_encoder: nn.Module, rows: Tensor) -> Any:
    """A copy of the text encoder with another token table."""
    other = new_text_encoder(len(rows))
    kept = {name: value for name, value in text_encoder.state_dict().items() if "token_embedding" not in name}
    other.load_state_dict(kept, strict=False)
    with torch.no_grad():
        token_table(other).copy_(rows)
    return other


def shrink(text_encoder: nn.Module, tokens: TokenTable) -> Any:
    """For training: with the small table."""
    return swap_table(text_encoder, tokens.compact_rows(token_table(text_encoder).detach().float()))


def grow(text_encoder: nn.Module, tokens: TokenTable) -> Any:
    """For the pipeline: with all of CLIP's 49,408 tokens."""
    return swap_table(text_encoder, tokens.expand_rows(token_table(text_encoder).detach()))
