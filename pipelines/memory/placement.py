"""Where weights lie while a job runs: carries a Plan out, network by network, and undoes it to the last pointer.

One network at a time sits on the device, or all of them, or a share of one; see `memory.py`. diffusers' own hooks can
neither be undone nor keep a share of a network, and U-Nets they know only as a whole.
"""

from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from pipelines.loading.parts import Part
from pipelines.loading.quantised import Packed
from pipelines.memory.leaves import Delta, Leaf, choose_resident, leaves_of
from pipelines.memory.planner import DENOISERS, Level, Plan, Storage
from pipelines.memory.storage import Form, pack, packable
from pipelines.memory.streaming import PinnedPages, Ring, room_for

CPU = torch.device("cpu")

Copies = dict[Hashable, Tensor]
"""Of one network, while it comes in."""


class Seat:
    """One network's place on the device: taken on its first call, left when another one needs the room."""

    def __init__(self, owner: "Residency", part: Part, deltas: Mapping[str, Delta], device: torch.device) -> None:
        plan = owner.plan
        self._owner, self._device, self.part = owner, device, part
        self.present = False
        self._ring: Ring | None = None
        self._hooks: list[RemovableHandle] = []
        self._storage: Storage = plan.storage if part.name in DENOISERS else ""
        self._here = plan.host or device != owner.device
        """It computes where it is at home: only what changes a weight is to be done."""
        self._leaves = {leaf.name: leaf for leaf in leaves_of(part, deltas)}
        self._streams: set[str] = set()
        if part.name in plan.streamed or (plan.level == Level.STREAM and part.name in DENOISERS):
            self._choose_streamed(plan.resident_bytes if part.name in DENOISERS else 0)
        self._unpacks = {name for name, leaf in self._leaves.items() if self._must_unpack(leaf)} - self._streams
        for name in (*self._streams, *self._unpacks):
            leaf = self._leaves[name]
            self._hooks.append(leaf.module.register_forward_pre_hook(partial(self._before, leaf)))
            self._hooks.append(leaf.module.register_forward_hook(partial(self._after, leaf), always_call=True))

    @property
    def idle(self) -> bool:
        """Nothing is to be done for this part: no copy, no hook."""
        changed = any(leaf.delta is not None for leaf in self._leaves.values())
        return self._here and not changed and not self._streams and not self._unpacks

    @property
    def resident_bytes(self) -> int:
        """On the device now, the buffers for streaming among it."""
        if not self.present or self.idle:
            return 0
        known: dict[int, int] = {}
        home = {tensor.data_ptr() for leaf in self._leaves.values() for tensor in leaf.at_home()}
        for leaf in self._leaves.values():
            tensors = [tensor for held in tuple(leaf.held.values()) for tensor in held]
            if leaf.name not in self._streams and not leaf.held:
                tensors += [value for value in leaf.module._parameters.values() if value is not None]
            tensors += [value for value in leaf.module._buffers.values() if value is not None]
            known.update({tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor.data_ptr() not in home})
        return sum(known.values()) + (self._ring.size_bytes if self._ring else 0)

    def watch(self) -> None:
        """Come when called. Not only the root: a VAE's decode() goes to its parts directly."""
        doors = [self.part.module, *_callable_children(self.part.module)]
        self._hooks += [door.register_forward_pre_hook(self._enter) for door in doors]

    def enter(self) -> None:
        if self.present or self.idle:
            self.present = True
            return
        copies: Copies = {}
        if self._streams:
            size = max(room_for(self._leaves[name].tensors()) for name in self._streams)
            self._ring = Ring(self._device, size, lambda name: self._leaves[name].tensors(), self._owner.count)
        for name, leaf in self._leaves.items():
            leaf.move_buffers(partial(self._copied, copies))
            if name in self._streams:
                leaf.unbind()
            elif name in self._unpacks:
                leaf.hold(self._device, partial(self._copied, copies), self._storage)
                leaf.unbind()
            elif not self._here or leaf.delta is not None:
                leaf.bind({key: (self._placed(copies, leaf, key),) for key in leaf.forms})
        self.present = True

    def leave(self) -> None:
        if not self.present:
            return
        self.present, self._ring = False, None
        for name, leaf in self._leaves.items():
            leaf.go_home()
            if name in self._unpacks:
                leaf.let_go()

    def close(self) -> None:
        self.leave()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _choose_streamed(self, budget_bytes: int) -> None:
        """What streams in another format than it is at home in is packed now, once, and waits in RAM like that."""
        sizes = {name: leaf.waiting_bytes(self._storage) for name, leaf in self._leaves.items()}
        resident = choose_resident(sizes, budget_bytes)
        self._streams = {name for name, leaf in self._leaves.items() if leaf.streamable and name not in resident}
        pages = PinnedPages(self._device.type == "cuda")
        for name in self._streams:
            leaf = self._leaves[name]
            for key, form in leaf.forms.items():
                if self._storage and packable(name, leaf.module, form.tensors[0], self._storage):
                    form = pack(form.tensors[0].to(self._device, leaf.dtype), self._storage)
                tensors = tuple(pages.keep(tensor.to(CPU)) for tensor in form.tensors)
                leaf.forms[key] = Form(form.kind, form.shape, tensors, form.fixed)

    def _must_unpack(self, leaf: Leaf) -> bool:
        changed = isinstance(leaf.module, Packed) and leaf.delta is not None
        return bool(leaf.packs(self._storage)) or changed or (self._here and leaf.differs)

    def _copied(self, copies: Copies, tensor: Tensor) -> Tensor:
        """On the device; one copy for two names of the same tensor."""
        if self._here:
            return tensor
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        found = copies.get(key)
        if found is None:
            found = copies[key] = torch.empty_like(tensor, device=self._device).copy_(tensor, non_blocking=True)
            self._owner.count(tensor.nbytes)
        return found

    def _placed(self, copies: Copies, leaf: Leaf, key: str) -> Tensor:
        return leaf.forms[key].unpack((self._copied(copies, leaf.forms[key].tensors[0]),), leaf.dtype)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._owner.admit(self)

    def _before(self, leaf: Leaf, module: nn.Module, args: Any) -> None:
        if not self.present:
            self._owner.admit(self)
        if leaf.name not in self._streams:
            leaf.bind(leaf.held)
            return
        assert self._ring is not None  # made when the part came in
        flat = iter(self._ring.take(leaf.name))
        leaf.bind({key: tuple(next(flat) for _ in form.tensors) for key, form in leaf.forms.items()})

    def _after(self, leaf: Leaf, module: nn.Module, args: Any, output: Any) -> None:
        leaf.unbind()
        if self._ring is not None and leaf.name in self._streams:
            self._ring.give_back(leaf.name)


class Residency:
    """A plan that is in force, until `undo`."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.bytes_moved = 0
        """From RAM to the device, since `apply`."""
        self._seats: dict[str, Seat] = {}
        self._deltas: Mapping[str, Delta] = {}
        self._bridges: list[RemovableHandle] = []

    @property
    def resident_bytes(self) -> int:
        return sum(seat.resident_bytes for seat in self._seats.values())

    @property
    def present(self) -> tuple[str, ...]:
        """The networks that are on the device now."""
        return tuple(name for name, seat in self._seats.items() if seat.present)

    def count(self, size: int) -> None:
        self.bytes_moved += size

    def seat(self, parts: Mapping[str, Part], deltas: Mapping[str, Delta]) -> None:
        for name, part in parts.items():
            on_cpu = name in self.plan.on_cpu
            seat = self._seats[name] = Seat(self, part, deltas, CPU if on_cpu else self.device)
            if on_cpu and self.device != CPU:
                self._bridges += _bridge(part.module, self.device)
            if self._together or seat.idle:
                seat.enter()
            else:
                seat.watch()

    def admit(self, seat: Seat) -> None:
        """Make room for this part, and let it in."""
        if seat.present:
            return
        for other in self._seats.values() if not self._together and not seat.idle else ():
            if other is not seat:
                other.leave()
        seat.enter()

    def recast(self, part: Part) -> None:
        """The part shall compute in another format from now on, which it says itself."""
        self._seats[part.name].close()
        self.seat({part.name: part}, self._deltas)

    def clear(self) -> None:
        """Off the device with everything that can come again by itself."""
        if not self._together:
            for seat in self._seats.values():
                seat.leave()

    def undo(self) -> None:
        """As it was: every parameter the one at home, no hook left."""
        for seat in self._seats.values():
            seat.close()
        for handle in self._bridges:
            handle.remove()
        self._seats, self._bridges = {}, []

    @property
    def _together(self) -> bool:
        return self.plan.host or self.plan.level == Level.FULL


def apply(
    parts: Mapping[str, Part], plan: Plan, device: torch.device, deltas: Mapping[str, Delta] | None = None
) -> Residency:
    """Put the plan into force. If memory runs out on the way, nothing of it stays, and the error goes on."""
    residency = Residency(plan, device)
    residency._deltas = deltas or {}
    try:
        residency.seat(parts, residency._deltas)
    except (RuntimeError, MemoryError):
        residency.undo()
        raise
    return residency


def _callable_children(module: nn.Module) -> Iterator[nn.Module]:
    """Direct children; of lists, which are never called, their members."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from child.children()
        else:
            yield child


def _bridge(module: nn.Module, device: torch.device) -> list[RemovableHandle]:
    """A network on the CPU between others on the device: what goes in and what comes out changes places."""

    def to(place: torch.device, tree: Any) -> Any:
        return tree_map(lambda value: value.to(place) if isinstance(value, Tensor) else value, tree)

    def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return to(CPU, args), to(CPU, kwargs)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return to(device, output)

    return [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
