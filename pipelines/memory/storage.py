"""The forms in which a weight waits until it is computed with: as it is, in 8 bits, in 4 bits.

Eight bits are float8_e4m3fn with one scale a row. Without a scale, weights of trained networks (0.02 and less) fall
below that format's smallest normal number, 0.016, and lose most of their bits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipelines.loading.quantised import FP8, NF4, NF4_BLOCK, Packed, dequantise, pack_nf4

FP8_MAX = 448.0
"""The largest number of float8_e4m3fn."""


@dataclass(frozen=True)
class Form:
    """One weight as it waits. `tensors` may be copied to anywhere; `unpack` takes such a copy."""

    kind: str
    """"" as it is, fp8 or nf4."""
    shape: torch.Size
    tensors: tuple[Tensor, ...]
    fixed: bool = False
    """Never to be cast: numbers that are packed by the layer's own rules."""

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def unpack(self, tensors: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        if not self.kind:
            return tensors[0] if self.fixed else tensors[0].to(dtype)
        return dequantise(tensors[0], dtype, self.kind, tensors[1]).reshape(self.shape)


def plain(weight: Tensor, fixed: bool = False) -> Form:
    return Form("", weight.shape, (weight,), fixed)


def pack(weight: Tensor, kind: str) -> Form:
    """[rows, ...] -> packed, on the device where the weight is. Raises BadModel if nf4 needs what is not installed."""
    rows = weight.reshape(len(weight), -1)
    if kind == NF4:
        return Form(NF4, weight.shape, pack_nf4(rows))
    scale = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    return Form(FP8, weight.shape, ((rows / scale.to(rows.dtype)).to(torch.float8_e4m3fn), scale))


def packable(name: str, module: nn.Module, weight: Tensor, kind: str) -> bool:
    """The large weights inside of blocks. Norms, embeddings and the first and last layers, which have no number in
    their names, decide too much with too few bytes.
    """
    if isinstance(module, nn.Embedding | Packed) or "Norm" in type(module).__name__ or weight.ndim < 2:
        return False
    inside = any(piece.isdecimal() for piece in name.split("."))
    whole_blocks = kind != NF4 or (weight.numel() // len(weight)) % NF4_BLOCK == 0
    return inside and weight.dtype.is_floating_point and whole_blocks


def packed_bytes(weight: Tensor, kind: str) -> int:
    if kind == NF4:
        return weight.numel() // 2 + weight.numel() // NF4_BLOCK * 4
    return weight.numel() + len(weight) * 4
