"""The autoencoders of FLUX.2 (32 channels with statistics) and Qwen-Image (one for videos); for the others see ldm."""

from collections.abc import Mapping

from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from torch import Tensor, nn

from pipelines.errors import BadModel
from pipelines.loading.parts import Config, Recipe, Tensors
from pipelines.loading.recipes.shapes import Shapes

PREFIXES = ("first_stage_model.", "vae.", "")
HALVES = ("encoder.quant_conv.", "decoder.post_quant_conv.")
"""FLUX.2's makers count these to the encoder and the decoder, diffusers does not."""
GROUPS = 32


def _flux2_names(tensors: Tensors) -> Tensors:
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in tensors:
        return tensors
    flat = {name.partition(".")[2] if name.startswith(HALVES) else name: tensor for name, tensor in tensors.items()}
    levels = ("",) * Shapes(tensors).count("encoder.down.")
    converted: dict[str, Tensor] = convert_ldm_vae_checkpoint(
        dict(flat), {"down_block_types": levels, "up_block_types": levels}
    )
    return {**converted, **{name: tensor for name, tensor in flat.items() if name.startswith("bn.")}}


def _flux2_config(tensors: Tensors) -> Config:
    if "bn.running_mean" not in tensors:
        raise BadModel("FLUX.2 needs its own VAE, with statistics of its latents: put flux2-vae.safetensors into VAE.")
    shapes = Shapes(_flux2_names(tensors))
    levels = shapes.count("encoder.down_blocks.")
    return {
        "latent_channels": shapes.columns("decoder.conv_in.weight"),
        "block_out_channels": _widths(shapes, "encoder.down_blocks.", levels),
        "decoder_block_out_channels": _widths(shapes, "decoder.up_blocks.", levels)[::-1],
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets."),
        "norm_num_groups": GROUPS,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def _widths(shapes: Shapes, blocks: str, levels: int) -> tuple[int, ...]:
    return tuple(shapes.rows(f"{blocks}{i}.resnets.0.conv1.weight") for i in range(levels))


def _flux2_convert(tensors: Tensors, config: Config) -> Tensors:
    return _flux2_names(tensors)


def _flux2_module(config: Config) -> nn.Module:
    module: nn.Module = AutoencoderKLFlux2(**config)
    return module


def _qwen_names(tensors: Tensors) -> Mapping[str, Tensor]:
    if "encoder.conv_in.weight" in tensors:
        return tensors
    converted: dict[str, Tensor] = convert_wan_vae_to_diffusers(dict(tensors))
    return converted


def _qwen_config(tensors: Tensors) -> Config:
    """That of Wan 2.1. The statistics of its 16 channels are no weights; diffusers has them as its defaults."""
    shapes = Shapes(_qwen_names(tensors))
    return {"base_dim": shapes.rows("encoder.conv_in.weight"), "z_dim": shapes.rows("encoder.conv_out.weight") // 2}


def _qwen_module(config: Config) -> nn.Module:
    module: nn.Module = AutoencoderKLQwenImage(**config)
    return module


def _qwen_convert(tensors: Tensors, config: Config) -> Tensors:
    return _qwen_names(tensors)


FLUX2_VAE = Recipe(PREFIXES, _flux2_config, _flux2_module, _flux2_convert)
QWEN_VAE = Recipe(PREFIXES, _qwen_config, _qwen_module, _qwen_convert)
