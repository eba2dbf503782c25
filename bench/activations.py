"""How much memory each network needs besides its weights: `python -m bench.activations` prints memory.py's table.

The networks are built in full size on the `meta` device, which has shapes and no bytes, and run once; a dispatch mode
adds up the bytes of every tensor that lives, and keeps the highest sum. Attention counts as fused, as SDPA, xformers
and flash do it: its scores are never in memory. Workspaces of cuDNN are not seen; the planner adds a margin for them.
"""

import logging
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

log = logging.getLogger("bench.activations")

SIDES = (256, 512, 768, 1024, 1536, 2048)
ROWS = (1, 2, 8)

Run = Callable[[nn.Module, int, int], Any]
"""(network, rows, pixels of a side) -> one forward call on meta tensors of 2 bytes a number."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the storages that were made inside and are still held by somebody."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in before:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


class FusedAttention(TorchFunctionMode):
    """Scaled dot product attention as one operation: it allocates its result and nothing else."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            query, value = given["query"], given["value"]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
def peak_bytes(network: nn.Module, run: Run, rows: int, side: int) -> int:
    with torch.device("meta"), LiveBytes() as seen, FusedAttention():
        result = run(network, rows, side)
        del result
    return int(seen.peak)


def half(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float16)


def unet(tokens: int, width: int, pooled: int = 0) -> Run:
    def run(network: nn.Module, rows: int, side: int) -> Any:
        added = {"text_embeds": half(rows, pooled), "time_ids": half(rows, 6)} if pooled else None
        latent = half(rows, 4, side // 8, side // 8)
        return network(latent, torch.empty(rows), half(rows, tokens, width), added_cond_kwargs=added)

    return run


def sd3(network: nn.Module, rows: int, side: int) -> Any:
    return network(half(rows, 16, side // 8, side // 8), half(rows, 333, 4096), half(rows, 2048), torch.empty(rows))


def flux(network: nn.Module, rows: int, side: int) -> Any:
    tokens = (side // 16) ** 2
    return network(
        hidden_states=half(rows, tokens, 64),
        encoder_hidden_states=half(rows, 512, 4096),
        pooled_projections=half(rows, 768),
        timestep=half(rows),
        img_ids=torch.empty(tokens, 3),
        txt_ids=torch.empty(512, 3),
        guidance=half(rows),
    )


def flux2(network: nn.Module, rows: int, side: int) -> Any:
    tokens = (side // 16) ** 2
    return network(
        hidden_states=half(rows, tokens, 128),
        encoder_hidden_states=half(rows, 512, 7680),
        timestep=half(rows),
        img_ids=torch.empty(tokens, 4),
        txt_ids=torch.empty(512, 4),
    )


def qwen(network: nn.Module, rows: int, side: int) -> Any:
    tokens, places = (side // 16) ** 2, side // 16
    return network(
        hidden_states=half(rows, tokens, 64),
        encoder_hidden_states=half(rows, 512, 3584),
        timestep=half(rows),
        img_shapes=[[(1, places, places)]] * rows,
    )


def z_image(network: nn.Module, rows: int, side: int) -> Any:
    latents = [half(16, 1, side // 8, side // 8) for _ in range(rows)]
    return network(latents, torch.empty(rows), [half(512, 2560) for _ in range(rows)])


def words(network: nn.Module, rows: int, side: int) -> Any:
    """`side` is the number of tokens."""
    return network(torch.empty(rows, side, dtype=torch.long), output_hidden_states=True)


def decode(channels: int, factor: int = 8) -> Run:
    def run(network: nn.Module, rows: int, side: int) -> Any:
        return network.decode(half(rows, channels, side // factor, side // factor), return_dict=False)  # type: ignore[operator]

    return run


def decode_video(network: nn.Module, rows: int, side: int) -> Any:
    return network.decode(half(rows, 16, 1, side // 8, side // 8), return_dict=False)  # type: ignore[operator]


XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SD3 = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
KLEIN = {
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}

NETWORKS: dict[str, tuple[str, dict[str, Any], Run]] = {
    "sd1 unet": ("UNet2DConditionModel", {"cross_attention_dim": 768, "attention_head_dim": 8}, unet(77, 768)),
    "sd2 unet": ("UNet2DConditionModel", SD2, unet(77, 1024)),
    "sdxl unet": ("UNet2DConditionModel", XL, unet(77, 2048, 1280)),
    "sd3 transformer": ("SD3Transformer2DModel", SD3, sd3),
    "flux transformer": ("FluxTransformer2DModel", {"guidance_embeds": True}, flux),
    "flux2 transformer": ("Flux2Transformer2DModel", KLEIN, flux2),
    "qwen transformer": ("QwenImageTransformer2DModel", {}, qwen),
    "zimage transformer": ("ZImageTransformer2DModel", {}, z_image),
    "sd vae": ("AutoencoderKL", {**VAE, "latent_channels": 4}, decode(4)),
    "sd3 vae": (
        "AutoencoderKL",
        {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
        decode(16),
    ),
    "flux2 vae": ("AutoencoderKLFlux2", {}, decode(32)),
    "qwen vae": ("AutoencoderKLQwenImage", {}, decode_video),
}
"""Name -> diffusers' class, the part of its config that is not its default, and how it is called."""


TEXTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "CLIP-L": ("CLIPText", 77, {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}),
    "CLIP-H": (
        "CLIPText",
        77,
        {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    ),
    "CLIP-bigG": (
        "CLIPText",
        77,
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    ),
    "T5-XXL": (
        "T5",
        512,
        {
            "d_model": 4096,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        },
    ),
}
"""Name -> transformers' kind, tokens of a prompt, config. Qwen's masks ask for values, which `meta` has not: the
planner assumes half as much again as for T5."""


def build_text(name: str) -> nn.Module:
    import transformers

    kind, _, config = TEXTS[name]
    network = {"CLIPText": "CLIPTextModel", "T5": "T5EncoderModel"}[kind]
    with torch.device("meta"):
        built: nn.Module = getattr(transformers, network)(getattr(transformers, f"{kind}Config")(**config))
    return built.to(torch.float16).eval()


def build(name: str) -> nn.Module:
    import diffusers

    kind, config, _ = NETWORKS[name]
    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, kind).from_config(config)
    return network.to(torch.float16).eval()


def largest_leaf(network: nn.Module) -> int:
    return max(
        sum(p.numel() * p.element_size() for p in module.parameters(recurse=False)) for module in network.modules()
    )


def main() -> None:
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    logging.getLogger("diffusers").setLevel("ERROR")
    for name in sys.argv[1:] or NETWORKS:
        network = build(name)
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        log.info("%s: weights %.1f MB, largest leaf %.1f MB", name, weights / 1e6, largest_leaf(network) / 1e6)
        for rows in ROWS if "vae" not in name else (1,):
            points = {side: peak_bytes(network, NETWORKS[name][2], rows, side) for side in SIDES}
            log.info("  rows %d: %s", rows, {side: round(size / 2**20) for side, size in points.items()})
    for name, (_, tokens, _) in TEXTS.items() if not sys.argv[1:] else ():
        network = build_text(name)
        peak = peak_bytes(network, words, 2, tokens)
        log.info("%s: largest leaf %.1f MB, two prompts %d MiB", name, largest_leaf(network) / 1e6, peak / 2**20)


if __name__ == "__main__":
    main()
