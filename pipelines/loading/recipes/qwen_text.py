"""The text halves of Qwen3 and Qwen2.5-VL, in transformers' layout or llama.cpp's, without eyes and voice."""

from typing import Any

import torch
from torch import nn
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model, Qwen2RotaryEmbedding
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model, Qwen3RotaryEmbedding

from pipelines.loading.parts import Config, Tensors
from pipelines.loading.recipes.llama_cpp import LlamaCpp
from pipelines.loading.recipes.packed import packable
from pipelines.loading.recipes.shapes import Shapes

PREFIXES = (
    "text_encoders.qwen3_4b.transformer.model.",
    "text_encoders.qwen3_8b.transformer.model.",
    "text_encoders.qwen25_7b.transformer.model.",
    "model.language_model.",
    "language_model.model.",
    "model.",
    "",
)
HEAD = 128
"""Of every Qwen2.5 from 1.5B up; Qwen3's stands in the shape of its norms."""

LLAMA_CPP = LlamaCpp(
    block="blk.",
    layers="layers.",
    inside={
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_norm": "input_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "ffn_norm": "post_attention_layernorm",
    },
    ends={"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"},
)
OURS = ("layers.", "embed_tokens.", "norm.")


def _names(tensors: Tensors) -> Tensors:
    named = {LLAMA_CPP.own(name) or name: tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if name.startswith(OURS)}


def _config(shapes: Shapes) -> Config:
    """Three spans of Qwen2.5-VL's positions are one and the same for text: its text half is a Qwen2."""
    vocabulary, width = shapes["embed_tokens.weight"]
    norm = "layers.0.self_attn.q_norm.weight"
    head = shapes.rows(norm) if norm in shapes else HEAD
    return {
        "version": 3 if norm in shapes else 2,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes.rows("layers.0.mlp.gate_proj.weight"),
        "num_hidden_layers": shapes.count("layers."),
        "num_attention_heads": shapes.rows("layers.0.self_attn.q_proj.weight") // head,
        "num_key_value_heads": shapes.rows("layers.0.self_attn.k_proj.weight") // head,
        "head_dim": head,
    }


def _build(config: Config) -> nn.Module:
    values = {name: value for name, value in config.items() if name != "version"}
    kinds: tuple[Any, Any, Any] = (
        (Qwen3Config, Qwen3Model, Qwen3RotaryEmbedding)
        if config["version"] == 3
        else (Qwen2Config, Qwen2Model, Qwen2RotaryEmbedding)
    )
    settings = kinds[0](
        **values,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        max_position_embeddings=32_768,
        use_cache=False,
    )
    module: nn.Module = kinds[1](settings)
    with torch.device("cpu"):  # its frequencies are no weights: loading would leave them on meta
        module.rotary_emb = kinds[2](settings)
    return module


QWEN_TEXT = packable(PREFIXES, _names, _config, _build)
