"""T5's encoder, which reads prompts for SD 3 and Flux, in transformers' layout or llama.cpp's."""

from torch import Tensor, nn
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Stack

from pipelines.loading.parts import Config, Tensors
from pipelines.loading.recipes.llama_cpp import LlamaCpp
from pipelines.loading.recipes.packed import packable
from pipelines.loading.recipes.shapes import Shapes

PREFIXES = ("text_encoders.t5xxl.transformer.", "")

LLAMA_CPP = LlamaCpp(
    block="enc.blk.",
    layers="block.",
    inside={
        "attn_q": "layer.0.SelfAttention.q",
        "attn_k": "layer.0.SelfAttention.k",
        "attn_v": "layer.0.SelfAttention.v",
        "attn_o": "layer.0.SelfAttention.o",
        "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
        "attn_norm": "layer.0.layer_norm",
        "ffn_gate": "layer.1.DenseReluDense.wi_0",
        "ffn_up": "layer.1.DenseReluDense.wi_1",
        "ffn_down": "layer.1.DenseReluDense.wo",
        "ffn_norm": "layer.1.layer_norm",
    },
    ends={"token_embd.weight": "embed_tokens.weight", "enc.output_norm.weight": "final_layer_norm.weight"},
)
OTHERS = ("decoder.", "dec.", "lm_head.", "spiece_model")


def _names(tensors: Tensors) -> Tensors:
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if own := LLAMA_CPP.own(name):
            named[own] = tensor
        elif name.startswith("shared."):
            named[name.replace("shared.", "embed_tokens.", 1)] = tensor
        elif not name.startswith(OTHERS):
            named[name.removeprefix("encoder.")] = tensor
    return named


def _config(shapes: Shapes) -> Config:
    vocabulary, width = shapes["embed_tokens.weight"]
    attention = "block.0.layer.0.SelfAttention."
    buckets, heads = shapes[f"{attention}relative_attention_bias.weight"]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes.rows(f"{attention}q.weight") // heads,
        "d_ff": shapes.rows("block.0.layer.1.DenseReluDense.wi_0.weight"),
        "num_layers": shapes.count("block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


def _build(config: Config) -> nn.Module:
    """The encoder's stack alone: the model around it holds the embeddings a second time."""
    options = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "use_cache": False, "is_decoder": False}
    module: nn.Module = T5Stack(T5Config(**config, **options))
    return module


T5 = packable(PREFIXES, _names, _config, _build)
