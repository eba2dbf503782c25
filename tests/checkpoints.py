"""Single-file checkpoints with random weights, in the layout of their makers: tiny ones for tests, full ones for bench.

The names and shapes are written down from the published networks, independently of the code that reads them. No
module is built and only one tensor is in memory at a time: a full SDXL (6.9 GB) is written with 0.5 GB of memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipelines.loading.arena import ALIGNMENT
from pipelines.loading.convert import Spec, write

Shapes = dict[str, tuple[int, ...]]
VOCABULARY = 49408
PLACES = 77


@dataclass(frozen=True)
class Unet:
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    """Transformer blocks in a row, of each level."""
    context: int
    linear: bool = False
    sized: int = 0
    """Numbers that it is told beside the prompt."""
    inputs: int = 4
    middle: int = -1
    """Depth there; -1: that of the last level."""
    ups: tuple[tuple[int, ...], ...] = ()
    """Depths of each layer on the way up, if it is not the way down mirrored. Then the middle is a single layer."""


@dataclass(frozen=True)
class Clip:
    prefix: str
    width: int
    layers: int
    open_clip: bool = False


@dataclass(frozen=True)
class Arch:
    unet: Unet
    vae: tuple[int, ...]
    clips: tuple[Clip, ...]


FULL_VAE = (128, 256, 512, 512)
SD1_CLIP, SD2_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
XL_CLIPS = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
FULL = {
    "sd1": Arch(Unet((320, 640, 1280, 1280), (1, 1, 1, 0), 768, middle=1), FULL_VAE, (Clip(SD1_CLIP, 768, 12),)),
    "sd2": Arch(
        Unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, linear=True, middle=1),
        FULL_VAE,
        (Clip(SD2_CLIP, 1024, 24, open_clip=True),),
    ),
    "sdxl": Arch(
        Unet((320, 640, 1280), (0, 2, 10), 2048, linear=True, sized=2816),
        FULL_VAE,
        (Clip(XL_CLIPS[0], 768, 12), Clip(XL_CLIPS[1], 1280, 32, open_clip=True)),
    ),
    "sdxl-refiner": Arch(
        Unet((384, 768, 1536, 1536), (0, 4, 4, 0), 1280, linear=True, sized=2560, middle=4),
        FULL_VAE,
        (Clip("conditioner.embedders.0.model.", 1280, 32, open_clip=True),),
    ),
}
TINY_VAE = (32, 32, 64, 64)
TINY = {
    "sd1": Arch(Unet((32, 64, 64, 64), (1, 1, 1, 0), 32, middle=1), TINY_VAE, (Clip(SD1_CLIP, 32, 2),)),
    "sd2": Arch(
        Unet((64, 64, 64, 64), (1, 1, 1, 0), 64, linear=True, middle=1),
        TINY_VAE,
        (Clip(SD2_CLIP, 64, 3, open_clip=True),),
    ),
    "sdxl": Arch(
        Unet((32, 64, 128), (0, 2, 3), 96, linear=True, sized=64 + 6 * 256),
        TINY_VAE,
        (Clip(XL_CLIPS[0], 32, 2), Clip(XL_CLIPS[1], 64, 3, open_clip=True)),
    ),
    "sdxl-refiner": Arch(
        Unet((32, 64, 64, 64), (0, 2, 2, 0), 64, linear=True, sized=64 + 5 * 256, middle=2),
        TINY_VAE,
        (Clip("conditioner.embedders.0.model.", 64, 3, open_clip=True),),
    ),
}
"""As deep as the full ones, but for the text encoders and SDXL's transformers, and narrow."""

SSD = replace(TINY["sdxl"].unet, depths=(0, 2, 4), ups=((4, 4, 10), (2, 1, 1), (0, 0, 0)))
"""SSD-1B's depths (Gupta et al. 2024), narrow."""


def save_checkpoint(
    path: Path,
    family: str = "sd1",
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    inputs: int = 4,
    full: bool = False,
) -> Path:
    """`inputs`: 4, or 9 for inpainting, 8 for InstructPix2Pix."""
    arch = (FULL if full else TINY)[family]
    return save(path, shapes_of(replace(arch, unet=replace(arch.unet, inputs=inputs))), seed, dtype)


def save(path: Path, shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float16) -> Path:
    """Weights as torch would draw them for a new network, but with biases that are not 0."""
    order = sorted(shapes, key=lambda name: (math.prod(shapes[name]) * dtype.itemsize % ALIGNMENT > 0, name))
    specs = {name: Spec(torch.int64 if name.endswith("position_ids") else dtype, shapes[name]) for name in order}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    write(path, specs, _drawn(specs, seed), {"format": "pt"})
    return path


def _drawn(specs: dict[str, Spec], seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for name, (dtype, shape) in specs.items():
        if dtype == torch.int64:
            yield torch.arange(shape[-1]).reshape(shape)
        elif len(shape) == 1 and name.endswith("weight"):
            yield torch.ones(shape, dtype=dtype)
        elif "embedding" in name or len(shape) < 2:
            yield (torch.empty(shape).normal_(0, 0.02, generator=generator)).to(dtype)
        else:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            yield torch.empty(shape).uniform_(-bound, bound, generator=generator).to(dtype)


def shapes_of(arch: Arch) -> Shapes:
    """Of all networks, under the names that they have in a file."""
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in unet_shapes(arch.unet).items()}
    shapes |= {f"first_stage_model.{name}": shape for name, shape in vae_shapes(arch.vae).items()}
    for clip in arch.clips:
        found = open_clip_shapes(clip) if clip.open_clip else clip_shapes(clip)
        shapes |= {f"{clip.prefix}{name}": shape for name, shape in found.items()}
    return shapes


class Layers:
    """Collects names and shapes."""

    def __init__(self) -> None:
        self.shapes: Shapes = {}

    def norm(self, name: str, width: int) -> None:
        self.shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def linear(self, name: str, out: int, inside: int, bias: bool = True) -> None:
        self.shapes |= {f"{name}.weight": (out, inside), **({f"{name}.bias": (out,)} if bias else {})}

    def conv(self, name: str, out: int, inside: int, side: int = 3) -> None:
        self.shapes |= {f"{name}.weight": (out, inside, side, side), f"{name}.bias": (out,)}


class UnetLayers(Layers):
    def __init__(self, unet: Unet) -> None:
        super().__init__()
        self.unet = unet
        self.time = 4 * unet.channels[0]

    def resnet(self, name: str, out: int, inside: int) -> None:
        self.norm(f"{name}.in_layers.0", inside)
        self.conv(f"{name}.in_layers.2", out, inside)
        self.linear(f"{name}.emb_layers.1", out, self.time)
        self.norm(f"{name}.out_layers.0", out)
        self.conv(f"{name}.out_layers.3", out, out)
        if out != inside:
            self.conv(f"{name}.skip_connection", out, inside, 1)

    def attention(self, name: str, width: int, depth: int) -> None:
        if not depth:
            return
        self.norm(f"{name}.norm", width)
        for way in ("proj_in", "proj_out"):
            if self.unet.linear:
                self.linear(f"{name}.{way}", width, width)
            else:
                self.conv(f"{name}.{way}", width, width, 1)
        for i in range(depth):
            block = f"{name}.transformer_blocks.{i}"
            for attention, inside in (("attn1", width), ("attn2", self.unet.context)):
                self.linear(f"{block}.{attention}.to_q", width, width, bias=False)
                self.linear(f"{block}.{attention}.to_k", width, inside, bias=False)
                self.linear(f"{block}.{attention}.to_v", width, inside, bias=False)
                self.linear(f"{block}.{attention}.to_out.0", width, width)
            self.linear(f"{block}.ff.net.0.proj", 8 * width, width)
            self.linear(f"{block}.ff.net.2", width, 4 * width)
            for norm in ("norm1", "norm2", "norm3"):
                self.norm(f"{block}.{norm}", width)


def unet_shapes(unet: Unet) -> Shapes:
    """Rombach et al. 2022: two layers a level on the way down, three on the way up, which take what was left there."""
    layers, first, last = UnetLayers(unet), unet.channels[0], len(unet.channels) - 1
    layers.linear("time_embed.0", layers.time, first)
    layers.linear("time_embed.2", layers.time, layers.time)
    if unet.sized:
        layers.linear("label_emb.0.0", layers.time, unet.sized)
        layers.linear("label_emb.0.2", layers.time, layers.time)
    layers.conv("input_blocks.0.0", first, unet.inputs)
    left, width, block = [first], first, 1
    for level, (out, depth) in enumerate(zip(unet.channels, unet.depths, strict=True)):
        for _ in range(2):
            layers.resnet(f"input_blocks.{block}.0", out, width)
            layers.attention(f"input_blocks.{block}.1", out, depth)
            width, block = out, block + 1
            left.append(width)
        if level != last:
            layers.conv(f"input_blocks.{block}.0.op", width, width)
            block += 1
            left.append(width)
    for i in (0,) if unet.ups else (0, 2):
        layers.resnet(f"middle_block.{i}", width, width)
    if not unet.ups:
        layers.attention("middle_block.1", width, unet.depths[-1] if unet.middle < 0 else unet.middle)
    block = 0
    for level in range(last, -1, -1):
        out = unet.channels[level]
        for i in range(3):
            depth = unet.ups[last - level][i] if unet.ups else unet.depths[level]
            layers.resnet(f"output_blocks.{block}.0", out, width + left.pop())
            layers.attention(f"output_blocks.{block}.1", out, depth)
            width = out
            if level and i == 2:
                layers.conv(f"output_blocks.{block}.{2 if depth else 1}.conv", width, width)
            block += 1
    layers.norm("out.0", first)
    layers.conv("out.2", 4, first)
    return layers.shapes


def control_shapes(unet: Unet, hint: tuple[int, ...] = (16, 16, 32, 32, 96, 96, 256)) -> Shapes:
    """Zhang et al. 2023: the way down and the middle once more, a small network for the picture, and layers between."""
    own = unet_shapes(unet)
    layers = UnetLayers(unet)
    layers.shapes = {name: shape for name, shape in own.items() if not name.startswith(("output_blocks.", "out."))}
    for i, (inside, out) in enumerate(zip((3, *hint), (*hint, unet.channels[0]), strict=True)):
        layers.conv(f"input_hint_block.{2 * i}", out, inside)
    count, width = 0, unet.channels[0]
    while f"input_blocks.{count}.0.weight" in own or any(name.startswith(f"input_blocks.{count}.") for name in own):
        for last in ("out_layers.3.weight", "op.weight"):
            width = own.get(f"input_blocks.{count}.0.{last}", (width,))[0]
        layers.conv(f"zero_convs.{count}.0", width, width, 1)
        count += 1
    layers.conv("middle_block_out.0", width, width, 1)
    return layers.shapes


class VaeLayers(Layers):
    def resnet(self, name: str, out: int, inside: int) -> None:
        self.norm(f"{name}.norm1", inside)
        self.conv(f"{name}.conv1", out, inside)
        self.norm(f"{name}.norm2", out)
        self.conv(f"{name}.conv2", out, out)
        if out != inside:
            self.conv(f"{name}.nin_shortcut", out, inside, 1)

    def middle(self, name: str, width: int) -> None:
        self.resnet(f"{name}.block_1", width, width)
        self.norm(f"{name}.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.attn_1.{part}", width, width, 1)
        self.resnet(f"{name}.block_2", width, width)


def vae_shapes(channels: tuple[int, ...], latent: int = 4, quantised: bool = True) -> Shapes:
    layers, first, deepest, last = VaeLayers(), channels[0], channels[-1], len(channels) - 1
    layers.conv("encoder.conv_in", first, 3)
    width = first
    for level, out in enumerate(channels):
        for i in range(2):
            layers.resnet(f"encoder.down.{level}.block.{i}", out, width)
            width = out
        if level != last:
            layers.conv(f"encoder.down.{level}.downsample.conv", out, out)
    layers.middle("encoder.mid", deepest)
    layers.norm("encoder.norm_out", deepest)
    layers.conv("encoder.conv_out", 2 * latent, deepest)
    layers.conv("decoder.conv_in", deepest, latent)
    layers.middle("decoder.mid", deepest)
    for level in range(last, -1, -1):
        for i in range(3):
            layers.resnet(f"decoder.up.{level}.block.{i}", channels[level], width)
            width = channels[level]
        if level:
            layers.conv(f"decoder.up.{level}.upsample.conv", width, width)
    layers.norm("decoder.norm_out", first)
    layers.conv("decoder.conv_out", 3, first)
    if quantised:
        layers.conv("quant_conv", 2 * latent, 2 * latent, 1)
        layers.conv("post_quant_conv", latent, latent, 1)
    return layers.shapes


def clip_shapes(clip: Clip) -> Shapes:
    """transformers' layout, below `text_model.`."""
    layers, width = Layers(), clip.width
    layers.shapes |= {
        "embeddings.position_ids": (1, PLACES),
        "embeddings.token_embedding.weight": (VOCABULARY, width),
        "embeddings.position_embedding.weight": (PLACES, width),
    }
    for i in range(clip.layers):
        layer = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layers.linear(f"{layer}.self_attn.{name}", width, width)
        for norm in ("layer_norm1", "layer_norm2"):
            layers.norm(f"{layer}.{norm}", width)
        layers.linear(f"{layer}.mlp.fc1", 4 * width, width)
        layers.linear(f"{layer}.mlp.fc2", width, 4 * width)
    layers.norm("final_layer_norm", width)
    return layers.shapes


def open_clip_shapes(clip: Clip) -> Shapes:
    layers, width = Layers(), clip.width
    layers.shapes |= {
        "logit_scale": (),
        "positional_embedding": (PLACES, width),
        "text_projection": (width, width),
        "token_embedding.weight": (VOCABULARY, width),
    }
    for i in range(clip.layers):
        layer = f"transformer.resblocks.{i}"
        layers.shapes |= {
            f"{layer}.attn.in_proj_weight": (3 * width, width),
            f"{layer}.attn.in_proj_bias": (3 * width,),
        }
        layers.linear(f"{layer}.attn.out_proj", width, width)
        for norm in ("ln_1", "ln_2"):
            layers.norm(f"{layer}.{norm}", width)
        layers.linear(f"{layer}.mlp.c_fc", 4 * width, width)
        layers.linear(f"{layer}.mlp.c_proj", width, 4 * width)
    layers.norm("ln_final", width)
    return layers.shapes
