"""The table of methods: from the tensors of one layer in a file to the terms that they mean.

LoRA (Hu et al. 2022), LoCon, LoHa (Hyeon-Woo et al. 2022), LoKr (Yeh et al. 2024, 'LyCORIS'), (IA)3 (Liu et al. 2022),
OFT (Qiu et al. 2023), BOFT (Liu et al. 2024), GLoRA (Chavan et al. 2023), DoRA (Liu et al. 2024), whole differences.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.adapters.reading import Params
from pipelines.adapters.terms import (
    Added,
    Decomposed,
    Gain,
    Inward,
    Kron,
    LowRank,
    NormShift,
    Shift,
    Term,
    Turn,
    Unfit,
)


def lora(params: Params, rows: int) -> list[Term]:
    """`mid`: LoCon's core between a `down` and an `up` of 1 x 1."""
    down, up = params["down"], params["up"]
    if "mid" in params:
        down = torch.einsum("rskl,si->rikl", params["mid"].float(), down.float().flatten(1))
    scale = _scale(params, len(down))
    found: list[Term] = [LowRank(scale, down, up.flatten(1))]
    return [*found, Shift(scale, params["up_bias"])] if "up_bias" in params else found


def loha(params: Params, rows: int) -> list[Term]:
    """(A1 B1) * (A2 B2), element by element: of rank r^2, which is less than the layer's as long as r is small."""
    scale = _scale(params, len(params["hada_w1_b"]))
    if "hada_t1" in params:
        halves = [_tucker(params[f"hada_t{i}"], params[f"hada_w{i}_a"], params[f"hada_w{i}_b"]) for i in (1, 2)]
        return [Added(scale, halves[0] * halves[1])]
    (one, down1), (two, down2) = ((params[f"hada_w{i}_a"].float(), params[f"hada_w{i}_b"].float()) for i in (1, 2))
    rank = one.shape[1] * two.shape[1]
    if 2 * rank > min(len(one), down1.shape[1]):
        return [Added(scale, (one @ down1) * (two @ down2))]
    up = (one[:, :, None] * two[:, None, :]).flatten(1)
    down = (down1[:, None] * down2[None]).flatten(0, 1)
    return [LowRank(scale, down, up)]


def lokr(params: Params, rows: int) -> list[Term]:
    """Each of the two matrices may be a product of small ones itself; only then alpha counts."""
    left = _factor(params, "lokr_w1")
    if "lokr_t2" in params:
        right = _tucker(params["lokr_t2"], params["lokr_w2_a"], params["lokr_w2_b"])
    else:
        right = _factor(params, "lokr_w2")
    ranks = [len(params[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in params]
    return [Kron(_scale(params, ranks[0]) if ranks else 1.0, left, right)]


def full(params: Params, rows: int) -> list[Term]:
    return [Added(1.0, params["diff"])]


def shift(params: Params, rows: int) -> list[Term]:
    return [Shift(1.0, params["diff_b"].flatten())]


def norm(params: Params, rows: int) -> list[Term]:
    return [NormShift(1.0, params.get("w_norm"), params.get("b_norm"))]


def ia3(params: Params, rows: int) -> list[Term]:
    return [Gain(1.0, params["weight"].flatten(), inward=bool(params["on_input"].item()))]


def glora(params: Params, rows: int) -> list[Term]:
    """W + W A + B, both of low rank."""
    scale = _scale(params, len(params["b1"]))
    return [LowRank(scale, params["b1"], params["b2"]), Inward(scale, params["a1"], params["a2"])]


def oft(params: Params, rows: int) -> list[Term]:
    """Cayley: a skew-symmetric Q gives the rotation (1 + Q) / (1 - Q). Its norm may be bound: COFT, Qiu et al. 2023.

    kohya's and LyCORIS' OFT multiply with it from the other side than BOFT does.
    """
    blocks = params["oft_blocks"].float()
    butterfly = blocks.ndim == 4
    skew = blocks - blocks.transpose(-1, -2)
    bound = float(params["alpha"]) if "alpha" in params else 0.0
    length = float(skew.norm()) + 1e-8
    if 0 < bound * rows < length:
        skew = skew * (bound * rows / length)
    one = torch.eye(blocks.shape[-1])
    turn = torch.linalg.solve(one - skew, one + skew)  # both are functions of Q: they commute
    stages = turn if butterfly else turn.transpose(-1, -2)[None]
    return [Turn(1.0, stages, butterfly, params["rescale"].float().flatten() if "rescale" in params else None)]


class Method(NamedTuple):
    needs: tuple[frozenset[str], ...]
    """Of the tensors there must be all of one of these sets."""
    terms: Callable[[Params, int], list[Term]]
    """Of the tensors, and the number of the layer's outputs. Raises RuntimeError and ValueError for odd shapes."""


def _needs(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(names.split()) for names in sets)


METHODS: dict[str, Method] = {
    "LoRA": Method(_needs("down up"), lora),
    "LoHa": Method(_needs("hada_w1_a hada_w1_b hada_w2_a hada_w2_b"), loha),
    "LoKr": Method(
        _needs(
            "lokr_w1 lokr_w2",
            "lokr_w1_a lokr_w1_b lokr_w2",
            "lokr_w1 lokr_w2_a lokr_w2_b",
            "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
        ),
        lokr,
    ),
    "(IA)3": Method(_needs("on_input weight"), ia3),
    "OFT": Method(_needs("oft_blocks"), oft),
    "GLoRA": Method(_needs("a1 a2 b1 b2"), glora),
    "difference": Method(_needs("diff"), full),
    "norm": Method(_needs("w_norm", "b_norm"), norm),
    "bias": Method(_needs("diff_b"), shift),
}
"""A layer may have terms of several rows, such as a LoRA and a difference of its bias."""


def terms_of(params: Params, rows: int) -> list[Term]:
    """Of one layer of a file with so many outputs, at weight 1. Raises Unfit: odd or unknown."""
    found: list[Term] = []
    try:
        for method in METHODS.values():
            if any(names <= params.keys() for names in method.needs):
                found += method.terms(params, rows)
        return _decomposed(params, found, rows)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Unfit(str(error)) from error


def _decomposed(params: Params, terms: list[Term], rows: int) -> list[Term]:
    if not terms:
        raise Unfit
    name = next((name for name in ("dora_scale", "magnitude") if name in params), "")
    if not name:
        return terms
    inner = tuple(term for term in terms if isinstance(term, LowRank | Added | Kron))
    others = [term for term in terms if not isinstance(term, LowRank | Added | Kron)]
    # a column [out, 1] has a length for each row; a row [1, in], as LyCORIS wrote it at first, one for each column
    inward = name == "dora_scale" and len(params[name]) != rows
    return [*others, Decomposed(1.0, inner, params[name].flatten(), inward)]


def shaped(term: Term, shape: tuple[int, ...]) -> Term:
    """With the kernel as the layer has it: files write a convolution of 1 x 1 as a matrix, and the other way round."""
    if isinstance(term, Decomposed):
        inner = [shaped(one, shape) for one in term.inner]
        return replace(term, inner=tuple(one for one in inner if isinstance(one, LowRank | Added | Kron)))
    names = {LowRank: "down", Added: "weight", Kron: "right"}
    name = names.get(type(term))
    if name is None:
        return term
    tensor = term.tensors[name]
    changed: dict[str, Any] = {name: tensor.reshape(len(tensor), -1, *shape[2:])}
    return replace(term, **changed)


def _scale(params: Params, rank: int) -> float:
    return float(params["alpha"]) / rank if "alpha" in params else 1.0


def _factor(params: Params, name: str) -> Tensor:
    if name in params:
        return params[name]
    return params[f"{name}_a"].float() @ params[f"{name}_b"].float()


def _tucker(core: Tensor, outside: Tensor, inside: Tensor) -> Tensor:
    """[r, s, *kernel], [r, out] and [s, in] -> [out, in, *kernel]."""
    return torch.einsum("rskl,ro,si->oikl", core.float(), outside.float(), inside.float())
