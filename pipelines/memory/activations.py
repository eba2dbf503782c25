"""How much memory networks need besides their weights: measured points and what lies between them. No torch.

Made with `python -m bench.activations`: full-size networks, 16 bits a number, one row, every tensor that lives at the
worst moment, attention fused. Measured at 1, 2 and 8 rows: memory is proportional to rows, within 1 %.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

MIB = 2**20
SIDES = (256, 512, 768, 1024, 1536, 2048)
"""Pixels along a side of the square pictures below."""


class Points(NamedTuple):
    weights_bytes: int
    """Of the network that was measured, in 16 bits."""
    mib: Sequence[int]
    """For each of SIDES."""


DENOISERS: Mapping[str, Points] = {
    "sd1": Points(1_719_000_000, (16, 65, 146, 260, 585, 1041)),
    "sd2": Points(1_731_800_000, (16, 65, 146, 260, 585, 1041)),
    "sdxl": Points(5_134_900_000, (10, 40, 89, 158, 355, 631)),
    "sd3": Points(4_056_700_000, (18, 45, 94, 162, 358, 632)),
    "flux": Points(23_802_800_000, (81, 159, 288, 468, 984, 1706)),
    "flux2": Points(7_751_100_000, (107, 203, 363, 588, 1229, 2127)),
    "z_image": Points(12_309_800_000, (92, 180, 329, 536, 1130, 1960)),
    "qwen_image": Points(40_860_800_000, (61, 110, 224, 383, 839, 1477)),
}
VAES: Mapping[str, Points] = {
    "": Points(167_300_000, (96, 384, 864, 1536, 3457, 6145)),
    "flux2": Points(168_100_000, (96, 384, 865, 1538, 3460, 6152)),
    "qwen_image": Points(253_800_000, (217, 866, 1947, 3460, 7783, 13835)),
}
TEXT_BYTES: Mapping[str, int] = {
    "sd1": 5 * MIB,
    "sd2": 11 * MIB,
    "sdxl": 17 * MIB,
    "sd3": 320 * MIB,
    "flux": 320 * MIB,
    "flux2": 500 * MIB,
    "z_image": 500 * MIB,
    "qwen_image": 500 * MIB,
}
"""Two prompts: CLIP at 77 tokens, T5-XXL at 512. Qwen cannot be measured so: half as much again as T5 is assumed."""

LEAVES: Mapping[str, int] = {
    "unet": 59 * 10**6,
    "transformer": 170 * 10**6,
    "vae": 8 * 10**6,
    "text_encoder_3": 264 * 10**6,
    "text_encoder_2": 264 * 10**6,
    "text_encoder": 127 * 10**6,
}
"""The largest layer of each kind of network, by `python -m bench.activations`. Of a text encoder it is the table of
its words: CLIP's 127 MB at most, T5's 264 MB, Qwen's 778 MB and more."""

TILES = (64, 32)
"""Sides of the VAE's tiles in latents, as they are tried."""
DENOISER_MARGIN = 1.2
VAE_MARGIN = 1.6
"""Workspaces of cuDNN's convolutions are not in the points; a VAE's, at full resolution, are the largest."""


def denoiser_bytes(family: str, weights_bytes: int, number_bytes: int, pixels: int) -> int:
    """For one row of a step. A family that was not measured counts as the hungriest that was."""
    points = DENOISERS.get(family) or DENOISERS["flux2"]
    return round(_scaled(points, weights_bytes, number_bytes, pixels) * DENOISER_MARGIN)


def vae_bytes(family: str, weights_bytes: int, number_bytes: int, pixels: int) -> int:
    """For one picture, or a tile of it."""
    points = VAES.get(family) or VAES[""]
    return round(_scaled(points, weights_bytes, number_bytes, pixels) * VAE_MARGIN)


def _scaled(points: Points, weights_bytes: int, number_bytes: int, pixels: int) -> float:
    """Layers twice as wide have four times the weights and twice the activations."""
    width: float = (weights_bytes / number_bytes * 2 / points.weights_bytes) ** 0.5
    return interpolated(points.mib, pixels) * MIB * width * number_bytes / 2


def interpolated(mib: Sequence[int], pixels: int) -> float:
    """Between the measured points in a straight line; outside of them the first and the last line go on."""
    places = [side * side for side in SIDES]
    lines = list(pairwise(zip(places, mib, strict=True)))
    (x0, y0), (x1, y1) = next((line for line in lines if pixels <= line[1][0]), lines[-1])
    return max(y0 + (y1 - y0) * (pixels - x0) / (x1 - x0), mib[0] / 4)
