"""U-Nets and VAEs of latent diffusion: SD 1 and 2, SDXL, its refiner and their pruned relatives; VAEs of SD 3 and Flux.

A file in the makers' layout says nothing about its network's sizes: they are read from the shapes.
"""

from collections.abc import Iterable
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.errors import BadModel
from pipelines.loading.parts import Config, Recipe, Tensors
from pipelines.loading.recipes.shapes import Shapes

UNET_PREFIX = "model.diffusion_model."
HEADS = 8
"""Of each attention in U-Nets of the first kind, whose projections are convolutions: Rombach et al. 2022."""
HEAD_WIDTH = 64
"""Of each head in those of the second kind (SD 2, SDXL), whose projections are linear."""
TIME_WIDTH = 256
"""Numbers that each of SDXL's sizes becomes: Podell et al. 2023, section 2.2."""


def settings(config: Config) -> Config:
    """diffusers' own notes, such as _class_name, are no arguments."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def unet_config(tensors: Tensors) -> Config:
    shapes = Shapes(tensors)
    downs, mid, ups = _down_levels(shapes), _depth(shapes, "middle_block.1."), []
    layers = len(downs[0])
    if any(len(level) != layers for level in downs):
        raise BadModel("The levels of its U-Net have different numbers of layers; such networks are not known.")
    for index in range(len(downs)):
        blocks = range(index * (layers + 1), (index + 1) * (layers + 1))
        ups.append([_depth(shapes, f"output_blocks.{block}.1.") for block in blocks])
    channels = [shapes.rows(f"input_blocks.{1 + i * (layers + 1)}.0.out_layers.3.weight") for i in range(len(downs))]
    config: Config = {
        "in_channels": shapes.columns("input_blocks.0.0.weight"),
        "out_channels": shapes.rows("out.2.weight"),
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if any(level) else "DownBlock2D" for level in downs),
        "up_block_types": tuple("CrossAttnUpBlock2D" if any(level) else "UpBlock2D" for level in ups),
        "mid_block_type": _mid_block(shapes, mid),
        **_depths(downs, mid, ups),
        **_attention(tensors, channels),
    }
    if "label_emb.0.0.weight" in shapes:
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = TIME_WIDTH
        config["projection_class_embeddings_input_dim"] = shapes.columns("label_emb.0.0.weight")
    return config


def _down_levels(shapes: Shapes) -> list[list[int]]:
    """Of each level, its layers, each as the number of transformer blocks in it."""
    levels: list[list[int]] = [[]]
    for block in range(1, shapes.count("input_blocks.")):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(_depth(shapes, f"input_blocks.{block}.1."))
    return levels


def _depth(shapes: Shapes, attention: str) -> int:
    return shapes.count(f"{attention}transformer_blocks.")


def _mid_block(shapes: Shapes, depth: int) -> str | None:
    """The smallest relatives of SDXL have no attention there, or nothing at all."""
    if depth:
        return "UNetMidBlock2DCrossAttn"
    return "UNetMidBlock2D" if shapes.count("middle_block.") else None


def _depths(downs: list[list[int]], mid: int, ups: list[list[int]]) -> Config:
    """How many transformer blocks stand in a row, in diffusers' words. Where none stand, it wants a 1 all the same."""
    forward = [_one_for_all(level) for level in downs]
    if mid and not any(downs[-1]):
        forward[-1] = mid  # the middle takes that of the last level
    if mid and forward[-1] != mid:
        raise BadModel(f"The middle of its U-Net has {mid} transformers and the level before {forward[-1]}.")
    backward = [_one_for_all(level) for level in ups]
    config: Config = {"transformer_layers_per_block": tuple(forward)}
    mirrored = zip(ups, backward, reversed(forward), strict=True)
    if any(any(level) and up != down for level, up, down in mirrored):
        config["reverse_transformer_layers_per_block"] = tuple(backward)
    return config


def _one_for_all(level: list[int]) -> int | tuple[int, ...]:
    depths = [depth or 1 for depth in level]
    return depths[0] if len(set(depths)) == 1 else tuple(depths)


def _attention(tensors: Tensors, channels: list[int]) -> Config:
    shapes = Shapes(tensors)
    first = next((name for name in tensors if name.endswith(".transformer_blocks.0.attn2.to_k.weight")), "")
    if not first:
        raise BadModel("Its U-Net listens to no prompt: it has no cross-attention.")
    linear = len(shapes[f"{first.partition('.transformer_blocks.')[0]}.proj_in.weight"]) == 2
    return {
        "cross_attention_dim": shapes.columns(first),
        "use_linear_projection": linear,
        "attention_head_dim": tuple(max(1, width // HEAD_WIDTH) for width in channels) if linear else HEADS,
    }


def _unet_module(config: Config) -> nn.Module:
    module: nn.Module = UNet2DConditionModel(**config)
    return module


def _unet_names(tensors: Tensors, config: Config) -> Tensors:
    if "conv_in.weight" in tensors:
        return tensors
    prefixed = {UNET_PREFIX + name: tensor for name, tensor in tensors.items()}
    converted: dict[str, Tensor] = convert_ldm_unet_checkpoint(prefixed, config)
    return converted


UNET = Recipe((UNET_PREFIX,), unet_config, _unet_module, _unet_names, settings)

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in VAE folders that were made before 2023, and what they are called now."""


def vae(scaling_factor: float, shift_factor: float | None = None) -> Recipe:
    """A row of the recipes' table for each scale: no file says what its latents are to be multiplied with."""

    def config(tensors: Tensors) -> Config:
        return {**_vae_sizes(Shapes(tensors)), "scaling_factor": scaling_factor, "shift_factor": shift_factor}

    return Recipe(("first_stage_model.", "vae.", ""), config, _vae_module, _vae_names, settings)


def _vae_sizes(shapes: Shapes) -> Config:
    """From the makers' names, or diffusers', in which files that hold a VAE alone often are."""
    own = "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes
    levels, layers = ("encoder.down_blocks.", "resnets") if own else ("encoder.down.", "block")
    count = shapes.count(levels)
    if not count:
        raise BadModel("The file holds no VAE, or one of an unknown kind.")
    return {
        "in_channels": shapes.columns("encoder.conv_in.weight"),
        "out_channels": shapes.rows("decoder.conv_out.weight"),
        "latent_channels": shapes.columns("decoder.conv_in.weight"),
        "block_out_channels": tuple(shapes.rows(f"{levels}{i}.{layers}.0.conv1.weight") for i in range(count)),
        "layers_per_block": shapes.count(f"{levels}0.{layers}."),
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def _vae_module(config: Config) -> nn.Module:
    module: nn.Module = AutoencoderKL(**config)
    return module


def _vae_names(tensors: Tensors, config: Config) -> Tensors:
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        return dict(_renamed(tensors.items()))
    converted: dict[str, Tensor] = convert_ldm_vae_checkpoint(dict(tensors), config)
    return converted


def _renamed(items: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in items:
        head, _, last = name.rpartition(".")
        layer = head.rpartition(".")[2]
        if "attentions" in name and layer in OLD_ATTENTION:
            name = f"{head.removesuffix(layer)}{OLD_ATTENTION[layer]}.{last}"
        flat: Any = tensor[:, :, 0, 0] if "attentions" in name and tensor.ndim == 4 else tensor
        yield name, flat
