"""Packed weights: they stay packed in memory, and a layer computes what it would with the weights unpacked."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn

from pipelines.errors import BadModel
from pipelines.families import flux, flux2, qwen, sd3, zimage
from pipelines.loading.gguf_file import read_gguf
from pipelines.loading.parts import Recipe, Tensors
from pipelines.loading.quantised import (
    FP8,
    NF4,
    NF4_BLOCK,
    Packed,
    PackedEmbedding,
    PackedLinear,
    compute_in,
    dequantise,
    install,
    normalised,
    pack_nf4,
)
from tests import tiny_dit

RECIPES = {
    "sd3": sd3.SD3_FAMILY.parts["transformer"],
    "flux": flux.FLUX.parts["transformer"],
    "flux2": flux2.FLUX2.parts["transformer"],
    "z_image": zimage.Z_IMAGE.parts["transformer"],
    "qwen_image": qwen.QWEN_IMAGE.parts["transformer"],
}


def load(recipe: Recipe, tensors: Tensors, dtype: torch.dtype = torch.float32) -> nn.Module:
    config = recipe.config(tensors)
    with torch.device("meta"):
        module = recipe.build(config)
    state = recipe.convert(tensors, config)
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    assert {name: tensor.shape for name, tensor in state.items()} == wanted, "as the loader compares them"
    module.load_state_dict(dict(state), assign=True)
    compute_in(module, dtype)
    return module.eval().requires_grad_(False)


def unpacked_copy(recipe: Recipe, tensors: Tensors) -> nn.Module:
    """The same weights as plain numbers, unpacked by the gguf package, which is not what we compute with."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        kind = getattr(tensor, "quant_type", None)
        if kind is None:
            plain[name] = tensor.float()
        else:
            packed = tensor.as_tensor().numpy()  # type: ignore[attr-defined]
            plain[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind)).float()
    return load(recipe, plain)


def packed_bytes(module: nn.Module) -> int:
    return sum(layer.packed.nbytes for layer in module.modules() if isinstance(layer, Packed))


def say(name: str, module: Any) -> Tensor:
    """What a transformer answers to one and the same question, in its own terms."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    tokens, text, time = random(1, 4, 64), random(1, 3, 64), torch.tensor([0.5])
    places, words = torch.zeros(4, 3), torch.zeros(3, 3)
    if name == "sd3":
        return Tensor(module(random(1, 16, 4, 4), text, random(1, 64), time * 1000, return_dict=False)[0])
    if name == "flux":
        answer = module(tokens, text, random(1, 32), time, places, words, time, return_dict=False)
        return Tensor(answer[0])
    if name == "flux2":
        answer = module(random(1, 4, 128), random(1, 3, 48), time, torch.zeros(4, 4), torch.zeros(3, 4), None)
        return Tensor(answer[0])
    if name == "z_image":
        return Tensor(module([random(16, 1, 4, 4)], time, [random(3, 16)], return_dict=False)[0][0])
    return Tensor(module(tokens, random(1, 3, 16), None, time, [[(1, 2, 2)]], return_dict=False)[0])


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.Q5_1, Kind.Q4_1, Kind.BF16, Kind.F16])
def test_gguf_files_say_what_their_weights_unpacked_say(tmp_path: Path, kind: Kind) -> None:
    path = tiny_dit.save_gguf(tmp_path / "tiny.gguf", tiny_dit.flux(), kind)
    tensors = read_gguf(path)
    module, plain = load(RECIPES["flux"], tensors), unpacked_copy(RECIPES["flux"], tensors)
    if kind in (Kind.BF16, Kind.F16):
        module = module.float()
        assert not packed_bytes(module), "these are plain numbers for torch"
    else:
        assert 0 < packed_bytes(module) < path.stat().st_size
    assert torch.allclose(say("flux", module), say("flux", plain), atol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_every_transformer_runs_packed(tmp_path: Path, name: str) -> None:
    path = tiny_dit.save_gguf(tmp_path / "tiny.gguf", tiny_dit.TRANSFORMERS[name](), Kind.Q8_0)
    tensors = read_gguf(path)
    module = load(RECIPES[name], tensors)
    assert packed_bytes(module) > 0.5 * path.stat().st_size
    before = {key: tensor.data_ptr() for key, tensor in module.state_dict().items()}
    packed = say(name, module)
    assert torch.allclose(packed, say(name, unpacked_copy(RECIPES[name], tensors)), atol=1e-4)
    after = {key: tensor.data_ptr() for key, tensor in module.state_dict().items()}
    assert before == after, "the packed weights stay where they were mapped"


SCALES: dict[Kind, tuple[int, ...]] = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
    Kind.IQ4_NL: (0,),
    Kind.IQ4_XS: (0,),
}
"""What the gguf package unpacks but cannot pack -> where in a block the numbers of 16 bits lie that scale it."""


def blocks(kind: Kind) -> np.ndarray:
    """6 rows of 4 blocks: weights that gguf has packed, or all kinds of bits with scales that are small numbers."""
    draw = np.random.default_rng(0)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if kind not in SCALES:
        return gguf.quants.quantize(draw.normal(0, 0.05, (6, 4 * block)).astype(np.float32), kind)
    raw = draw.integers(0, 256, (6, 4, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scale = draw.normal(0, 0.01, (6, 4, 1)).astype(np.float16)
        raw[..., place : place + 2] = scale.view(np.uint8)
    return raw.reshape(6, 4 * size)


@pytest.mark.parametrize("kind", [kind for kind in SUPPORTED_GGUF_QUANT_TYPES if kind != Kind.BF16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_are_unpacked_as_llama_cpp_does(kind: Kind, dtype: torch.dtype) -> None:
    raw = blocks(kind)
    expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    found = dequantise(torch.from_numpy(raw), dtype, kind.name)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    off = (found.float() - expected).abs().max() / expected.abs().max()
    assert off < {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 2e-3}[dtype]


def test_an_embedding_unpacks_its_rows_alone(tmp_path: Path) -> None:
    table = torch.randn(50, 64)
    tensors = read_gguf(tiny_dit.save_gguf(tmp_path / "t.gguf", {"e.weight": table}, Kind.Q8_0))
    with torch.device("meta"):
        module = nn.ModuleDict({"e": nn.Embedding(50, 64)})
        install(module, {"e": "Q8_0"}, {"e": {"packed": tensors["e.weight"].shape}})
    embedding = module["e"]
    assert isinstance(embedding, PackedEmbedding)
    embedding.packed = nn.Parameter(tensors["e.weight"].as_tensor(), requires_grad=False)  # type: ignore[attr-defined]
    ids = torch.tensor([[3, 49], [0, 3]])
    assert torch.allclose(embedding(ids), table[ids], atol=0.02)
    assert embedding(ids).shape == (2, 2, 64)


@pytest.mark.parametrize("name", ["t5", "qwen"])
def test_text_encoders_in_the_names_of_llama_cpp(tmp_path: Path, name: str) -> None:
    """Renamed and packed, the encoder reads what the original reads, as far as 8 bits go."""
    recipe = flux.FLUX.parts["text_encoder_2"] if name == "t5" else flux2.FLUX2.parts["text_encoder"]
    weights = tiny_dit.t5() if name == "t5" else tiny_dit.qwen(3)
    tensors = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
    path = tiny_dit.save_gguf(tmp_path / "t.gguf", tiny_dit.llama_cpp(name, weights), Kind.Q8_0)
    packed, plain = load(recipe, read_gguf(path)), load(recipe, tensors)
    assert packed_bytes(packed) > 0
    ids = torch.tensor([[5, 70, 900, 12, 1]])
    ours, theirs = packed(input_ids=ids)[0], plain(input_ids=ids)[0]
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.99


@pytest.mark.parametrize("name", RECIPES)
def test_scaled_fp8_stays_in_8_bits_and_is_scaled(name: str) -> None:
    """A scale for each matrix; where several are one in the file, each of them gets it."""
    weights = tiny_dit.TRANSFORMERS[name]()
    module = load(RECIPES[name], tiny_dit.scaled_fp8(weights))
    layers = [layer for layer in module.modules() if isinstance(layer, PackedLinear)]
    assert layers
    assert all(layer.kind == FP8 and layer.packed.dtype == torch.float8_e4m3fn for layer in layers)
    answer, exact = say(name, module), say(name, load(RECIPES[name], weights))
    assert torch.nn.functional.cosine_similarity(answer.flatten(), exact.flatten(), dim=0) > 0.98


def test_t5_in_scaled_fp8_computes_in_the_type_of_its_other_layers() -> None:
    """T5 looks at the type of a weight before it calls the layer: 8 bits there would cost it everything."""
    recipe, weights = flux.FLUX.parts["text_encoder_2"], tiny_dit.t5()
    scaled = tiny_dit.scaled_fp8(weights)
    ids = torch.tensor([[5, 70, 900, 12, 1]])
    exact = load(recipe, weights)(input_ids=ids)[0]
    found = load(recipe, scaled)(input_ids=ids)[0]
    assert torch.nn.functional.cosine_similarity(found, exact, dim=-1).min() > 0.98
    half = load(recipe, {key: t.bfloat16() if t.dtype == torch.float32 and t.ndim else t for key, t in scaled.items()})
    compute_in(half, torch.bfloat16)
    assert half(input_ids=ids)[0].dtype == torch.bfloat16


def test_the_other_spelling_and_scales_of_rows() -> None:
    weight = torch.randn(4, 8)
    scale = weight.abs().amax(1) / 448
    packed = (weight / scale[:, None]).to(torch.float8_e4m3fn)
    found = normalised(
        {"a.weight": packed, "a.weight_scale": scale, "a.input_scale": torch.ones(1), "a.comfy_quant": scale}
    )
    assert found.keys() == {"a.weight", "a.scale"}
    assert torch.allclose(dequantise(packed, torch.float32, FP8, found["a.scale"]), weight, rtol=0.07, atol=1e-2)


def test_blocks_of_4_bit_floats_are_refused() -> None:
    with pytest.raises(BadModel, match="Take fp8 or GGUF"):
        normalised(
            {"a.weight": torch.zeros(2, 2, dtype=torch.uint8), "a.weight_scale": torch.zeros(2, dtype=torch.uint8)}
        )


def test_plain_tensors_pass_through() -> None:
    weight = torch.randn(3, 4)
    assert dequantise(weight, torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(dequantise(weight, torch.float32), weight)


def test_damaged_gguf_files_say_so(tmp_path: Path) -> None:
    whole = tiny_dit.save_gguf(tmp_path / "tiny.gguf", tiny_dit.flux(), Kind.Q8_0)
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:-5000])
    (tmp_path / "none.gguf").write_bytes(b"GGUF" + bytes(3))
    for name in ("cut.gguf", "none.gguf"):
        with pytest.raises(BadModel, match=f"{name} cannot be read"):
            read_gguf(tmp_path / name)


def test_a_layer_that_cannot_be_packed_is_named() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(BadModel, match="'0' are packed as Q8_0"):
        install(module, {"0": "Q8_0"}, {"0": {"packed": (3, 3)}})
    with pytest.raises(BadModel, match="'7', which this kind"):
        install(module, {"7": "Q8_0"}, {"7": {"packed": (3, 3)}})


def test_a_shape_that_gguf_could_not_hold_is_given_back(tmp_path: Path) -> None:
    """Writers reshape a convolution's weights to blocks and note the true shape beside."""
    weight = torch.randn(4, 2, 2, 16)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "test")
    writer.add_array("comfy.gguf.orig_shape.c.weight", [4, 2, 2, 16])
    packed = gguf.quants.quantize(weight.reshape(-1, 32).numpy(), Kind.Q8_0)
    writer.add_tensor("c.weight", packed, raw_dtype=Kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "t.gguf")["c.weight"]
    assert found.shape == weight.shape
    assert torch.allclose(found.float(), weight, atol=0.05)


class TestNf4:
    """What bitsandbytes packs, we unpack without it."""

    def test_round_trip(self) -> None:
        from bitsandbytes import functional

        weight = torch.randn(8, 128)
        packed, absmax = pack_nf4(weight)
        assert packed.nbytes == weight.numel() // 2
        found = dequantise(packed, torch.float32, NF4, absmax)
        their_packed, state = functional.quantize_4bit(weight, blocksize=NF4_BLOCK, quant_type="nf4")
        theirs = functional.dequantize_4bit(their_packed, state)
        assert torch.allclose(found, theirs, atol=1e-3)

    @pytest.mark.parametrize("nested", [False, True])
    def test_files_that_were_packed_before(self, nested: bool) -> None:
        """A fused matrix of queries, keys and values is packed as one and cut into three, still packed."""
        from bitsandbytes import functional

        weights = tiny_dit.flux()
        tensors, plain = dict(weights), dict(weights)
        for name in [name for name in weights if name.endswith(("qkv.weight", "linear1.weight"))]:
            packed, state = functional.quantize_4bit(
                weights[name], blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=nested
            )
            plain[name] = functional.dequantize_4bit(packed, state)
            tensors[name] = packed
            for key, value in state.as_dict(packed=True).items():
                tensors[f"{name}.{key}"] = value
        module = load(RECIPES["flux"], tensors)
        kinds = {layer.kind for layer in module.modules() if isinstance(layer, Packed)}
        assert kinds == {NF4}
        assert torch.allclose(say("flux", module), say("flux", load(RECIPES["flux"], plain)), atol=2e-2)

    def test_other_4_bit_packings_are_refused(self) -> None:
        with pytest.raises(BadModel, match="packed as fp4"):
            normalised({"a.weight": torch.zeros(4, 1), "a.weight.quant_state.bitsandbytes__fp4": torch.zeros(3)})

    def test_other_block_sizes_are_refused(self) -> None:
        state = torch.tensor(list(json.dumps({"shape": [2, 128], "blocksize": 128}).encode()), dtype=torch.uint8)
        tensors = {"a.weight": torch.zeros(128, 1), "a.weight.quant_state.bitsandbytes__nf4": state}
        with pytest.raises(BadModel, match="only 64 is known"):
            normalised({**tensors, "a.weight.absmax": torch.zeros(2)})

    def test_rows_that_are_no_whole_blocks_are_refused(self) -> None:
        with pytest.raises(BadModel, match="no whole number"):
            pack_nf4(torch.zeros(2, 100))
