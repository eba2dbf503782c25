"""What a LoRA or one of its relatives does to a layer, as something that is added while it computes: no weight is read.

    W' x = W x + up (down x)          low rank: LoRA, LoCon, LoHa of small rank
         = W x + (left (x) right) x   LoKr, never multiplied out
         = W x + D x                  full difference
         = W x + P (W x)              what turns or stretches the outputs: OFT, BOFT, (IA)3, DoRA
         = W (x + Q x)                what does that to the inputs: (IA)3, GLoRA, DoRA

Terms of several files add up, whatever their order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.loading.quantised import PackedLinear


@dataclass(frozen=True)
class Layer:
    """What must be known of a layer to put something on it. Its weight may be packed, or elsewhere."""

    out: int
    inside: int
    kernel: tuple[int, ...] = ()
    """Of a convolution."""
    norm: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.out, self.inside, *self.kernel)


def layer_of(module: nn.Module) -> Layer | None:
    """None: nothing can be put on such a module."""
    if isinstance(module, nn.Linear | PackedLinear):
        return Layer(module.out_features, module.in_features)
    if isinstance(module, nn.Conv2d):
        return Layer(module.out_channels, module.in_channels, module.kernel_size) if module.groups == 1 else None
    weight = module._parameters.get("weight")
    if "Norm" in type(module).__name__ and weight is not None and weight.ndim == 1:
        return Layer(len(weight), len(weight), norm=True)
    return None


class Unfit(Exception):
    """The tensors of a file do not fit the layer of their name."""


@dataclass(frozen=True)
class Term:
    """Something that is added. `factor`: alpha by rank, and the weight in the prompt."""

    factor: float

    def times(self, factor: float) -> Self:
        return replace(self, factor=self.factor * factor)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, *where: Any) -> Self:
        """Its tensors on a device, or of a type."""
        moved: dict[str, Any] = {name: tensor.to(*where) for name, tensor in self.tensors.items()}
        return replace(self, **moved)

    def rows(self, of: Callable[[Tensor], Tensor]) -> "Term":
        """For the outputs that `of` takes. Raises Unfit where they cannot be told apart."""
        raise Unfit

    def fits(self, layer: Layer) -> bool:
        raise NotImplementedError


@dataclass(frozen=True)
class LowRank(Term):
    down: Tensor
    """[rank, in, *kernel]"""
    up: Tensor
    """[out, rank]"""

    def rows(self, of: Callable[[Tensor], Tensor]) -> "LowRank":
        return replace(self, up=of(self.up))

    def fits(self, layer: Layer) -> bool:
        return (self.up.shape[0], *self.down.shape[1:]) == layer.shape and len(self.down) == self.up.shape[1]

    def dense(self) -> Tensor:
        product = self.up.float() @ self.down.float().flatten(1)
        return product.reshape(len(self.up), *self.down.shape[1:]) * self.factor


@dataclass(frozen=True)
class Inward(Term):
    """On the inputs, before the layer: from them by way of a few numbers to them."""

    down: Tensor
    """[rank, in]"""
    up: Tensor
    """[in, rank]"""

    def rows(self, of: Callable[[Tensor], Tensor]) -> "Inward":
        return self

    def fits(self, layer: Layer) -> bool:
        return not layer.kernel and len(self.up) == self.down.shape[1] == layer.inside


@dataclass(frozen=True)
class Added(Term):
    weight: Tensor
    """As the layer's own."""

    def rows(self, of: Callable[[Tensor], Tensor]) -> "Added":
        return replace(self, weight=of(self.weight))

    def fits(self, layer: Layer) -> bool:
        return tuple(self.weight.shape) == layer.shape and not layer.norm

    def dense(self) -> Tensor:
        return self.weight.float() * self.factor


@dataclass(frozen=True)
class Kron(Term):
    """The Kronecker product of two matrices."""

    left: Tensor
    """[a, b]"""
    right: Tensor
    """[c, d, *kernel]; the layer's weight is [a * c, b * d, *kernel]."""

    def rows(self, of: Callable[[Tensor], Tensor]) -> Added:
        return Added(1.0, of(self.dense()))

    def fits(self, layer: Layer) -> bool:
        rows, columns = self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]
        return (rows, columns, *self.right.shape[2:]) == layer.shape

    def dense(self) -> Tensor:
        left = self.left.float().reshape(*self.left.shape, *[1] * (self.right.ndim - 2))
        return torch.kron(left, self.right.float()) * self.factor


@dataclass(frozen=True)
class Shift(Term):
    """On the bias."""

    bias: Tensor
    """[out]"""

    def rows(self, of: Callable[[Tensor], Tensor]) -> "Shift":
        return replace(self, bias=of(self.bias))

    def fits(self, layer: Layer) -> bool:
        return tuple(self.bias.shape) == (layer.out,)


@dataclass(frozen=True)
class Gain(Term):
    """A factor for each output or input, beside 1."""

    vector: Tensor
    inward: bool = False

    def rows(self, of: Callable[[Tensor], Tensor]) -> "Gain":
        return self if self.inward else replace(self, vector=of(self.vector))

    def fits(self, layer: Layer) -> bool:
        return tuple(self.vector.shape) == (layer.inside if self.inward else layer.out,) and not layer.norm


@dataclass(frozen=True)
class Turn(Term):
    """The outputs are turned, in blocks; in a butterfly of several stages, each block is from far apart."""

    stages: Tensor
    """[stages, blocks, size, size]: y_i = sum_j block[i, j] x_j"""
    butterfly: bool = False
    stretch: Tensor | None = None
    """[out]: and then stretched."""

    def fits(self, layer: Layer) -> bool:
        return self.stages.shape[1] * self.stages.shape[2] == layer.out and not layer.norm

    def turned(self, x: Tensor) -> Tensor:
        """[..., out] -> what is to be added to it."""
        _, blocks, size, _ = self.stages.shape
        found = x
        for index, stage in enumerate(self.stages.to(x)):
            apart = 2**index * (size // 2)  # Liu et al. 2024, 'BOFT', section 4: stage i mixes what lies so far apart
            order = torch.arange(x.shape[-1], device=x.device)
            if self.butterfly:
                order = order.reshape(-1, 2, apart).transpose(1, 2).flatten()
            grouped = found[..., order].reshape(*x.shape[:-1], blocks, size)
            mixed = torch.einsum("kij,...kj->...ki", stage, grouped).flatten(-2)
            found = torch.empty_like(mixed).index_copy_(-1, order, mixed)
        if self.stretch is not None:
            found = found * self.stretch.to(x)
        return (found - x) * self.factor


@dataclass(frozen=True)
class NormShift(Term):
    """On the weight and bias of a norm."""

    weight: Tensor | None
    bias: Tensor | None

    def fits(self, layer: Layer) -> bool:
        given = (self.weight, self.bias)
        return layer.norm and all(tensor is None or tuple(tensor.shape) == (layer.out,) for tensor in given)

    def of(self, module: Any, x: Tensor) -> Tensor:
        weight = torch.zeros_like(self.bias) if self.weight is None and self.bias is not None else self.weight
        given = [None if tensor is None else (tensor * self.factor).to(x) for tensor in (weight, self.bias)]
        if isinstance(module, nn.GroupNorm):
            return functional.group_norm(x, module.num_groups, given[0], given[1], module.eps)
        if isinstance(module, nn.LayerNorm):
            return functional.layer_norm(x, module.normalized_shape, given[0], given[1], module.eps)
        eps = next((getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)), None)
        normed = functional.rms_norm(x, (x.shape[-1],), given[0], eps)
        return normed if given[1] is None else normed + given[1]


@dataclass(frozen=True)
class Decomposed(Term):
    """DoRA (Liu et al. 2024): the changed weight, brought to a length of its own, row by row or column by column.

    W' = m (W + D) / |W + D|. What that is beside W needs W once: `resolved`.
    """

    inner: tuple[LowRank | Added | Kron, ...]
    """D, at weight 1."""
    magnitude: Tensor
    """m: [out], or [in] where columns have a length of their own."""
    inward: bool

    def rows(self, of: Callable[[Tensor], Tensor]) -> "Decomposed":
        if self.inward:
            raise Unfit
        return replace(self, inner=tuple(term.rows(of) for term in self.inner), magnitude=of(self.magnitude))

    def fits(self, layer: Layer) -> bool:
        size = layer.inside if self.inward else layer.out
        return tuple(self.magnitude.shape) == (size,) and all(term.fits(layer) for term in self.inner)

    def resolved(self, weight: Tensor) -> list[Term]:
        weight = weight.float()
        moved = [term.to(weight.device) for term in self.inner]
        changed = weight + sum(term.dense() for term in moved)
        sides = changed.transpose(0, 1) if self.inward else changed
        gain = self.magnitude.to(weight) / sides.flatten(1).norm(dim=1).clamp(min=1e-12)
        scaled = [self._scaled(term, gain).times(self.factor) for term in moved]
        return [Gain(self.factor, gain - 1, self.inward), *scaled]

    def _scaled(self, term: LowRank | Added | Kron, gain: Tensor) -> Term:
        at = 1 if self.inward else 0
        if isinstance(term, LowRank):
            if self.inward:
                return replace(term, down=term.down.float() * _along(gain, term.down, 1))
            return replace(term, up=term.up.float() * gain[:, None])
        dense = term.dense()
        return Added(1.0, dense * _along(gain, dense, at))


def _along(vector: Tensor, tensor: Tensor, dim: int) -> Tensor:
    return vector.reshape([-1 if index == dim else 1 for index in range(tensor.ndim)])
