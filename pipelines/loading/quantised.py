"""Weights that stay packed in memory: GGUF, fp8 with scales, nf4. A layer unpacks its own for as long as it computes.

A file's packed tensors travel through the recipes as they are mapped; `packed_layers` says which layers they belong
to, `install` puts layers in place that can compute with them. The arithmetic of GGUF is diffusers'.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_functions
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import BadModel
from pipelines.loading.parts import Tensors

FP8, NF4 = "fp8", "nf4"
"""Kinds of packing beside the names of GGUF's own types, such as Q4_K."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SCALES = ("scale_weight", "weight_scale")
"""Behind a layer's name: what its fp8 weight is to be multiplied with. Two makers, two spellings."""
IGNORED = ("scale_input", "input_scale", "comfy_quant", "scaled_fp8")
"""Scales for fp8 activations and markers: we compute in the activations' own type."""
NF4_BLOCK = 64
NF4_STATE = "weight.quant_state.bitsandbytes__nf4"


def shape_of(tensors: Tensors, name: str) -> tuple[int, ...]:
    """As the network knows it. What is packed has fewer bytes in its last dimension."""
    tensor = tensors[name]
    shape = tuple(getattr(tensor, "quant_shape", tensor.shape))
    packed = name.removesuffix("weight") + "absmax" in tensors
    return (*shape[:-1], shape[-1] * 2) if packed else shape


def normalised(tensors: Tensors) -> dict[str, Tensor]:
    """One form for all makers: `X.weight` with rows as the layer has them, its scales beside it as `X.scale` (fp8,
    shape [] or [rows, 1]) or `X.absmax` (nf4, [rows, columns / 64]). Raises BadModel for packings that are not known.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last in SCALES:
            found[f"{layer}.scale"] = _scale(name, tensor)
        elif f"{layer}.{NF4_STATE}" in tensors and last == "weight":
            found.update(_nf4(layer, tensors))
        elif last not in IGNORED and ".weight." not in name:
            found[name] = tensor if last == "weight" or not isinstance(tensor, GGUFParameter) else _plain(tensor)
        elif last.startswith("bitsandbytes__") and not last.endswith("nf4"):
            raise BadModel(f"The weights are packed as {last.removeprefix('bitsandbytes__')}; take nf4, fp8 or GGUF.")
    return found


def _scale(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOATS:
        raise BadModel(f"{name} is {tensor.dtype}: blocks of 4 bits (nvfp4, mxfp) are not known. Take fp8 or GGUF.")
    return tensor.float().reshape(()) if tensor.numel() == 1 else tensor.float().reshape(-1, 1)


def _plain(tensor: Tensor) -> Tensor:
    """A packed tensor that is no layer's weight, such as a bias: unpacked at once, it is small."""
    return dequantise(tensor, torch.float32)


def _nf4(layer: str, tensors: Tensors) -> dict[str, Tensor]:
    """bitsandbytes' layout: two weights a byte, one absmax for 64 weights, which may itself be packed in 8 bits."""
    state = json.loads(bytes(tensors[f"{layer}.{NF4_STATE}"].tolist()))
    rows, columns = state["shape"]
    if columns % NF4_BLOCK or state["blocksize"] != NF4_BLOCK:
        raise BadModel(f"{layer} is packed in blocks of {state['blocksize']}; only {NF4_BLOCK} is known.")
    absmax = tensors[f"{layer}.weight.absmax"]
    if f"{layer}.weight.nested_absmax" in tensors:
        codes = tensors[f"{layer}.weight.nested_quant_map"][absmax.long()]
        outer = tensors[f"{layer}.weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(codes)]
        absmax = codes * outer + state["nested_offset"]
    packed = tensors[f"{layer}.weight"].reshape(rows, columns // 2)
    return {f"{layer}.weight": packed, f"{layer}.absmax": absmax.float().reshape(rows, columns // NF4_BLOCK)}


def packed_layers(tensors: Tensors) -> dict[str, str]:
    """Layer -> kind of packing, from tensors that are `normalised` and carry the module's own names."""
    kinds: dict[str, str] = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if isinstance(tensor, GGUFParameter):
            kinds[layer] = tensor.quant_type.name
        elif last in ("scale", "absmax"):
            kinds[layer] = FP8 if last == "scale" else NF4
    return kinds


def stored(tensors: Tensors, kinds: Mapping[str, str]) -> dict[str, Tensor]:
    """Under the names that a module with `install`ed layers has: plain tensors, a packed weight is `X.packed`."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        plain = tensor.as_tensor() if isinstance(tensor, GGUFParameter) else tensor
        if layer in kinds and last == "weight":
            named[f"{layer}.packed"] = plain
        else:
            named[name] = plain
    return named


class Packed(nn.Module):
    """What the layers below share: the packed weight at home, and how it is unpacked."""

    scale: Tensor | None
    """Buffers: of fp8, [] or [rows, 1], and of nf4, [rows, columns / 64]. GGUF's scales lie among the weights."""
    absmax: Tensor | None

    def __init__(self, kind: str, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.kind = kind
        self.compute_dtype = torch.float32
        self.packed = nn.Parameter(torch.empty(tuple(shapes["packed"]), dtype=torch.uint8), requires_grad=False)
        for name in ("scale", "absmax"):
            self.register_buffer(name, torch.empty(tuple(shapes[name])) if name in shapes else None)

    @property
    def weight(self) -> Tensor:
        """Empty, in the type that this layer computes in: T5 and Z-Image look there before they call the layer."""
        return torch.empty(0, dtype=self.compute_dtype, device=self.packed.device)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        return dequantise(self.packed, dtype, self.kind, self.scales)

    @property
    def scales(self) -> Tensor | None:
        return self.absmax if self.kind == NF4 else self.scale


class PackedLinear(Packed):
    def __init__(self, layer: nn.Linear, kind: str, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__(kind, shapes)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.unpacked(x.dtype), bias)


class PackedEmbedding(Packed):
    """Only the rows that are asked for are unpacked."""

    def __init__(self, layer: nn.Embedding, kind: str, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__(kind, shapes)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        rows = ids.flatten()
        scales = self.scales
        scales = scales if scales is None or scales.ndim == 0 else scales[rows]
        return dequantise(self.packed[rows], self.compute_dtype, self.kind, scales).reshape(*ids.shape, -1)


LAYERS: dict[type[nn.Module], Callable[[Any, str, Mapping[str, Sequence[int]]], Packed]] = {
    nn.Linear: PackedLinear,
    nn.Embedding: PackedEmbedding,
}


def install(module: nn.Module, kinds: Mapping[str, str], shapes: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Replace the layers of `kinds` by ones that compute with packed weights. `shapes`: of each layer's `packed`,
    `scale` and `absmax`.

    Raises BadModel if a layer is packed that cannot be, such as a convolution.
    """
    for name, kind in kinds.items():
        try:
            layer = module.get_submodule(name)
        except AttributeError as error:
            raise BadModel(f"The file holds weights for {name!r}, which this kind of model does not have.") from error
        if type(layer) not in LAYERS:
            raise BadModel(f"The weights of {name!r} are packed as {kind}, which is not possible for such a layer.")
        module.set_submodule(name, LAYERS[type(layer)](layer, kind, shapes[name]))


def compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Tell packed layers what type the others have: an embedding's output and T5's feed-forward follow it."""
    for layer in module.modules():
        if isinstance(layer, Packed):
            layer.compute_dtype = dtype


def dequantise(tensor: Tensor, dtype: torch.dtype, kind: str = "", scale: Tensor | None = None) -> Tensor:
    """The weight that was packed. `kind` as in `packed_layers`; empty: the tensor itself knows, or is not packed."""
    if kind == NF4 and scale is not None:
        return _unpack_nf4(tensor, scale).to(dtype)
    if isinstance(tensor, GGUFParameter):
        kind, tensor = tensor.quant_type.name, tensor.as_tensor()
    if kind and kind != FP8:
        return _unpack_gguf(tensor, kind, dtype).to(dtype)
    plain = tensor.to(dtype)
    return plain if scale is None else plain * scale.to(dtype)


def _unpack_gguf(packed: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """[rows, bytes] -> [rows, columns]. Scales are stored as float16; in it half precision is computed, too."""
    quant_type = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[quant_type]
    blocks = packed.view(torch.uint8).reshape(-1, size)
    exact = torch.float32 if dtype == torch.float32 else torch.float16
    weights: Tensor = dequantize_functions[quant_type](blocks, block, size, exact)
    return weights.reshape(*packed.shape[:-1], packed.shape[-1] // size * block)


NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Dettmers et al. 2023, 'QLoRA', appendix E."""


def _unpack_nf4(packed: Tensor, absmax: Tensor) -> Tensor:
    """[rows, columns / 2] -> [rows, columns]; the first weight of a pair is in the upper half of the byte."""
    levels = torch.tensor(NF4_LEVELS, device=packed.device)
    halves = torch.stack([packed >> 4, packed & 15], -1).reshape(*absmax.shape, NF4_BLOCK)
    return (levels[halves.long()] * absmax[..., None]).flatten(-2)


def pack_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows, columns] -> packed [rows, columns / 2] and absmax [rows, columns / 64], by bitsandbytes.

    Raises BadModel if it is not installed, or if the columns are no multiple of 64.
    """
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        raise BadModel("Packing to nf4 needs bitsandbytes: run `uv pip install bitsandbytes`, or take fp8.") from error
    rows, columns = weight.shape
    if columns % NF4_BLOCK:
        raise BadModel(f"nf4 packs blocks of {NF4_BLOCK} weights; a layer with {columns} inputs has no whole number.")
    packed, state = quantize_4bit(weight, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False)
    return packed.reshape(rows, columns // 2), state.absmax.reshape(rows, columns // NF4_BLOCK)
