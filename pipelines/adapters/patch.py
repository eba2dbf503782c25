"""Puts terms on one layer by hooks, and takes them off: its weight is neither read nor written.

Nothing is brought to the device before the layer is first called: where it computes, and in which type, is seen there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

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
)
from pipelines.loading.quantised import Packed


@dataclass
class Ready:
    """The terms of a layer where it computes."""

    where: tuple[torch.device, torch.dtype]
    low: tuple[Tensor, Tensor] | None
    """All low-rank terms as one: [ranks, in, *kernel] and [ranks, out]."""
    inward: list[Gain | Inward]
    turning: list[Gain | Turn]
    adding: list[Term]

    @property
    def size_bytes(self) -> int:
        tensors = [*(self.low or ())]
        for term in (*self.inward, *self.turning, *self.adding):
            tensors += term.tensors.values()
        return sum(tensor.nbytes for tensor in tensors)


@dataclass
class Patch:
    """What lies on one layer."""

    part: str
    layer: str
    terms: list[Term] = field(default_factory=list)
    ready: Ready | None = None
    _asked: Tensor | None = field(default=None, init=False)
    """What the layer was called with, where its inputs are changed: hooks after it see the changed ones."""

    def put_on(self, module: nn.Module) -> list[RemovableHandle]:
        before = any(isinstance(term, Inward | Decomposed) or _is_inward(term) for term in self.terms)
        handles = [module.register_forward_pre_hook(self._before)] if before else []
        # first of all hooks: the layer still has the weights that it was called with
        return [*handles, module.register_forward_hook(self._after, prepend=True)]

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        ready = self._at(module, args[0])
        if not ready.inward:
            return None
        x = self._asked = args[0]
        given = x + sum(_inward(term, module, x) for term in ready.inward)
        return (given, *args[1:])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = args[0] if self._asked is None else self._asked
        self._asked = None
        ready = self._at(module, x)
        turned = [_turned(term, module, output) for term in ready.turning]
        if ready.low is not None:
            output = _low(module, x, output, ready.low)
        for more in (*(_added(term, module, x) for term in ready.adding), *turned):
            output = output + more
        return output

    def prepare(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> Ready:
        """For calls of this layer with inputs like that."""
        if self.ready is None or self.ready.where != (device, dtype):
            self.ready = made_ready(self.terms, module, (device, dtype))
        return self.ready

    def _at(self, module: nn.Module, x: Tensor) -> Ready:
        return self.prepare(module, x.device, x.dtype)


def made_ready(terms: Iterable[Term], module: Any, where: tuple[torch.device, torch.dtype]) -> Ready:
    """`module`: as it is called, with its weight."""
    resolved: list[Term] = []
    for term in terms:
        if isinstance(term, Decomposed):
            weight = module.unpacked(torch.float32) if isinstance(module, Packed) else module.weight
            resolved += term.resolved(weight)
        else:
            resolved.append(term)
    lows = [term for term in resolved if isinstance(term, LowRank)]
    low = None
    if lows:
        down = torch.cat([term.down.to(*where) for term in lows])
        up = torch.cat([term.up.to(where[0], torch.float32).t() * term.factor for term in lows])
        low = (down, up.to(where[1]))
    others = [term.to(*where) for term in resolved if not isinstance(term, LowRank)]
    return Ready(
        where,
        low,
        [term for term in others if isinstance(term, Inward) or (isinstance(term, Gain) and term.inward)],
        [term for term in others if isinstance(term, Turn) or (isinstance(term, Gain) and not term.inward)],
        [term for term in others if isinstance(term, Added | Kron | Shift | NormShift)],
    )


def _is_inward(term: Term) -> bool:
    return isinstance(term, Gain) and term.inward


def _low(module: nn.Module, x: Tensor, output: Tensor, low: tuple[Tensor, Tensor]) -> Tensor:
    """In place: the output is the layer's own, and nobody else has seen it yet."""
    down, up = low
    hidden = _through(module, x, down)
    if isinstance(module, nn.Conv2d):
        return output.add_(functional.conv2d(hidden, up.t()[..., None, None]))
    if not output.is_contiguous():
        return output + hidden @ up
    output.view(-1, output.shape[-1]).addmm_(hidden.reshape(-1, len(down)), up)
    return output


def _through(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    """As the layer does it, with another weight: the same stride, padding and tiling."""
    found: Tensor = (
        module._conv_forward(x, weight, None) if isinstance(module, nn.Conv2d) else functional.linear(x, weight)
    )
    return found


def _added(term: Term, module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(term, Added):
        return _through(module, x, term.weight) * term.factor
    if isinstance(term, Kron):
        return _kron(term, module, x) * term.factor
    if isinstance(term, NormShift):
        return term.of(module, x)
    assert isinstance(term, Shift)
    return _channels(term.bias * term.factor, module)


def _kron(term: Kron, module: nn.Module, x: Tensor) -> Tensor:
    """(left (x) right) x: right on each part of the inputs, left on what comes out."""
    parts = term.left.shape[1]
    if isinstance(module, nn.Conv2d):
        rows, _, *sides = x.shape
        hidden = _through(module, x.reshape(rows * parts, -1, *sides), term.right)
        hidden = hidden.reshape(rows, parts, *hidden.shape[1:])
        return torch.einsum("ab,nbchw->nachw", term.left, hidden).flatten(1, 2)
    hidden = functional.linear(x.reshape(*x.shape[:-1], parts, -1), term.right)
    return torch.einsum("ab,...bc->...ac", term.left, hidden).flatten(-2)


def _turned(term: Gain | Turn, module: Any, output: Tensor) -> Tensor:
    bias = getattr(module, "bias", None)
    bare = output if bias is None else output - _channels(bias.to(output.dtype), module)
    if isinstance(term, Gain):
        return bare * _channels(term.vector * term.factor, module)
    if isinstance(module, nn.Conv2d):
        return term.turned(bare.movedim(1, -1)).movedim(-1, 1)
    return term.turned(bare)


def _inward(term: Gain | Inward, module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(term, Gain):
        return x * _channels(term.vector * term.factor, module)
    return functional.linear(functional.linear(x, term.down), term.up) * term.factor


def _channels(vector: Tensor, module: nn.Module) -> Tensor:
    return vector[:, None, None] if isinstance(module, nn.Conv2d) else vector
