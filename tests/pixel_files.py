"""Tiny upscalers with random weights, in the layouts in which they are published."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipelines.types import Format, Kind, ModelInfo
from tests.tiny_dit import Maker, Weights

WIDTH, GROWTH = 8, 32


def esrgan(scale: int = 4) -> Weights:
    """In Real-ESRGAN's names. For a factor of 2, it takes 2 x 2 pixels at once."""
    make = Maker()
    make.conv("conv_first", WIDTH, 3 if scale == 4 else 12)
    for block in (f"body.0.rdb{n}" for n in (1, 2, 3)):
        for n in range(1, 5):
            make.conv(f"{block}.conv{n}", GROWTH, WIDTH + (n - 1) * GROWTH)
        make.conv(f"{block}.conv5", WIDTH, WIDTH + 4 * GROWTH)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
        make.conv(name, WIDTH, WIDTH)
    make.conv("conv_last", 3, WIDTH)
    return make.made


def compact(scale: int = 2) -> Weights:
    """Real-ESRGAN's small one."""
    make = Maker()
    for n, (out, inside) in enumerate([(WIDTH, 3), (WIDTH, WIDTH), (WIDTH, WIDTH), (3 * scale**2, WIDTH)]):
        make.conv(f"body.{2 * n}", out, inside)
        if n < 3:
            make.tensor(f"body.{2 * n + 1}.weight", out, mean=0.2)
    return make.made


NETWORKS: Mapping[str, Callable[[], Weights]] = {"esrgan": esrgan, "compact": compact, "esrgan2": lambda: esrgan(2)}
OTHERS: Mapping[str, Callable[[], Weights]] = {"sharpener": lambda: compact(1)}
"""Of the same size as before."""
SCALES = {"esrgan": 4, "compact": 2, "esrgan2": 2}


def save_network(folder: Path, kind: str = "esrgan", suffix: str = ".safetensors") -> ModelInfo:
    """Written, and listed as the registry would."""
    weights = {**NETWORKS, **OTHERS}[kind]()
    path = folder / f"{kind}{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"params_ema": weights}, path)
    return ModelInfo(
        name=path.name,
        kind=Kind.UPSCALER,
        family="",
        variant=kind,
        format=Format.SAFETENSORS if suffix == ".safetensors" else Format.PICKLE,
        path=path,
        size_bytes=path.stat().st_size,
    )
