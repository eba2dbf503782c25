"""Each method against its formula, written out on whole weights; and weights by blocks."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.adapters.blocks import Blocks
from pipelines.adapters.methods import shaped, terms_of
from pipelines.adapters.patch import Patch
from pipelines.adapters.reading import Params
from pipelines.adapters.terms import Unfit, layer_of
from tests.loras import Draw

OUT, IN, RANK = 12, 8, 2
Changed = Callable[[Tensor, Params], Tensor]
"""(weight, tensors of the file) -> the weight with all of it."""


def r(*shape: int, seed: int = 0) -> Tensor:
    return Draw(seed + sum(shape))(*shape, spread=0.5)


def inner(delta: Tensor, weight: Tensor) -> Tensor:
    return delta.reshape(weight.shape)


def lora(weight: Tensor, p: Params) -> Tensor:
    scale = float(p["alpha"]) / len(p["down"]) if "alpha" in p else 1
    return weight + inner(p["up"].flatten(1) @ p["down"].flatten(1), weight) * scale


def locon(weight: Tensor, p: Params) -> Tensor:
    """Three convolutions, one after another."""
    impulse = torch.eye(IN)[:, :, None, None]
    hidden = functional.conv2d(impulse, p["down"])
    hidden = functional.conv2d(hidden, p["mid"], padding=2)  # of a single pixel, all places that see it
    return weight + functional.conv2d(hidden, p["up"]).flip(2, 3).transpose(0, 1) * (float(p["alpha"]) / RANK)


def loha(weight: Tensor, p: Params) -> Tensor:
    product = (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"])
    return weight + inner(product, weight) * (float(p["alpha"]) / len(p["hada_w1_b"]))


def loha_tucker(weight: Tensor, p: Params) -> Tensor:
    halves = []
    for i in (1, 2):
        core, a, b = p[f"hada_t{i}"], p[f"hada_w{i}_a"], p[f"hada_w{i}_b"]
        halves.append(torch.stack([(a.T @ core[:, :, k // 3, k % 3] @ b) for k in range(9)], -1))
    return weight + inner(halves[0] * halves[1], weight) * (float(p["alpha"]) / RANK)


def lokr(weight: Tensor, p: Params) -> Tensor:
    left = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    right = p["lokr_w2"] if "lokr_w2" in p else p["lokr_w2_a"] @ p["lokr_w2_b"]
    right = right.reshape(len(right), weight.shape[1] // left.shape[1], *weight.shape[2:])
    scale = float(p["alpha"]) / RANK if "lokr_w1_b" in p or "lokr_w2_b" in p else 1
    rows = [torch.cat([number * right for number in row], 1) for row in left]
    return weight + torch.cat(rows, 0) * scale


def dora(weight: Tensor, p: Params) -> Tensor:
    changed = lora(weight, p)
    length = changed.flatten(1).norm(dim=1)
    magnitude = (p["dora_scale"] if "dora_scale" in p else p["magnitude"]).flatten()
    found: Tensor = torch.einsum("o...,o->o...", changed, magnitude / length)
    return found


def dora_by_columns(weight: Tensor, p: Params) -> Tensor:
    changed = lora(weight, p)
    length = changed.transpose(0, 1).flatten(1).norm(dim=1)
    found: Tensor = torch.einsum("oi...,i->oi...", changed, p["dora_scale"].flatten() / length)
    return found


def dora_of_lokr(weight: Tensor, p: Params) -> Tensor:
    changed = lokr(weight, p)
    found: Tensor = changed * (p["dora_scale"] / changed.norm(dim=1, keepdim=True))
    return found


def ia3(weight: Tensor, p: Params) -> Tensor:
    along = (1, -1) if bool(p["on_input"]) else (-1, 1)
    return weight * (1 + p["weight"].reshape(*along, *[1] * (weight.ndim - 2)))


def cayley(skew: Tensor) -> Tensor:
    one = torch.eye(len(skew))
    turn: Tensor = (one + skew) @ torch.linalg.inv(one - skew)
    return turn


def oft(weight: Tensor, p: Params) -> Tensor:
    skew = p["oft_blocks"] - p["oft_blocks"].transpose(1, 2)
    bound = float(p["alpha"]) * OUT if "alpha" in p else 0
    if bound:
        skew = skew * min(1.0, bound / float(skew.norm()))
    rows = [cayley(block).T @ part for block, part in zip(skew, weight.flatten(1).chunk(len(skew)), strict=True)]
    return inner(torch.cat(rows), weight)


def boft(weight: Tensor, p: Params) -> Tensor:
    """Stage i turns, in blocks of 2, outputs that lie 2^i apart."""
    found = weight.flatten(1)
    for index, blocks in enumerate(p["oft_blocks"]):
        apart, turn = 2**index, torch.zeros(OUT, OUT)
        firsts = [k for k in range(OUT) if not k // apart % 2]
        for block, first in zip(blocks, firsts, strict=True):
            at = torch.tensor([first, first + apart])
            turn[at[:, None], at[None]] = cayley(block - block.T)
        found = turn @ found
    return inner(found * p["rescale"].flatten()[:, None], weight)


def glora(weight: Tensor, p: Params) -> Tensor:
    scale = float(p["alpha"]) / RANK
    return weight + (weight @ p["a2"] @ p["a1"] + p["b2"] @ p["b1"]) * scale


def full(weight: Tensor, p: Params) -> Tensor:
    return weight + p["diff"].reshape(weight.shape)


class Case(NamedTuple):
    layer: Callable[[], nn.Module]
    params: Params
    changed: Changed


def linear() -> nn.Module:
    return nn.Linear(IN, OUT)


def conv(kernel: int = 3) -> nn.Module:
    return nn.Conv2d(IN, OUT, kernel, stride=1, padding=kernel // 2)


def pair(*shape: int) -> dict[str, Tensor]:
    return {"down": r(RANK, *shape), "up": r(OUT, RANK, *[1] * (len(shape) - 1)), "alpha": torch.tensor(1.0)}


def hadamard(columns: int, rank: int = RANK) -> dict[str, Tensor]:
    sides = {f"hada_w{i}_{s}": r(*((OUT, rank) if s == "a" else (rank, columns)), seed=i) for i in (1, 2) for s in "ab"}
    return {**sides, "alpha": torch.tensor(1.0)}


ONE = torch.tensor(1.0)
CORES = {f"hada_t{i}": r(RANK, RANK, 3, 3, seed=i) for i in (1, 2)}
TUCKER = {f"hada_w{i}_{side}": r(RANK, OUT if side == "a" else IN, seed=i) for i in (1, 2) for side in "ab"}
CASES = {
    "LoRA": Case(linear, pair(IN), lora),
    "LoRA without alpha": Case(linear, {"down": r(RANK, IN), "up": r(OUT, RANK)}, lora),
    "LoRA on a convolution": Case(conv, pair(IN, 3, 3), lora),
    "LoRA on one of 1 x 1, as a matrix": Case(lambda: conv(1), pair(IN), lora),
    "LoRA on a matrix, as one of 1 x 1": Case(linear, pair(IN, 1, 1), lora),
    "LoCon": Case(conv, {**pair(IN, 1, 1), "mid": r(RANK, RANK, 3, 3)}, locon),
    "LoHa": Case(linear, hadamard(IN), loha),
    "LoHa of rank 1": Case(linear, hadamard(IN, 1), loha),
    "LoHa on a convolution": Case(conv, hadamard(IN * 9), loha),
    "LoHa with cores": Case(conv, {**CORES, **TUCKER, "alpha": ONE}, loha_tucker),
    "LoKr": Case(linear, {"lokr_w1": r(3, 2), "lokr_w2_a": r(4, RANK), "lokr_w2_b": r(RANK, 4), "alpha": ONE}, lokr),
    "LoKr of products": Case(
        linear,
        {
            **{"lokr_w1_a": r(3, RANK), "lokr_w1_b": r(RANK, 2), "alpha": ONE},
            **{"lokr_w2_a": r(4, RANK), "lokr_w2_b": r(RANK, 4)},
        },
        lokr,
    ),
    "LoKr of whole matrices": Case(linear, {"lokr_w1": r(2, 4), "lokr_w2": r(6, 2), "alpha": ONE}, lokr),
    "LoKr on a convolution": Case(
        conv, {"lokr_w1": r(3, 2), "lokr_w2_a": r(4, RANK), "lokr_w2_b": r(RANK, 36), "alpha": ONE}, lokr
    ),
    "DoRA": Case(linear, {**pair(IN), "dora_scale": r(OUT, 1)}, dora),
    "DoRA, peft's": Case(linear, {**pair(IN), "magnitude": r(OUT)}, dora),
    "DoRA on a convolution": Case(conv, {**pair(IN, 3, 3), "dora_scale": r(OUT, 1, 1, 1)}, dora),
    "DoRA by columns": Case(linear, {**pair(IN), "dora_scale": r(1, IN)}, dora_by_columns),
    "DoRA by columns on a convolution": Case(conv, {**pair(IN, 3, 3), "dora_scale": r(1, IN, 1, 1)}, dora_by_columns),
    "DoRA of LoKr": Case(linear, {"lokr_w1": r(2, 4), "lokr_w2": r(6, 2), "dora_scale": r(OUT, 1)}, dora_of_lokr),
    "(IA)3": Case(linear, {"weight": r(OUT, 1), "on_input": torch.tensor(False)}, ia3),
    "(IA)3 on inputs": Case(linear, {"weight": r(1, IN), "on_input": torch.tensor(True)}, ia3),
    "(IA)3 on a convolution's inputs": Case(conv, {"weight": r(IN), "on_input": torch.tensor(True)}, ia3),
    "OFT": Case(linear, {"oft_blocks": r(3, 4, 4)}, oft),
    "OFT, bound": Case(linear, {"oft_blocks": r(3, 4, 4), "alpha": torch.tensor(0.05)}, oft),
    "OFT on a convolution": Case(conv, {"oft_blocks": r(3, 4, 4)}, oft),
    "BOFT": Case(linear, {"oft_blocks": r(2, 6, 2, 2), "rescale": 1 + r(OUT, 1)}, boft),
    "GLoRA": Case(
        linear,
        {"a1": r(RANK, IN), "a2": r(IN, RANK), "b1": r(RANK, IN), "b2": r(OUT, RANK), "alpha": ONE},
        glora,
    ),
    "difference": Case(linear, {"diff": r(OUT, IN)}, full),
    "difference of a convolution": Case(conv, {"diff": r(OUT, IN, 3, 3)}, full),
}


def patched(layer: nn.Module, params: Params, weight: float = 1.0) -> Patch:
    facts = layer_of(layer)
    assert facts is not None
    terms = [shaped(term, facts.shape) for term in terms_of(params, facts.out)]
    assert all(term.fits(facts) for term in terms)
    return Patch("unet", "layer", [term.times(weight) for term in terms])


@torch.inference_mode()
def with_it(layer: nn.Module, x: Tensor, *patches: Patch) -> Tensor:
    joined = Patch("unet", "layer", [term for patch in patches for term in patch.terms])
    handles = joined.put_on(layer)
    try:
        out: Tensor = layer(x)
    finally:
        for handle in handles:
            handle.remove()
    return out


def an_input(layer: nn.Module) -> Tensor:
    return r(2, IN, 5, 6) if isinstance(layer, nn.Conv2d) else r(2, 3, IN)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("weight", [1.0, -0.6])
@torch.inference_mode()
def test_method(name: str, weight: float) -> None:
    """W + weight (W' - W), whatever the way in which it is computed."""
    torch.manual_seed(0)
    layer = CASES[name].layer()
    x, own = an_input(layer), layer.get_parameter("weight").clone()
    out = with_it(layer, x, patched(layer, CASES[name].params, weight))
    assert torch.equal(layer.get_parameter("weight"), own)
    wholly = CASES[name].changed(own, CASES[name].params)
    layer.get_parameter("weight").copy_(own + weight * (wholly - own))
    assert torch.allclose(out, layer(x), atol=1e-5)
    assert not torch.allclose(wholly, own, atol=0.05)


@torch.inference_mode()
def test_several_on_a_layer_add_up() -> None:
    torch.manual_seed(0)
    layer = linear()
    own, x = layer.get_parameter("weight").clone(), an_input(layer)
    names = ("LoRA", "LoHa of rank 1", "LoKr", "DoRA", "(IA)3", "OFT", "difference")
    out = with_it(layer, x, *(patched(layer, CASES[name].params, 0.5) for name in names))
    changed = own + sum(0.5 * (CASES[name].changed(own, CASES[name].params) - own) for name in names)
    layer.get_parameter("weight").copy_(changed)
    assert torch.allclose(out, layer(x), atol=1e-5)


@torch.inference_mode()
def test_a_convolution_keeps_its_ways() -> None:
    """Stride, padding and tiling are those of the layer."""
    torch.manual_seed(0)
    layer = nn.Conv2d(IN, OUT, 3, stride=2, padding=1, padding_mode="circular")
    x, own = an_input(layer), layer.get_parameter("weight").clone()
    for name in ("LoRA on a convolution", "LoKr on a convolution", "DoRA on a convolution"):
        layer.get_parameter("weight").copy_(own)
        out = with_it(layer, x, patched(layer, CASES[name].params))
        layer.get_parameter("weight").copy_(CASES[name].changed(own, CASES[name].params))
        assert torch.allclose(out, layer(x), atol=1e-5)


@pytest.mark.parametrize("layer", [nn.LayerNorm(IN), nn.GroupNorm(2, IN), nn.RMSNorm(IN)])
@torch.inference_mode()
def test_norms_and_biases(layer: nn.Module) -> None:
    params = {"w_norm": r(IN), "b_norm": r(IN)} if not isinstance(layer, nn.RMSNorm) else {"w_norm": r(IN)}
    x = r(3, IN)
    out = with_it(layer, x, patched(layer, params, 0.5))
    layer.get_parameter("weight").add_(0.5 * params["w_norm"])
    if "b_norm" in params:
        layer.get_parameter("bias").add_(0.5 * params["b_norm"])
    assert torch.allclose(out, layer(x), atol=1e-6)
    plain = linear()
    expected = plain(x) + r(OUT) * 0.5
    assert torch.allclose(with_it(plain, x, patched(plain, {"diff_b": r(OUT)}, 0.5)), expected, atol=1e-6)


@torch.inference_mode()
def test_half_precision() -> None:
    layer = linear().to(torch.bfloat16)
    x = an_input(layer).to(torch.bfloat16)
    for case in CASES.values():
        if case.layer is linear:
            assert with_it(layer, x, patched(layer, case.params)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "params",
    [
        {"down": r(RANK, IN)},
        {"down": r(RANK, IN), "up": r(OUT, RANK + 1)},
        {"down": r(RANK, IN + 1), "up": r(OUT, RANK)},
        {"alpha": torch.tensor(1.0)},
        {"dora_scale": r(OUT, 1)},
        {"hada_w1_a": r(OUT, 2), "hada_w1_b": r(3, IN), "hada_w2_a": r(OUT, 2), "hada_w2_b": r(2, IN)},
        {"oft_blocks": r(2, 3, 3)},
        {"weight": r(3), "on_input": torch.tensor(False)},
    ],
)
def test_odd_tensors_do_not_fit(params: Params) -> None:
    facts = layer_of(linear())
    assert facts is not None
    try:
        terms = [shaped(term, facts.shape) for term in terms_of(params, OUT)]
    except (Unfit, RuntimeError):
        return
    assert not all(term.fits(facts) for term in terms)


# Blocks

SD1 = [f"input_blocks.{i}.0.conv" for i in range(12)] + ["middle_block.0.conv"]
SD1 += [f"output_blocks.{i}.0.conv" for i in range(12)]
SD1 += [f"input_blocks.{i}.1.transformer_blocks.0.attn1.to_q" for i in (1, 2, 4, 5, 7, 8)]
SD1 += ["middle_block.1.transformer_blocks.0.attn1.to_q"]
SD1 += [f"output_blocks.{i}.1.transformer_blocks.0.attn1.to_q" for i in range(3, 12)]


def test_lists_of_17_and_26() -> None:
    blocks = Blocks(SD1)
    assert (len(blocks.all), len(blocks.listening)) == (25, 16)
    long = blocks.weights(",".join(str(i) for i in range(26)))
    assert (long["BASE"], long["IN00"], long["IN11"], long["M00"], long["OUT11"]) == (0, 1, 12, 13, 25)
    short = blocks.weights(",".join(str(i) for i in range(17)))
    assert (short["BASE"], short["IN01"], short["M00"], short["OUT03"], short["OUT11"]) == (0, 1, 7, 8, 16)
    assert (short["IN00"], short["OUT02"]) == (0, 0)


def test_names_for_lists() -> None:
    blocks = Blocks(SD1)
    assert set(blocks.weights("ALL").values()) == {1}
    assert set(blocks.weights("none").values()) == {0}
    middle = blocks.weights("MIDD")
    assert (middle["BASE"], middle["M00"], middle["IN04"], middle["OUT06"], middle["OUT07"]) == (1, 1, 0, 1, 0)
    assert Blocks(["transformer_blocks.0.x", "single_transformer_blocks.0.x"]).weights("1,2,3") == {
        **{"BASE": 1, "D00": 2, "S00": 3}
    }


@pytest.mark.parametrize("text", ["", "1,2", "1,x", "MIDDLE", "nan," * 16 + "1", "," * 16])
def test_other_lists_are_an_error_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="17 or 26 numbers"):
        Blocks(SD1).weights(text)
