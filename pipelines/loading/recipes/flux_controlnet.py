"""ControlNets of Flux.1, Union too, in diffusers' layout."""

from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from torch import nn

from pipelines.loading.parts import Config, Recipe, Tensors
from pipelines.loading.recipes.dit import flux_sizes
from pipelines.loading.recipes.ldm import settings
from pipelines.loading.recipes.shapes import Shapes


def _config(tensors: Tensors) -> Config:
    shapes = Shapes(tensors)
    config = flux_sizes(shapes)
    if "controlnet_mode_embedder.weight" in shapes:
        config["num_mode"] = shapes.rows("controlnet_mode_embedder.weight")
    if "input_hint_block.conv_out.weight" in shapes:
        config["conditioning_embedding_channels"] = shapes.rows("input_hint_block.conv_out.weight")
        config["patch_size"] = 2
    return config


def _module(config: Config) -> nn.Module:
    module: nn.Module = FluxControlNetModel(**config)
    return module


FLUX_CONTROLNET = Recipe(("",), _config, _module, lambda tensors, config: tensors, settings)
