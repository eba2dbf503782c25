"""The diffusion transformers: SD 3, Flux.1, FLUX.2, Z-Image, Qwen-Image, in their makers' layout or in diffusers'."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from diffusers.loaders import single_file_utils as single_file
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope, QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from torch import nn

from pipelines.loading.parts import Config, Recipe, Tensors
from pipelines.loading.recipes.packed import packable
from pipelines.loading.recipes.rows import Converter, by_rows
from pipelines.loading.recipes.shapes import Shapes

PREFIXES = ("model.diffusion_model.", "transformer.", "")
FLUX_WIDTH = 3072
"""diffusers' converter cuts Flux's fused layers at this width, whatever the file's is."""


def _converted(tensors: Tensors, marker: str, converter: Converter) -> Tensors:
    """`marker`: a tensor that only diffusers' layout has."""
    return tensors if marker in tensors else by_rows(tensors, converter)


def _sd3_names(tensors: Tensors) -> Tensors:
    return _converted(tensors, "pos_embed.proj.weight", single_file.convert_sd3_transformer_checkpoint_to_diffusers)


def _flux_names(tensors: Tensors) -> Tensors:
    if "x_embedder.weight" in tensors:
        return tensors
    width = Shapes(tensors).rows("img_in.weight")
    converter = single_file.convert_flux_transformer_checkpoint_to_diffusers
    return by_rows(tensors, converter, Fraction(FLUX_WIDTH, width), width)


def _flux2_names(tensors: Tensors) -> Tensors:
    return _converted(tensors, "x_embedder.weight", single_file.convert_flux2_transformer_checkpoint_to_diffusers)


def _z_image_names(tensors: Tensors) -> Tensors:
    """The layouts mix: diffusers' converter leaves alone what already has its name."""
    marker = "all_x_embedder.2-1.weight"
    return _converted(tensors, marker, single_file.convert_z_image_transformer_checkpoint_to_diffusers)


def _as_they_are(tensors: Tensors) -> Tensors:
    """Qwen-Image's own files carry diffusers' names; one of repackers' markers is no weight."""
    return {name: tensor for name, tensor in tensors.items() if name != "__index_timestep_zero__"}


def _sd3_config(shapes: Shapes) -> Config:
    width, channels, patch, _ = shapes["pos_embed.proj.weight"]
    normed = "transformer_blocks.0.attn.norm_q.weight" in shapes
    head = shapes.rows("transformer_blocks.0.attn.norm_q.weight") if normed else 64  # Esser et al. 2024, section 5.1
    layers = shapes.count("transformer_blocks.")
    return {
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes.rows("proj_out.weight") // patch**2,
        "num_layers": layers,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes.columns("context_embedder.weight"),
        "caption_projection_dim": shapes.rows("context_embedder.weight"),
        "pooled_projection_dim": shapes.columns("time_text_embed.text_embedder.linear_1.weight"),
        "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]),
        "dual_attention_layers": tuple(
            i for i in range(layers) if f"transformer_blocks.{i}.attn2.to_q.weight" in shapes
        ),
        "qk_norm": "rms_norm" if normed else None,
    }


def _flux_config(shapes: Shapes) -> Config:
    return {**flux_sizes(shapes), "out_channels": shapes.rows("proj_out.weight")}


def flux_sizes(shapes: Shapes) -> Config:
    """Of the transformer and of its ControlNets."""
    sizes = _double_and_single(shapes)
    return {
        **sizes,
        "pooled_projection_dim": shapes.columns("time_text_embed.text_embedder.linear_1.weight"),
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": _axes(sizes["attention_head_dim"], 8),
    }


def _double_and_single(shapes: Shapes) -> Config:
    """What Flux.1 and FLUX.2 have in common: blocks for picture and prompt side by side, then blocks for both."""
    width, channels = shapes["x_embedder.weight"]
    head = shapes.rows("transformer_blocks.0.attn.norm_q.weight")
    return {
        "in_channels": channels,
        "num_layers": shapes.count("transformer_blocks."),
        "num_single_layers": shapes.count("single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes.columns("context_embedder.weight"),
    }


def _axes(head: int, first: int) -> tuple[int, int, int]:
    """A head's dimensions by what their rotation means: 1 / `first` of them time, the rest height and width."""
    side = (head - head // first) // 2
    return (head - 2 * side, side, side)


def _flux2_config(shapes: Shapes) -> Config:
    sizes = _double_and_single(shapes)
    width, _ = shapes["x_embedder.weight"]
    return {
        **sizes,
        "mlp_ratio": shapes.columns("transformer_blocks.0.ff.linear_out.weight") / width,
        "axes_dims_rope": (sizes["attention_head_dim"] // 4,) * 4,
        "guidance_embeds": "time_guidance_embed.guidance_embedder.linear_1.weight" in shapes,
    }


def _z_image_config(shapes: Shapes) -> Config:
    width, patch = shapes["all_x_embedder.2-1.weight"]
    head = shapes.rows("layers.0.attention.norm_q.weight")
    return {
        "in_channels": patch // 4,
        "dim": width,
        "n_layers": shapes.count("layers."),
        "n_refiner_layers": shapes.count("noise_refiner."),
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "cap_feat_dim": shapes.columns("cap_embedder.1.weight"),
        "axes_dims": _axes(head, 4),
        "axes_lens": (1536, 512, 512),
    }


def _qwen_config(shapes: Shapes) -> Config:
    width, channels = shapes["img_in.weight"]
    head = shapes.rows("transformer_blocks.0.attn.norm_q.weight")
    return {
        "in_channels": channels,
        "out_channels": shapes.rows("proj_out.weight") // 4,
        "num_layers": shapes.count("transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes.columns("txt_in.weight"),
        "axes_dims_rope": _axes(head, 8),
    }


def _qwen_module(config: Config) -> nn.Module:
    module: nn.Module = QwenImageTransformer2DModel(**config)
    with torch.device("cpu"):  # a table that is no buffer, so that loading weights does not fill it
        module.pos_embed = QwenEmbedRope(theta=10000, axes_dim=list(config["axes_dims_rope"]), scale_rope=True)
    return module


def _recipe(names: Callable[[Tensors], Tensors], config: Callable[[Shapes], Config], build: Any) -> Recipe:
    return packable(PREFIXES, names, config, build)


def _of(kind: Any) -> Callable[[Config], nn.Module]:
    def build(config: Config) -> nn.Module:
        module: nn.Module = kind(**config)
        return module

    return build


SD3 = _recipe(_sd3_names, _sd3_config, _of(SD3Transformer2DModel))
FLUX = _recipe(_flux_names, _flux_config, _of(FluxTransformer2DModel))
FLUX2 = _recipe(_flux2_names, _flux2_config, _of(Flux2Transformer2DModel))
Z_IMAGE = _recipe(_z_image_names, _z_image_config, _of(ZImageTransformer2DModel))
QWEN_IMAGE = _recipe(_as_they_are, _qwen_config, _qwen_module)
