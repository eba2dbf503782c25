"""The layers of a network, one by one: what each weighs, and how it is given its weights and gets its own ones back.

Weights at home are never written: a layer that goes to the device gets a copy under its own name and, when it leaves,
its own parameter again. Storage formats, streaming and the changes that LoRAs make to weights all happen here.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from pipelines.loading.parts import Part
from pipelines.loading.quantised import Packed
from pipelines.memory.planner import PartSize, Storage
from pipelines.memory.storage import Form, pack, packable, packed_bytes, plain

Delta = Callable[[Tensor], Tensor]
"""A weight in the computing format, on the computing device -> the weight with a LoRA in it, a new tensor."""

SMALL_BYTES = 2**18
"""Layers up to this are never streamed: a copy takes longer to start than to run."""


class Leaf:
    """A module with weights of its own, and the three ways in which it gets them: placed, unpacked or streamed."""

    def __init__(self, name: str, module: nn.Module, dtype: torch.dtype, delta: Delta | None) -> None:
        self.name, self.module, self.dtype, self.delta = name, module, dtype, delta
        self.home = {key: value for key, value in module._parameters.items() if value is not None}
        self.buffers = {key: value for key, value in module._buffers.items() if value is not None}
        self.forms = {key: plain(value.detach(), isinstance(module, Packed)) for key, value in self.home.items()}
        self.held: dict[str, tuple[Tensor, ...]] = {}
        """Of a leaf that unpacks for each call: its packed tensors on the device."""

    @property
    def size_bytes(self) -> int:
        """In the format in which it waits, or will be in on the device."""
        return sum(self._placed_bytes(form) for form in self.forms.values())

    @property
    def differs(self) -> bool:
        """Whether a weight at home is in another format than the one it computes in."""
        return any(not form.fixed and form.tensors[0].dtype != self.dtype for form in self.forms.values())

    def packs(self, storage: Storage) -> list[Tensor]:
        """Its weights that can be kept in this format."""
        return [value for value in self.home.values() if storage and packable(self.name, self.module, value, storage)]

    def waiting_bytes(self, storage: Storage) -> int:
        """Of what is copied to the device when it is streamed in this format."""
        saved = (w.numel() * self.dtype.itemsize - packed_bytes(w, storage) for w in self.packs(storage))
        return self.size_bytes - sum(saved)

    @property
    def streamable(self) -> bool:
        """A layer that holds others would keep its buffer for as long as they run."""
        bare = next(self.module.children(), None) is None and type(self.module) is not nn.MultiheadAttention
        return bare and self.size_bytes > SMALL_BYTES and "NonDynamically" not in type(self.module).__name__

    def tensors(self) -> list[Tensor]:
        return [tensor for form in self.forms.values() for tensor in form.tensors]

    def at_home(self) -> list[Tensor]:
        return [*self.home.values(), *self.buffers.values()]

    def hold(self, device: torch.device, copied: Callable[[Tensor], Tensor], storage: Storage) -> None:
        """Keep what is needed for unpacking on the device."""
        for key, form in self.forms.items():
            if storage and packable(self.name, self.module, form.tensors[0], storage):
                form = self.forms[key] = pack(copied(form.tensors[0]).to(self.dtype), storage)
                self.held[key] = form.tensors
                self.forms[key] = Form(form.kind, form.shape, tuple(t.to("meta") for t in form.tensors))
            else:
                self.held[key] = tuple(copied(tensor) for tensor in form.tensors)

    def let_go(self) -> None:
        self.held = {}
        self.forms = {key: plain(value.detach(), isinstance(self.module, Packed)) for key, value in self.home.items()}

    def bind(self, tensors: Mapping[str, tuple[Tensor, ...]]) -> None:
        """Give the module weights to compute with."""
        for key, form in self.forms.items():
            weight = form.unpack(tensors[key], self.dtype)
            if key == "weight" and self.delta is not None:
                weight = self.delta(weight)
            self.module._parameters[key] = nn.Parameter(weight, requires_grad=False)
        if self.delta is not None and isinstance(self.module, Packed):
            layer, delta = self.module, self.delta
            layer.__dict__["unpacked"] = lambda dtype: delta(Packed.unpacked(layer, dtype))

    def unbind(self) -> None:
        """Between two calls. Some modules look at the type of a weight before they call its layer: it must be right."""
        for key, value in self.home.items():
            right = self.forms[key].fixed or value.dtype == self.dtype
            other = nn.Parameter(torch.empty_like(value, dtype=self.dtype, device="meta"), requires_grad=False)
            self.module._parameters[key] = value if right else other
        self.module.__dict__.pop("unpacked", None)

    def move_buffers(self, copied: Callable[[Tensor], Tensor]) -> None:
        """Tables of positions and the like keep their format: 32 bits there are on purpose."""
        for key, value in self.buffers.items():
            half = value.dtype in (torch.float16, torch.bfloat16) and not isinstance(self.module, Packed)
            self.module._buffers[key] = copied(value).to(self.dtype if half else value.dtype)

    def go_home(self) -> None:
        self.module._parameters.update(self.home)
        self.module._buffers.update(self.buffers)
        self.module.__dict__.pop("unpacked", None)

    def _placed_bytes(self, form: Form) -> int:
        if form.kind or form.fixed:
            return form.size_bytes
        return form.tensors[0].numel() * self.dtype.itemsize


def leaves_of(part: Part, deltas: Mapping[str, Delta] | None = None) -> Iterator[Leaf]:
    """Every module of the part that has weights or buffers of its own. Deltas are named unet.down_blocks.0..."""
    deltas = deltas or {}
    for name, module in part.module.named_modules():
        if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
            yield Leaf(name, module, part.dtype, deltas.get(f"{part.name}.{name}"))


def size_of(part: Part) -> PartSize:
    """For the planner."""
    leaves = list(leaves_of(part))
    return PartSize(
        size_bytes=sum(leaf.size_bytes for leaf in leaves),
        leaf_bytes=max((leaf.size_bytes for leaf in leaves), default=0),
        fp8_bytes=sum(leaf.waiting_bytes("fp8") for leaf in leaves),
        nf4_bytes=sum(leaf.waiting_bytes("nf4") for leaf in leaves),
        number_bytes=part.dtype.itemsize,
    )


def choose_resident(sizes: Mapping[str, int], budget_bytes: int) -> set[str]:
    """Which layers stay. The small ones first, since a copy has its price; then the largest that still fit.

    What streams moves once a step whatever its layer, so the fullest budget moves least; and the largest layer that
    streams decides on the size of the buffers.
    """
    chosen, left = set(), budget_bytes
    small = sorted((name for name in sizes if sizes[name] <= SMALL_BYTES), key=lambda name: sizes[name])
    large = sorted((name for name in sizes if sizes[name] > SMALL_BYTES), key=lambda name: -sizes[name])
    for name in (*small, *large):
        if sizes[name] <= left:
            chosen.add(name)
            left -= sizes[name]
    return chosen
