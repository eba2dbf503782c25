"""Tiny single files of the diffusion transformers, in their makers' layouts, with random weights of a few MB."""

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Weights = dict[str, Tensor]
T5_WIDTH, CLIP_WIDTH, QWEN_WIDTH = 64, 32, 16
HEAD = 32


class Maker:
    """Draws weights one after another; the same seed, the same weights."""

    def __init__(self, seed: int = 0, columns: int | None = None) -> None:
        """`columns`: matrices are cut to so many, for what looks at rows only."""
        self.made: Weights = {}
        self._columns = columns
        self._generator = torch.Generator().manual_seed(seed)

    def tensor(self, name: str, *shape: int, mean: float = 0.0, spread: float = 0.2) -> None:
        self.made[name] = torch.randn(shape, generator=self._generator) * spread + mean

    def linear(self, name: str, rows: int, columns: int, bias: bool = True) -> None:
        self.tensor(f"{name}.weight", rows, self._columns or columns, spread=columns**-0.5)
        if bias:
            self.tensor(f"{name}.bias", rows)

    def conv(self, name: str, rows: int, columns: int, side: int = 3) -> None:
        self.tensor(f"{name}.weight", rows, columns, side, side, spread=(columns * side**2) ** -0.5)
        self.tensor(f"{name}.bias", rows)

    def norm(self, name: str, width: int, bias: bool = False, last: str = "weight") -> None:
        self.tensor(f"{name}.{last}", width, mean=1.0)
        if bias:
            self.tensor(f"{name}.bias", width)


def flux(guidance: bool = True, fill: bool = False, width: int = 64, columns: int | None = None) -> Weights:
    """Black Forest Labs' layout; head of 32, two blocks of each kind."""
    make = Maker(columns=columns)
    make.linear("img_in", width, 384 if fill else 64)
    make.linear("txt_in", width, T5_WIDTH)
    for name, size in (("time_in", 256), ("vector_in", CLIP_WIDTH), *((("guidance_in", 256),) if guidance else ())):
        make.linear(f"{name}.in_layer", width, size)
        make.linear(f"{name}.out_layer", width, width)
    for i in range(2):
        for half in ("img", "txt"):
            block = f"double_blocks.{i}.{half}"
            make.linear(f"{block}_mod.lin", 6 * width, width)
            make.linear(f"{block}_attn.qkv", 3 * width, width)
            make.linear(f"{block}_attn.proj", width, width)
            make.norm(f"{block}_attn.norm.query_norm", HEAD, last="scale")
            make.norm(f"{block}_attn.norm.key_norm", HEAD, last="scale")
            make.linear(f"{block}_mlp.0", 4 * width, width)
            make.linear(f"{block}_mlp.2", width, 4 * width)
        block = f"single_blocks.{i}"
        make.linear(f"{block}.modulation.lin", 3 * width, width)
        make.linear(f"{block}.linear1", 7 * width, width)
        make.linear(f"{block}.linear2", width, 5 * width)
        make.norm(f"{block}.norm.query_norm", HEAD, last="scale")
        make.norm(f"{block}.norm.key_norm", HEAD, last="scale")
    make.linear("final_layer.adaLN_modulation.1", 2 * width, width)
    make.linear("final_layer.linear", 64, width)
    return make.made


def sd3(dual: bool = True) -> Weights:
    """Stability's layout; `dual`: the first block has a second attention and norms, as 3.5 medium."""
    make, width, layers = Maker(), 64, 2
    make.tensor("pos_embed", 1, 24**2, width)
    make.conv("x_embedder.proj", width, 16, 2)
    make.linear("context_embedder", width, T5_WIDTH)
    for name, size in (("t_embedder", 256), ("y_embedder", 2 * CLIP_WIDTH)):
        make.linear(f"{name}.mlp.0", width, size)
        make.linear(f"{name}.mlp.2", width, width)
    for i in range(layers):
        for half in ("x_block", "context_block"):
            block, last = f"joint_blocks.{i}.{half}", half == "context_block" and i == layers - 1
            for attention in ("attn", *(("attn2",) if dual and i == 0 and half == "x_block" else ())):
                make.linear(f"{block}.{attention}.qkv", 3 * width, width)
                if not last:
                    make.linear(f"{block}.{attention}.proj", width, width)
                for norm in ("ln_q", "ln_k") if dual else ():
                    make.norm(f"{block}.{attention}.{norm}", HEAD)
            parts = 2 if last else 9 if dual and i == 0 and half == "x_block" else 6
            make.linear(f"{block}.adaLN_modulation.1", parts * width, width)
            if not last:
                make.linear(f"{block}.mlp.fc1", 4 * width, width)
                make.linear(f"{block}.mlp.fc2", width, 4 * width)
    make.linear("final_layer.adaLN_modulation.1", 2 * width, width)
    make.linear("final_layer.linear", 64, width)
    return make.made


def flux2() -> Weights:
    """Black Forest Labs' layout: no biases, modulations shared by all blocks."""
    make, width, hidden = Maker(), 64, 192
    make.linear("img_in", width, 128, bias=False)
    make.linear("txt_in", width, 3 * QWEN_WIDTH, bias=False)
    make.linear("time_in.in_layer", width, 256, bias=False)
    make.linear("time_in.out_layer", width, width, bias=False)
    for name, count in (("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6)):
        make.linear(f"{name}.lin", count * width, width, bias=False)
    make.linear("single_stream_modulation.lin", 3 * width, width, bias=False)
    for i in range(2):
        for half in ("img", "txt"):
            block = f"double_blocks.{i}.{half}"
            make.linear(f"{block}_attn.qkv", 3 * width, width, bias=False)
            make.linear(f"{block}_attn.proj", width, width, bias=False)
            make.norm(f"{block}_attn.norm.query_norm", HEAD, last="scale")
            make.norm(f"{block}_attn.norm.key_norm", HEAD, last="scale")
            make.linear(f"{block}_mlp.0", 2 * hidden, width, bias=False)
            make.linear(f"{block}_mlp.2", width, hidden, bias=False)
        block = f"single_blocks.{i}"
        make.linear(f"{block}.linear1", 3 * width + 2 * hidden, width, bias=False)
        make.linear(f"{block}.linear2", width, width + hidden, bias=False)
        make.norm(f"{block}.norm.query_norm", HEAD, last="scale")
        make.norm(f"{block}.norm.key_norm", HEAD, last="scale")
    make.linear("final_layer.adaLN_modulation.1", 2 * width, width, bias=False)
    make.linear("final_layer.linear", 128, width, bias=False)
    return make.made


def z_image() -> Weights:
    """The fused layout that Z-Image's files come in, with a tensor that nobody needs."""
    make, width = Maker(), 96
    hidden = width * 8 // 3
    make.linear("x_embedder", width, 64)
    make.linear("final_layer.linear", 64, width)
    make.linear("final_layer.adaLN_modulation.1", width, width)
    make.norm("cap_embedder.0", QWEN_WIDTH)
    make.linear("cap_embedder.1", width, QWEN_WIDTH)
    make.linear("t_embedder.mlp.0", 1024, 256)
    make.linear("t_embedder.mlp.2", width, 1024)
    make.tensor("x_pad_token", 1, width)
    make.tensor("cap_pad_token", 1, width)
    make.norm("norm_final", width)
    for block in ("noise_refiner.0", "context_refiner.0", "layers.0", "layers.1"):
        make.linear(f"{block}.attention.qkv", 3 * width, width, bias=False)
        make.linear(f"{block}.attention.out", width, width, bias=False)
        for norm in ("attention.q_norm", "attention.k_norm"):
            make.norm(f"{block}.{norm}", HEAD)
        for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
            make.norm(f"{block}.{norm}", width)
        make.linear(f"{block}.feed_forward.w1", hidden, width, bias=False)
        make.linear(f"{block}.feed_forward.w2", width, hidden, bias=False)
        make.linear(f"{block}.feed_forward.w3", hidden, width, bias=False)
        if not block.startswith("context"):
            make.linear(f"{block}.adaLN_modulation.0", 4 * width, width)
    return make.made


def qwen_image() -> Weights:
    """Alibaba's files carry diffusers' names."""
    make, width = Maker(), 64
    make.linear("img_in", width, 64)
    make.norm("txt_norm", QWEN_WIDTH)
    make.linear("txt_in", width, QWEN_WIDTH)
    make.linear("time_text_embed.timestep_embedder.linear_1", width, 256)
    make.linear("time_text_embed.timestep_embedder.linear_2", width, width)
    for i in range(2):
        block = f"transformer_blocks.{i}"
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out"):
            make.linear(f"{block}.attn.{name}", width, width)
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            make.norm(f"{block}.attn.{name}", HEAD)
        for half in ("img", "txt"):
            make.linear(f"{block}.{half}_mod.1", 6 * width, width)
            make.linear(f"{block}.{half}_mlp.net.0.proj", 4 * width, width)
            make.linear(f"{block}.{half}_mlp.net.2", width, 4 * width)
    make.linear("norm_out.linear", 2 * width, width)
    make.linear("proj_out", 64, width)
    return make.made


TRANSFORMERS: dict[str, Callable[[], Weights]] = {
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "z_image": z_image,
    "qwen_image": qwen_image,
}


def vae(channels: int = 16, statistics: bool = False) -> Weights:
    """CompVis' layout with 4 levels of 32; `statistics`: FLUX.2's."""
    make, width = Maker(), 32
    for half, ends in (("encoder", (3, 2 * channels)), ("decoder", (channels, 3))):
        make.conv(f"{half}.conv_in", width, ends[0])
        make.conv(f"{half}.conv_out", ends[1], width)
        make.norm(f"{half}.norm_out", width, bias=True)
        level, sampler, layers = ("down", "downsample", 1) if half == "encoder" else ("up", "upsample", 2)
        blocks = [f"{half}.{level}.{i}.block.{j}" for i in range(4) for j in range(layers)]
        for block in (*blocks, f"{half}.mid.block_1", f"{half}.mid.block_2"):
            for j in (1, 2):
                make.norm(f"{block}.norm{j}", width, bias=True)
                make.conv(f"{block}.conv{j}", width, width)
        for i in range(3):
            make.conv(f"{half}.{level}.{i if half == 'encoder' else i + 1}.{sampler}.conv", width, width)
        make.norm(f"{half}.mid.attn_1.norm", width, bias=True)
        for name in ("q", "k", "v", "proj_out"):
            make.conv(f"{half}.mid.attn_1.{name}", width, width, 1)
    make.made["encoder.conv_out.weight"][channels:] = 0  # hardly any noise on what it encodes
    make.made["encoder.conv_out.bias"][channels:] = -25
    if statistics:
        make.conv("encoder.quant_conv", 2 * channels, 2 * channels, 1)
        make.conv("decoder.post_quant_conv", channels, channels, 1)
        make.tensor("bn.running_mean", 4 * channels)
        make.made["bn.running_var"] = torch.rand(4 * channels) + 0.5
        make.made["bn.num_batches_tracked"] = torch.tensor(1000)
    return make.made


def qwen_vae() -> Weights:
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage

    return _of(AutoencoderKLQwenImage(base_dim=8))


def wan_vae() -> Weights:
    """The layout in which Qwen-Image's VAE is shared: that of Wan 2.1, whose network it is."""
    inside = {"norm1.": "residual.0.", "conv1.": "residual.2.", "norm2.": "residual.3.", "conv2.": "residual.6."}
    rules = [
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"coder\.conv_in\.", "coder.conv1."),
        (r"coder\.norm_out\.", "coder.head.0."),
        (r"coder\.conv_out\.", "coder.head.2."),
        (r"coder\.mid_block\.resnets\.0\.", "coder.middle.0."),
        (r"coder\.mid_block\.attentions\.0\.", "coder.middle.1."),
        (r"coder\.mid_block\.resnets\.1\.", "coder.middle.2."),
        (r"encoder\.down_blocks\.", "encoder.downsamples."),
        (r"conv_shortcut\.", "shortcut."),
    ]
    rules += [(rf"up_blocks\.{i}\.resnets\.{j}\.", f"upsamples.{4 * i + j}.") for i in range(4) for j in range(3)]
    rules += [(rf"up_blocks\.{i}\.upsamplers\.0\.", f"upsamples.{4 * i + 3}.") for i in range(3)]
    renamed: Weights = {}
    for name, tensor in qwen_vae().items():
        if ".resnets." in name or ".down_blocks." in name:
            for theirs, ours in inside.items():
                name = name.replace(f".{theirs}", f".{ours}")
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def t5() -> Weights:
    make, inner = Maker(), 2 * 16
    make.tensor("shared.weight", 32_128, T5_WIDTH, spread=1.0)
    for i in range(2):
        block = f"encoder.block.{i}.layer"
        for name in ("q", "k", "v"):
            make.linear(f"{block}.0.SelfAttention.{name}", inner, T5_WIDTH, bias=False)
        make.linear(f"{block}.0.SelfAttention.o", T5_WIDTH, inner, bias=False)
        make.norm(f"{block}.0.layer_norm", T5_WIDTH)
        make.linear(f"{block}.1.DenseReluDense.wi_0", 128, T5_WIDTH, bias=False)
        make.linear(f"{block}.1.DenseReluDense.wi_1", 128, T5_WIDTH, bias=False)
        make.linear(f"{block}.1.DenseReluDense.wo", T5_WIDTH, 128, bias=False)
        make.norm(f"{block}.1.layer_norm", T5_WIDTH)
    make.tensor("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 32, 2)
    make.norm("encoder.final_layer_norm", T5_WIDTH)
    return make.made


def clip(projected: bool = False) -> Weights:
    make, width = Maker(1), CLIP_WIDTH
    make.tensor("text_model.embeddings.token_embedding.weight", 49_408, width)
    make.tensor("text_model.embeddings.position_embedding.weight", 77, width)
    for i in range(2):
        layer = f"text_model.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            make.linear(f"{layer}.self_attn.{name}", width, width)
        make.norm(f"{layer}.layer_norm1", width, bias=True)
        make.norm(f"{layer}.layer_norm2", width, bias=True)
        make.linear(f"{layer}.mlp.fc1", 64, width)
        make.linear(f"{layer}.mlp.fc2", width, 64)
    make.norm("text_model.final_layer_norm", width, bias=True)
    if projected:
        make.linear("text_projection", width, width, bias=False)
    return make.made


def qwen(version: int, layers: int = 4) -> Weights:
    """Qwen3 with heads of 16, or the text half of Qwen2.5-VL with heads of 128, and what else lies in its file."""
    make, head = Maker(2), 16 if version == 3 else 128
    make.tensor("model.embed_tokens.weight", 151_936, QWEN_WIDTH)
    for i in range(layers):
        layer = f"model.layers.{i}"
        for name, heads in (("q_proj", 2), ("k_proj", 1), ("v_proj", 1)):
            make.linear(f"{layer}.self_attn.{name}", heads * head, QWEN_WIDTH, bias=version == 2)
        make.linear(f"{layer}.self_attn.o_proj", QWEN_WIDTH, 2 * head, bias=False)
        for norm in ("self_attn.q_norm", "self_attn.k_norm") if version == 3 else ():
            make.norm(f"{layer}.{norm}", head)
        make.norm(f"{layer}.input_layernorm", QWEN_WIDTH)
        make.norm(f"{layer}.post_attention_layernorm", QWEN_WIDTH)
        make.linear(f"{layer}.mlp.gate_proj", 32, QWEN_WIDTH, bias=False)
        make.linear(f"{layer}.mlp.up_proj", 32, QWEN_WIDTH, bias=False)
        make.linear(f"{layer}.mlp.down_proj", QWEN_WIDTH, 32, bias=False)
    make.norm("model.norm", QWEN_WIDTH)
    if version == 2:
        make.tensor("visual.patch_embed.proj.weight", 4, 4)
    return make.made


def _of(module: nn.Module) -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator) * max(1, tensor[0].numel()) ** -0.5
        for name, tensor in module.state_dict().items()
    }


def save_single(path: Path, weights: Weights, dtype: torch.dtype = torch.bfloat16, prefix: str = "") -> Path:
    """A single file; fp8 only for what is a matrix, as the files that people share are."""
    small = torch.bfloat16 if dtype.itemsize == 1 else dtype
    stored = {
        prefix + name: tensor.to(dtype if tensor.ndim == 2 else small).contiguous()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }
    save_file(stored, path)
    return path


def save_as_is(path: Path, weights: Weights) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def scaled_fp8(weights: Weights) -> Weights:
    """Matrices in fp8, each with the scale that brings its largest number to fp8's largest."""
    scaled: Weights = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in weights.items():
        if tensor.ndim == 2 and name.endswith(".weight"):
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale
            scaled[name.removesuffix("weight") + "scale_input"] = torch.tensor(1.0)
        else:
            scaled[name] = tensor
    return scaled


def save_gguf(path: Path, weights: Weights, kind: gguf.GGMLQuantizationType) -> Path:
    """Matrices whose rows fill whole blocks are packed, the rest stays as it is."""
    block = gguf.GGML_QUANT_SIZES[kind][0]
    writer = gguf.GGUFWriter(path, "test")
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if tensor.ndim == 2 and tensor.shape[1] % block == 0 and name.endswith(".weight"):
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp(kind: str, weights: Weights) -> Weights:
    """A text encoder under the names that llama.cpp's converter gives."""
    from pipelines.loading.recipes import qwen_text, t5

    inner = {"t5": t5.LLAMA_CPP, "qwen": qwen_text.LLAMA_CPP}[kind].inside
    outer = {
        "t5": {"shared.": "token_embd.", "encoder.final_layer_norm.": "enc.output_norm.", "encoder.block.": "enc.blk."},
        "qwen": {"model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "model.layers.": "blk."},
    }[kind]
    renamed: Weights = {}
    for name, tensor in weights.items():
        for old, new in (*outer.items(), *((f".{theirs}.", f".{ours}.") for ours, theirs in inner.items())):
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed
