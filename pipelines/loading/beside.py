"""Networks that work beside a checkpoint's: ControlNets, adapters, encoders of pictures.

They are kept in memory under a budget of bytes, and lie on the device while a pass needs them: whole, or layer by layer
where the checkpoint's own network has to pass through it like that.
"""

from collections import OrderedDict
from collections.abc import Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines import processors
from pipelines.attention import Choice
from pipelines.library.network_folder import STEMS, VARIANTS, read_json
from pipelines.loading.checkpoint import Source, below, draft, emptied, fill
from pipelines.loading.manager import default_budget
from pipelines.loading.parts import Config, Part, Recipe
from pipelines.loading.weights import Pages, open_weights, stamp
from pipelines.memory.placement import Residency, apply
from pipelines.memory.planner import Level, Plan

SHARE = 4
"""They get a quarter of what checkpoints may take."""


@dataclass
class Held:
    part: Part
    users: int = 0
    residency: Residency | None = None


class Networks:
    """Of one device. Not for several threads."""

    def __init__(self, device: torch.device, budget_bytes: int | None = None, attention: Choice | None = None) -> None:
        self._device, self._attention = device, attention
        self._budget_bytes = default_budget() // SHARE if budget_bytes is None else budget_bytes
        self._held: OrderedDict[Hashable, Held] = OrderedDict()  # the last used last

    @contextmanager
    def use(self, name: str, recipe: Recipe, path: Path, dtype: torch.dtype, plan: Plan) -> Generator[Part, None, None]:
        """The network, ready to be called until the end of the `with`. `name`: what kind it is, one of
        `checkpoint.WORDS`; `plan`: of the checkpoint that it works beside. Raises BadModel and ModelNotFound."""
        held = self._get((name, stamp(path), dtype), name, recipe, path, dtype)
        held.users += 1
        try:
            if held.residency is None:
                held.residency = apply({name: held.part}, beside(plan, name), self._device)
            yield held.part
        finally:
            held.users -= 1
            if plan.level != Level.FULL or plan.host:
                self._leave(held)

    def leave(self) -> None:
        """Off the device, with all that nobody uses now."""
        for held in self._held.values():
            self._leave(held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes_on_device(self) -> int:
        return sum(held.residency.resident_bytes for held in self._held.values() if held.residency is not None)

    def _leave(self, held: Held) -> None:
        if held.residency is not None and not held.users:
            held.residency.undo()
            held.residency = None

    def _get(self, key: Hashable, name: str, recipe: Recipe, path: Path, dtype: torch.dtype) -> Held:
        if key not in self._held:
            found = draft(recipe, opened(name, recipe, path), dtype, self._device.type != "cpu")
            self._make_room(found.size_bytes)
            part = fill(found, None, found.key(str(key)), Pages([path]), lambda size: None)
            if self._attention is not None:
                processors.apply(part.module, self._attention)
            self._held[key] = Held(part)
        self._held.move_to_end(key)
        return self._held[key]

    def _make_room(self, needed: int) -> None:
        for key in [key for key, held in self._held.items() if not held.users]:
            if sum(held.part.size_bytes for held in self._held.values()) + needed <= self._budget_bytes:
                return
            gone = self._held.pop(key)
            self._leave(gone)
            emptied(gone.part)


def beside(plan: Plan, name: str) -> Plan:
    """How such a network lies where the checkpoint does as planned."""
    if plan.host:
        return Plan(host=True)
    return Plan(level=Level.STREAM, streamed=(name,)) if plan.level == Level.STREAM else Plan()


def opened(name: str, recipe: Recipe, path: Path) -> Source:
    """Of a file, or a folder with the files of one network."""
    tensors = open_weights(path)
    return Source(name, path, stamp(path), below(tensors, recipe.prefixes, alone=True), _settings(recipe, path))


def _settings(recipe: Recipe, path: Path) -> Config | None:
    """A config.json is of the file beside it if that has the name that diffusers gives it."""
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.stem in {stem + variant for stem in STEMS for variant in VARIANTS}
    if recipe.settings is None or not named or not (folder / "config.json").is_file():
        return None
    return read_json(folder / "config.json")
