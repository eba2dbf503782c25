"""Reads the file of a LoRA or one of its relatives: which tensors belong to which layer, by the names in the file."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import BadModel
from pipelines.library.headers import read_header
from pipelines.loading.weights import Stamp, open_weights, stamp

Params = Mapping[str, Tensor]
"""What a file says of one layer: by the names on the right of `ENDINGS`."""

ENDINGS: Mapping[str, str] = {
    # LoRA: kohya, peft, diffusers of 2023, and older
    **dict.fromkeys((".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight"), "down"),
    **dict.fromkeys((".lora_up.weight", ".lora_B.weight", ".lora.up.weight", "_lora.up.weight"), "up"),
    **dict.fromkeys((".lora_linear_layer.down.weight", ".lora_A", ".lora_down", ".down.weight"), "down"),
    **dict.fromkeys((".lora_linear_layer.up.weight", ".lora_B", ".lora_up", ".up.weight"), "up"),
    ".lora_mid.weight": "mid",
    ".lora_B.bias": "up_bias",
    **dict.fromkeys((".alpha", "_lora.alpha"), "alpha"),
    # DoRA: kohya and LyCORIS, peft
    ".dora_scale": "dora_scale",
    **dict.fromkeys((".lora_magnitude_vector.weight", ".lora_magnitude_vector"), "magnitude"),
    # LyCORIS
    **{f".{name}": name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{f".{name}": name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")},
    ".lokr_t2": "lokr_t2",
    **{f".{name}": name for name in ("oft_blocks", "oft_diag", "rescale", "on_input", "w_norm", "b_norm")},
    ".diff": "diff",
    ".diff_b": "diff_b",
    **{f".{name}.weight": name for name in ("a1", "a2", "b1", "b2")},
    ".weight": "weight",
}
"""How the name of a tensor ends -> what it is."""

LONGEST_FIRST = sorted(ENDINGS.items(), key=lambda row: -len(row[0]))
NAMED_ADAPTER = re.compile(r"\.(lora_[AB]|lora_magnitude_vector)\.(?!weight$|bias$)[^.]+\.(weight|bias)$")
"""peft puts the adapter's own name, mostly `default`, into that of each tensor."""


@dataclass(frozen=True)
class AdapterFile:
    path: Path
    stamp: Stamp
    layers: Mapping[str, Params]
    """By the layer's name in the file."""
    strange: tuple[str, ...]
    """Tensors of which nothing is known."""

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for params in self.layers.values() for tensor in params.values())


def read_adapter(path: Path) -> AdapterFile:
    """Into memory, since people train over a file that is in use. Raises BadModel and ModelNotFound."""
    found, strange = stamp(path), []
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in open_weights(path).items():
        layer, param = split(name)
        if param:
            layers.setdefault(layer, {})[param] = tensor.clone()
        else:
            strange.append(name)
    if not layers:
        raise BadModel(f"{path.name} holds no LoRA, or one of an unknown kind.")
    for layer, alpha in _alphas(path, layers).items():
        layers[layer].setdefault("alpha", torch.tensor(alpha))
    return AdapterFile(path, found, layers, tuple(strange))


def split(name: str) -> tuple[str, str]:
    """(layer, what the tensor is to it); the second is empty if that is not known."""
    name = NAMED_ADAPTER.sub(r".\1.\2", name)
    for ending, param in LONGEST_FIRST:
        if name.endswith(ending):
            return name.removesuffix(ending), param
    return name, ""


def _alphas(path: Path, layers: Mapping[str, Params]) -> dict[str, float]:
    """Of layers without an alpha of their own, as peft and diffusers write it: for all, with exceptions by pattern."""
    found: dict[str, float] = {}
    for prefix, config in _configs(path):
        for layer, params in layers.items():
            if "down" in params and layer.startswith(prefix):
                rank = len(params["down"])
                alpha = _pattern(config.get("alpha_pattern"), layer.removeprefix(prefix), config["lora_alpha"])
                found[layer] = alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
    return found


def _configs(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """peft's settings: in a file of their own, or in the header, one for each network."""
    beside = path.parent / "adapter_config.json"
    text = None
    if path.name.startswith("adapter_model") and beside.is_file():
        text = beside.read_text("utf-8", "replace")
    elif path.suffix.lower() == ".safetensors":
        text = read_header(path).metadata.get("lora_adapter_metadata")
    try:
        config = json.loads(text or "{}")
    except ValueError:
        return []
    if not isinstance(config, dict):
        return []
    prefixes = {name.rpartition(".")[0] for name in config if name.rpartition(".")[2] == "lora_alpha"}
    found = []
    for prefix in prefixes:
        own = {name.removeprefix(f"{prefix}."): value for name, value in config.items() if name.startswith(prefix)}
        if isinstance(own["lora_alpha"], int | float):
            found.append((f"{prefix}." if prefix else "", own))
    return found


def _pattern(patterns: object, layer: str, default: float) -> float:
    """The first whose key the layer's name ends with: peft's rule."""
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        if (layer == key or layer.endswith(f".{key}")) and isinstance(value, int | float):
            return float(value)
    return float(default)
