"""CLIP's text encoders in both layouts: that of transformers (SD 1) and that of open_clip (SD 2, SDXL's second)."""

import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from pipelines.errors import BadModel
from pipelines.loading.parts import Config, Recipe, Tensors
from pipelines.loading.recipes.shapes import Shapes

HEAD_WIDTH = 64
"""Of all CLIP text encoders that there are: Radford et al. 2021, table 19."""
WIDEST_QUICK = 768
"""OpenAI's models compute gelu in a quick way, and all wider ones, which are open_clip's, in the proper one."""

OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
LAYER = "transformer.resblocks."
PROJECTION = "text_projection.weight"
NO_WEIGHTS = ("position_ids", "logit_scale", "attn_mask")
"""What files hold beside them."""


def clip(prefixes: tuple[str, ...], projected: bool = False, penultimate: bool = False) -> Recipe:
    """`projected`: with the pooled output that SDXL and SD 3 use. `penultimate`: the last layer of a file in
    open_clip's layout is left out, as SD 2 was trained without it; folders in diffusers' layout come without it.
    """

    def config(tensors: Tensors) -> Config:
        names = _names(tensors, projected, penultimate)
        shapes = Shapes({name.removeprefix("text_model."): tensor for name, tensor in names.items()})
        if "embeddings.token_embedding.weight" not in shapes:
            raise BadModel("The file holds no CLIP text encoder, or one of an unknown kind.")
        vocabulary, width = shapes["embeddings.token_embedding.weight"]
        quick = width <= WIDEST_QUICK and not _is_open_clip(tensors)
        return {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": shapes.rows("encoder.layers.0.mlp.fc1.weight"),
            "num_hidden_layers": shapes.count("encoder.layers."),
            "num_attention_heads": max(1, width // HEAD_WIDTH),
            "max_position_embeddings": shapes.rows("embeddings.position_embedding.weight"),
            "hidden_act": "quick_gelu" if quick else "gelu",
            "projection_dim": shapes.rows(PROJECTION) if PROJECTION in shapes else width,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        }

    def build(config: Config) -> nn.Module:
        return _module(CLIPTextModelWithProjection if projected else CLIPTextModel, config)

    def convert(tensors: Tensors, config: Config) -> Tensors:
        return _names(tensors, projected, penultimate)

    return Recipe(prefixes, config, build, convert, _settings)


def _settings(config: Config) -> Config:
    """The type of the numbers is ours to choose."""
    return {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype", "architectures")}


def _module(kind: type[nn.Module], config: Config) -> nn.Module:
    module = kind(CLIPTextConfig(**config))
    embeddings = module.get_submodule("text_model.embeddings" if hasattr(module, "text_model") else "embeddings")
    with torch.device("cpu"):
        places = torch.arange(config["max_position_embeddings"]).expand(1, -1)
        embeddings.register_buffer("position_ids", places, persistent=False)
    return module


def _is_open_clip(tensors: Tensors) -> bool:
    return "positional_embedding" in tensors


def _names(tensors: Tensors, projected: bool, penultimate: bool) -> dict[str, Tensor]:
    """As transformers' module has them: with `text_model.` in front only where there is a projection beside."""
    named = _from_open_clip(tensors, penultimate) if _is_open_clip(tensors) else dict(tensors)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in named.items()}
    bare = {name: tensor for name, tensor in bare.items() if name.rpartition(".")[2] not in NO_WEIGHTS}
    projection = bare.pop(PROJECTION, None)
    if not projected:
        return bare
    if projection is None and "embeddings.position_embedding.weight" in bare:  # SD 3's files leave out a plain one
        width = bare["embeddings.position_embedding.weight"]
        projection = torch.eye(width.shape[-1], dtype=width.dtype)
    full = {f"text_model.{name}": tensor for name, tensor in bare.items()}
    return full if projection is None else {**full, PROJECTION: projection}


def _from_open_clip(tensors: Tensors, penultimate: bool) -> dict[str, Tensor]:
    """Views: queries, keys and values are thirds of one matrix there, and the projection lies the other way around."""
    named: dict[str, Tensor] = {}
    last = Shapes(tensors).count(LAYER) - 1
    for name, tensor in tensors.items():
        if name in OPEN_CLIP:
            named[OPEN_CLIP[name]] = tensor
        elif name == "text_projection":
            named[PROJECTION] = tensor.T
        elif name.startswith(LAYER):
            layer, _, rest = name.removeprefix(LAYER).partition(".")
            if not (penultimate and int(layer) == last):
                named.update(_from_layer(f"encoder.layers.{layer}.", rest, tensor))
        elif name == PROJECTION:
            named[name] = tensor
    return named


def _from_layer(layer: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    kind, _, last = name.rpartition(".")
    if last.startswith("in_proj_"):
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{layer}self_attn.{letter}_proj.{last.removeprefix('in_proj_')}": third for letter, third in thirds}
    return {f"{layer}{OPEN_CLIP_LAYER.get(kind, kind)}.{last}": tensor}
