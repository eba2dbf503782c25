"""Files of LoRAs and their relatives with random weights, as trainers write them."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Weights = dict[str, Tensor]
KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_", "transformer": "lora_unet_"}


class Draw:
    """Random numbers, the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, spread: float = 0.3) -> Tensor:
        return torch.randn(shape, generator=self._generator) * spread


def layers(part: nn.Module, endings: Iterable[str]) -> dict[str, nn.Module]:
    return {name: module for name, module in part.named_modules() if name.endswith(tuple(endings))}


def low_rank(module: nn.Module, rank: int, draw: Draw) -> Weights:
    """Of one layer, with kohya's names: a convolution's `down` has its kernel."""
    weight = module.get_parameter("weight")
    ones = [1] * (weight.ndim - 2)
    down = draw(rank, *weight.shape[1:], spread=weight[0].numel() ** -0.5)
    return {"lora_down.weight": down, "lora_up.weight": draw(len(weight), rank, *ones)}


def kohya(
    parts: Mapping[str, nn.Module],
    endings: Iterable[str],
    make: Callable[[nn.Module, Draw], Weights],
    seed: int = 0,
    prefixes: Mapping[str, str] = KOHYA,
) -> Weights:
    """`make`: the tensors of one layer."""
    draw, found = Draw(seed), Weights()
    for name, part in parts.items():
        for path, module in layers(part, tuple(endings)).items():
            path = f"text_model.{path.removeprefix('text_model.')}" if name.startswith("text") else path
            flat = prefixes[name] + path.replace(".", "_")
            found |= {f"{flat}.{param}": tensor for param, tensor in make(module, draw).items()}
    return found


def save(path: Path, weights: Weights, metadata: Mapping[str, object] | None = None) -> Path:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, texts)
    return path
