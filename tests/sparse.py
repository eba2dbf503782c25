"""Model files that are all header: real names and full-size shapes, and a hole where the weights would be."""

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

from pipelines.library.headers.header import DTYPE_BITS, Header, TensorInfo
from pipelines.types import Format

Shapes = Mapping[str, tuple[int, ...]]


def header(shapes: Shapes, dtype: str = "F16", **metadata: str) -> Header:
    tensors = {
        name: TensorInfo(shape, dtype, prod(shape) * DTYPE_BITS.get(dtype, 8) // 8) for name, shape in shapes.items()
    }
    return Header(Format.SAFETENSORS, tensors, metadata)


def save(path: Path, shapes: Shapes, dtype: str = "F16", **metadata: str) -> Path:
    """A .safetensors file."""
    content: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        content[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return save_header(path, json.dumps(content, separators=(",", ":")).encode(), end)


def save_header(path: Path, text: bytes, data_bytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + data_bytes)
    return path


def save_gguf(path: Path, shapes: Shapes, architecture: str, quant: int = 12) -> Path:
    """A .gguf file of Q4_K weights: 144 bytes for 256 elements."""

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    parts = [b"GGUF", struct.pack("<IQQ", 3, len(shapes), 2)]
    parts += [text("general.architecture"), struct.pack("<I", 8), text(architecture)]
    parts += [text("tokenizer.tokens"), struct.pack("<IIQ", 9, 8, 2), text("a"), text("b")]
    end = 0
    for name, shape in shapes.items():
        sides = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        parts.append(text(name) + struct.pack("<I", len(shape)) + sides + struct.pack("<IQ", quant, end))
        end += prod(shape) // 256 * 144
    front = b"".join(parts)
    front += b"\0" * (-len(front) % 32)
    with path.open("wb") as file:
        file.write(front)
        file.truncate(len(front) + end)
    return path


SD1_UNET: Shapes = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
}
VAE4: Shapes = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
    "decoder.conv_in.weight": (512, 4, 3, 3),
    "decoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
    "quant_conv.weight": (8, 8, 1, 1),
}
CLIP_L: Shapes = {
    "text_model.embeddings.token_embedding.weight": (49408, 768),
    "text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
    "text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
    "text_model.encoder.layers.0.self_attn.q_proj.bias": (768,),
    "text_model.final_layer_norm.weight": (768,),
}
FLUX: Shapes = {
    "img_in.weight": (3072, 64),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    "single_blocks.0.linear1.weight": (21504, 3072),
    "guidance_in.in_layer.weight": (3072, 256),
}
T5: Shapes = {
    "shared.weight": (32128, 4096),
    "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
}
VAE16: Shapes = {**VAE4, "decoder.conv_in.weight": (512, 16, 3, 3)}
QWEN3_4B: Shapes = {
    "model.embed_tokens.weight": (151936, 2560),
    "model.layers.0.self_attn.q_proj.weight": (4096, 2560),
    "model.layers.0.self_attn.q_norm.weight": (128,),
    "model.layers.0.mlp.gate_proj.weight": (9728, 2560),
}


def below(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def other(shapes: Shapes, **changes: tuple[int, ...]) -> Shapes:
    """With other shapes for the names that end like a key, with dots for double underscores."""
    ends = {key.replace("__", "."): shape for key, shape in changes.items()}
    return {name: next((ends[e] for e in ends if name.endswith(e)), shape) for name, shape in shapes.items()}


SD1: Shapes = {**SD1_UNET, **below("first_stage_model.", VAE4), **below("cond_stage_model.transformer.", CLIP_L)}
