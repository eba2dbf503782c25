"""What the makers of our networks call their layers, which trainers that work on the makers' code take over.

From the published networks; the tests compare it with the converters of whole checkpoints in diffusers.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
BLOCK = re.compile(r"(down|up|mid)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def layers_of(unet: Any) -> int:
    """Layers of a level on its way down."""
    layers = unet.config.layers_per_block
    return int(layers if isinstance(layers, int) else layers[0])


def makers_names(name: str, layers: int) -> tuple[str, ...]:
    """What the makers of latent diffusion call a U-Net's layer: kohya's names of SDXL's. `layers`: see `layers_of`."""
    found = BLOCK.fullmatch(name)
    if found is None:
        return (ENDS[name],) if name in ENDS else ()
    way, level, kind, index, inner = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    inner = RESNET.get(inner, inner) if kind == "resnets" else inner
    place = int(kind == "attentions")
    if way == "mid":
        return (f"middle_block.{1 if place else 2 * index}.{inner}",)
    if kind == "downsamplers":
        return (f"input_blocks.{(level + 1) * (layers + 1)}.0.{inner.replace('conv', 'op')}",)
    if way == "down":
        return (f"input_blocks.{1 + level * (layers + 1) + index}.{place}.{inner}",)
    if kind == "upsamplers":  # behind an attention, if the level has any
        block = f"output_blocks.{level * (layers + 1) + layers}"
        return (f"{block}.2.{inner}", f"{block}.1.{inner}")
    return (f"output_blocks.{level * (layers + 1) + index}.{place}.{inner}",)


QKV, ADDED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
Row = tuple[str, str, tuple[str, ...]]
"""What the makers call a layer, the block in which it lies at ours, and the layers there whose rows it holds, one
after another. `*` stands for a number."""

FLUX_ENDS: tuple[Row, ...] = (
    ("img_in", "", ("x_embedder",)),
    ("txt_in", "", ("context_embedder",)),
    ("final_layer.linear", "", ("proj_out",)),
    ("final_layer.adaLN_modulation.1", "", ("norm_out.linear",)),
)
FLUX: tuple[Row, ...] = (
    *FLUX_ENDS,
    *(
        (f"{theirs}.{side}_layer", "", (f"time_text_embed.{ours}.linear_{number}",))
        for theirs, ours in (
            ("time_in", "timestep_embedder"),
            ("vector_in", "text_embedder"),
            ("guidance_in", "guidance_embedder"),
        )
        for side, number in (("in", 1), ("out", 2))
    ),
    ("double_blocks.*.img_attn.qkv", "transformer_blocks.*", QKV),
    ("double_blocks.*.txt_attn.qkv", "transformer_blocks.*", ADDED),
    ("double_blocks.*.img_attn.proj", "transformer_blocks.*", ("attn.to_out.0",)),
    ("double_blocks.*.txt_attn.proj", "transformer_blocks.*", ("attn.to_add_out",)),
    ("double_blocks.*.img_mlp.0", "transformer_blocks.*", ("ff.net.0.proj",)),
    ("double_blocks.*.img_mlp.2", "transformer_blocks.*", ("ff.net.2",)),
    ("double_blocks.*.txt_mlp.0", "transformer_blocks.*", ("ff_context.net.0.proj",)),
    ("double_blocks.*.txt_mlp.2", "transformer_blocks.*", ("ff_context.net.2",)),
    ("double_blocks.*.img_mod.lin", "transformer_blocks.*", ("norm1.linear",)),
    ("double_blocks.*.txt_mod.lin", "transformer_blocks.*", ("norm1_context.linear",)),
    ("double_blocks.*.img_attn.norm.query_norm", "transformer_blocks.*", ("attn.norm_q",)),
    ("double_blocks.*.img_attn.norm.key_norm", "transformer_blocks.*", ("attn.norm_k",)),
    ("double_blocks.*.txt_attn.norm.query_norm", "transformer_blocks.*", ("attn.norm_added_q",)),
    ("double_blocks.*.txt_attn.norm.key_norm", "transformer_blocks.*", ("attn.norm_added_k",)),
    ("single_blocks.*.linear1", "single_transformer_blocks.*", (*QKV, "proj_mlp")),
    ("single_blocks.*.linear2", "single_transformer_blocks.*", ("proj_out",)),
    ("single_blocks.*.modulation.lin", "single_transformer_blocks.*", ("norm.linear",)),
    ("single_blocks.*.norm.query_norm", "single_transformer_blocks.*", ("attn.norm_q",)),
    ("single_blocks.*.norm.key_norm", "single_transformer_blocks.*", ("attn.norm_k",)),
    # XLabs names the layers of its processors
    ("double_blocks.*.qkv_lora1", "transformer_blocks.*", QKV),
    ("double_blocks.*.qkv_lora2", "transformer_blocks.*", ADDED),
    ("double_blocks.*.proj_lora1", "transformer_blocks.*", ("attn.to_out.0",)),
    ("double_blocks.*.proj_lora2", "transformer_blocks.*", ("attn.to_add_out",)),
    ("single_blocks.*.qkv_lora", "single_transformer_blocks.*", QKV),
    ("single_blocks.*.proj_lora", "single_transformer_blocks.*", ("proj_out",)),
)
FLUX2: tuple[Row, ...] = (
    *FLUX_ENDS,
    *(
        (f"{name}_in.{side}_layer", "", (f"time_guidance_embed.{ours}_embedder.linear_{number}",))
        for name, ours in (("time", "timestep"), ("guidance", "guidance"))
        for side, number in (("in", 1), ("out", 2))
    ),
    *(
        (f"{name}.lin", "", (f"{name}.linear",))
        for name in ("single_stream_modulation", "double_stream_modulation_img", "double_stream_modulation_txt")
    ),
    *(row for row in FLUX if row[0].endswith(("attn.qkv", "attn.proj", "_norm"))),
    ("double_blocks.*.img_mlp.0", "transformer_blocks.*", ("ff.linear_in",)),
    ("double_blocks.*.img_mlp.2", "transformer_blocks.*", ("ff.linear_out",)),
    ("double_blocks.*.txt_mlp.0", "transformer_blocks.*", ("ff_context.linear_in",)),
    ("double_blocks.*.txt_mlp.2", "transformer_blocks.*", ("ff_context.linear_out",)),
    ("single_blocks.*.linear1", "single_transformer_blocks.*", ("attn.to_qkv_mlp_proj",)),
    ("single_blocks.*.linear2", "single_transformer_blocks.*", ("attn.to_out",)),
)
SD3: tuple[Row, ...] = (
    ("x_embedder.proj", "", ("pos_embed.proj",)),
    *(
        (f"{theirs}.mlp.{number}", "", (f"time_text_embed.{ours}.linear_{1 + number // 2}",))
        for theirs, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder"))
        for number in (0, 2)
    ),
    *FLUX_ENDS[2:],
    *(
        (f"joint_blocks.*.{half}.{theirs}", "transformer_blocks.*", ours)
        for half, rows in (
            (
                "x_block",
                (
                    ("attn.qkv", QKV),
                    ("attn.proj", ("attn.to_out.0",)),
                    ("attn.ln_q", ("attn.norm_q",)),
                    ("attn.ln_k", ("attn.norm_k",)),
                    ("attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
                    ("attn2.proj", ("attn2.to_out.0",)),
                    ("attn2.ln_q", ("attn2.norm_q",)),
                    ("attn2.ln_k", ("attn2.norm_k",)),
                    ("mlp.fc1", ("ff.net.0.proj",)),
                    ("mlp.fc2", ("ff.net.2",)),
                    ("adaLN_modulation.1", ("norm1.linear",)),
                ),
            ),
            (
                "context_block",
                (
                    ("attn.qkv", ADDED),
                    ("attn.proj", ("attn.to_add_out",)),
                    ("attn.ln_q", ("attn.norm_added_q",)),
                    ("attn.ln_k", ("attn.norm_added_k",)),
                    ("mlp.fc1", ("ff_context.net.0.proj",)),
                    ("mlp.fc2", ("ff_context.net.2",)),
                    ("adaLN_modulation.1", ("norm1_context.linear",)),
                ),
            ),
        )
        for theirs, ours in rows
    ),
)
Z_IMAGE: tuple[Row, ...] = (
    ("x_embedder", "", ("all_x_embedder.2-1",)),
    ("final_layer.linear", "", ("all_final_layer.2-1.linear",)),
    ("final_layer.adaLN_modulation.1", "", ("all_final_layer.2-1.adaLN_modulation.1",)),
    *(
        (f"{blocks}.*.attention.{theirs}", f"{blocks}.*.attention", ours)
        for blocks in ("layers", "noise_refiner", "context_refiner")
        for theirs, ours in (
            ("qkv", ("to_q", "to_k", "to_v")),
            ("out", ("to_out.0",)),
            ("q_norm", ("norm_q",)),
            ("k_norm", ("norm_k",)),
        )
    ),
)
TRANSFORMERS: Mapping[str, tuple[Row, ...]] = {
    "FluxTransformer2DModel": FLUX,
    "Flux2Transformer2DModel": FLUX2,
    "SD3Transformer2DModel": SD3,
    "ZImageTransformer2DModel": Z_IMAGE,
}
"""By diffusers' class. Qwen-Image's makers use diffusers' names."""


def transformer_rows(module: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What the makers call a layer -> the layers of ours whose rows it holds, one after another."""
    layers = {name for name, _ in module.named_modules()}
    for theirs, block, ours in TRANSFORMERS.get(type(module).__name__, ()):
        for number in range(1000):
            numbered = tuple(f"{block}.{name}".replace("*", str(number)).lstrip(".") for name in ours)
            if layers.issuperset(numbered):
                yield theirs.replace("*", str(number)), numbered
            elif block.replace("*", str(number)) not in layers:
                break
            if "*" not in theirs:
                break
