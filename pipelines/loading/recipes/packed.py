"""Makes a recipe take packed weights: GGUF, scaled fp8 and nf4 as well as plain ones, with the same three functions."""

from collections.abc import Callable

from torch import nn

from pipelines.loading.parts import Config, Recipe, Tensors
from pipelines.loading.quantised import install, normalised, packed_layers, stored
from pipelines.loading.recipes.shapes import Shapes

PARTS = ("packed", "scale", "absmax")


def packable(
    prefixes: tuple[str, ...],
    names: Callable[[Tensors], Tensors],
    config: Callable[[Shapes], Config],
    build: Callable[[Config], nn.Module],
) -> Recipe:
    """`names` gives tensors the module's own names, `config` reads what `build` takes from these."""

    def full_config(tensors: Tensors) -> Config:
        named = names(normalised(tensors))
        kinds = packed_layers(named)
        state = stored(named, kinds)
        names_of = {layer: [f"{layer}.{last}" for last in PARTS] for layer in kinds}
        shapes = {
            layer: {name.rpartition(".")[2]: tuple(state[name].shape) for name in found if name in state}
            for layer, found in names_of.items()
        }
        return {"module": config(Shapes(named)), "packed": kinds, "shapes": shapes}

    def module(config: Config) -> nn.Module:
        built = build(config["module"])
        install(built, config["packed"], config["shapes"])
        return built

    def convert(tensors: Tensors, config: Config) -> Tensors:
        return stored(names(normalised(tensors)), config["packed"])

    return Recipe(prefixes, full_config, module, convert)
