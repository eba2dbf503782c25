"""ControlNets of SD 1, SD 2 and SDXL, Union too, in their makers' layout or in diffusers'."""

from typing import Any

from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_union import ControlNetUnionModel
from torch import Tensor, nn

from pipelines.loading.parts import Config, Recipe, Tensors
from pipelines.loading.recipes.ldm import HEAD_WIDTH, HEADS, TIME_WIDTH, settings
from pipelines.loading.recipes.shapes import Shapes

PREFIXES = ("control_model.", "")
UNION = "task_embedding"
LABELS = {"label_emb.0.0.": "add_embedding.linear_1.", "label_emb.0.2.": "add_embedding.linear_2."}
"""What SDXL is told of sizes: diffusers' converter leaves it out."""


def _names(tensors: Tensors) -> Tensors:
    """As diffusers has them."""
    if "time_embed.0.weight" not in tensors:
        return tensors
    downs = [name for name in tensors if name.startswith("input_blocks.") and name.endswith(".op.weight")]
    layers = min((int(name.split(".")[1]) for name in downs), default=Shapes(tensors).count("input_blocks.")) - 1
    named: dict[str, Tensor] = convert_controlnet_checkpoint(dict(tensors), {"layers_per_block": layers})
    for ours, theirs in LABELS.items():
        named |= {theirs + last: tensors[ours + last] for last in ("weight", "bias") if ours + last in tensors}
    return named


def _config(tensors: Tensors) -> Config:
    named = _names(tensors)
    shapes = Shapes(named)
    count = shapes.count("down_blocks.")
    if not count or "controlnet_cond_embedding.conv_in.weight" not in shapes:
        raise ValueError("no layers of a ControlNet")
    channels = [shapes.rows(f"down_blocks.{i}.resnets.0.conv1.weight") for i in range(count)]
    depths = [shapes.count(f"down_blocks.{i}.attentions.0.transformer_blocks.") for i in range(count)]
    middle = shapes.count("mid_block.attentions.0.transformer_blocks.")
    config: Config = {
        "in_channels": shapes.columns("conv_in.weight"),
        "block_out_channels": tuple(channels),
        "layers_per_block": shapes.count("down_blocks.0.resnets."),
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "transformer_layers_per_block": (*(depth or 1 for depth in depths[:-1]), middle or 1),
        "conditioning_channels": shapes.columns("controlnet_cond_embedding.conv_in.weight"),
        "conditioning_embedding_out_channels": _hint_channels(shapes),
        **_attention(named, shapes, channels),
        **_sizes(shapes),
    }
    if UNION in shapes:
        return {**config, **_union(shapes)}
    return {**config, "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else "UNetMidBlock2D"}


def _hint_channels(shapes: Shapes) -> tuple[int, ...]:
    """Of the little network that brings a picture to the size of its latent."""
    blocks = range(1, shapes.count("controlnet_cond_embedding.blocks."), 2)
    first = shapes.rows("controlnet_cond_embedding.conv_in.weight")
    return (first, *(shapes.rows(f"controlnet_cond_embedding.blocks.{i}.weight") for i in blocks))


def _attention(tensors: Tensors, shapes: Shapes, channels: list[int]) -> Config:
    """The smallest of SDXL's have none at all."""
    first = next((name for name in tensors if name.endswith(".transformer_blocks.0.attn2.to_k.weight")), "")
    if not first:
        return {}
    linear = len(shapes[f"{first.partition('.transformer_blocks.')[0]}.proj_in.weight"]) == 2
    return {
        "cross_attention_dim": shapes.columns(first),
        "use_linear_projection": linear,
        "attention_head_dim": tuple(max(1, width // HEAD_WIDTH) for width in channels) if linear else HEADS,
    }


def _sizes(shapes: Shapes) -> Config:
    if "add_embedding.linear_1.weight" not in shapes:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": shapes.columns("add_embedding.linear_1.weight"),
    }


def _union(shapes: Shapes) -> Config:
    kinds, width = shapes[UNION]
    return {
        "num_control_type": kinds,
        "num_trans_channel": width,
        "num_trans_layer": shapes.count("transformer_layes."),
        "num_proj_channel": shapes.rows("spatial_ch_projs.weight"),
    }


def _module(config: Config) -> nn.Module:
    kind: Any = ControlNetUnionModel if "num_control_type" in config else ControlNetModel
    module: nn.Module = kind(**config)
    return module


CONTROLNET = Recipe(PREFIXES, _config, _module, lambda tensors, config: _names(tensors), settings)
