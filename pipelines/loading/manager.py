"""The loaded models: as many as fit a budget of memory, with the networks that they have in common held once.

A model that is in use stays as it is; of the others, the one used longest ago makes room first, and its memory is
filled with the next one's weights where the sizes match.
"""

import gc
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from pipelines.device import device_name
from pipelines.engine import OnStatus
from pipelines.errors import BadModel, ModelNotFound
from pipelines.families import FAMILIES, VARIANTS, Row
from pipelines.families.base import LoadedModel
from pipelines.loading.checkpoint import Draft, Opened, content, drafts, emptied, fill, stamps
from pipelines.loading.homes import Home, Homes
from pipelines.loading.parts import Dtypes, Family, Part
from pipelines.loading.weights import Stamp
from pipelines.types import Interrupt, ModelInfo, WorkerState, WorkerStatus

Wish = Callable[[], Interrupt | None]
Key = tuple[str, ...]

SHARE = 0.5
"""Of the memory that is free at the start, for models that nobody has asked for now but may ask for next."""
REPORT_SECONDS = 0.1
WAIT_SECONDS = 0.05


class LoadStopped(Exception):
    """The user's wish, seen between two weights. What was being loaded is gone, everything else is as it was."""

    def __init__(self, how: Interrupt) -> None:
        self.how = how


class OneDtype(NamedTuple):
    text_encoder: torch.dtype
    unet: torch.dtype
    vae: torch.dtype


@dataclass
class Loaded:
    info: ModelInfo
    model: LoadedModel
    parts: Mapping[str, Part]
    users: int = 0


def default_budget() -> int:
    return int(psutil.virtual_memory().available * SHARE)


def usual_dtypes(device: torch.device) -> Dtypes:
    """Where nobody has measured: half precision on cards, full on the CPU."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    return OneDtype(dtype, dtype, dtype)


class ModelManager:
    def __init__(
        self,
        device: torch.device,
        dtypes: Dtypes | None = None,
        budget_bytes: int | None = None,
        families: Mapping[str, Row] = FAMILIES,
        release: Callable[[Part], None] = lambda part: None,
        homes: Homes | None = None,
    ) -> None:
        """`budget_bytes`: of all models together; one that is asked for is loaded even if it needs more. `release`
        is called with each part that is about to lose its weights. `homes`: where they lie."""
        self.device = device
        self.families = families
        self.dtypes: Dtypes = dtypes or usual_dtypes(device)
        self.budget_bytes = default_budget() if budget_bytes is None else budget_bytes
        self._release = release
        self._homes = homes or Homes()
        self._loaded: OrderedDict[Key, Loaded] = OrderedDict()  # the last used last
        self._contents: dict[tuple[str, Stamp], str] = {}
        self._lock = threading.Lock()  # of the two tables; never held for long
        self._loading = threading.Lock()  # one load at a time
        self._wanted = 0

    def get(self, info: ModelInfo, report: OnStatus, wish: Wish = lambda: None) -> LoadedModel:
        """The model, loaded if need be. Nobody keeps it from being replaced by the next one that is asked for."""
        found = self._taken(info, report, wish)
        with self._lock:
            found.users -= 1
        return found.model

    @contextmanager
    def use(self, info: ModelInfo, report: OnStatus, wish: Wish = lambda: None) -> Generator[LoadedModel, None, None]:
        """The model, loaded if need be, which stays as it is until the end of the `with`, whatever others load.

        `report` hears of a load before, during and after it. Raises PipelineError, and LoadStopped by `wish`.
        """
        with self._lock:
            self._wanted += 1
        try:
            found = self._taken(info, report, wish)
        finally:
            with self._lock:
                self._wanted -= 1
        try:
            yield found.model
        finally:
            with self._lock:
                found.users -= 1

    @property
    def wanted(self) -> bool:
        """A job waits for a model: what is loaded ahead may wait."""
        return self._wanted > 0

    def loaded(self) -> tuple[str, ...]:
        """Names of the models in memory, the last used first."""
        with self._lock:
            return tuple(dict.fromkeys(each.info.name for each in reversed(self._loaded.values())))

    def room_for(self, info: ModelInfo) -> bool:
        """Whether the model could be loaded beside all that are there; from the sizes that its listing says."""
        wide = self.dtypes.unet.itemsize / 2 if self.device.type == "cpu" and info.dtype in ("F16", "BF16") else 1
        inside = sum(info.parts.values()) or info.size_bytes
        expected = int((inside + sum(each.size_bytes for each in info.companions.values())) * wide)
        with self._lock:
            held = any(each.info == info for each in self._loaded.values())
            return held or self._held_bytes() + expected <= self.budget_bytes

    def free(self) -> None:
        """Give memory that nothing uses any more back to the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _taken(self, info: ModelInfo, report: OnStatus, wish: Wish) -> Loaded:
        key = _key(info)
        if found := self._held(key):
            return found
        while not self._loading.acquire(timeout=WAIT_SECONDS):
            _obey(wish)
        try:
            return self._held(key) or self._load(info, key, report, wish)
        finally:
            self._loading.release()

    def _held(self, key: Key) -> Loaded | None:
        with self._lock:
            if found := self._loaded.get(key):
                self._loaded.move_to_end(key)
                found.users += 1
            return found

    def _load(self, info: ModelInfo, key: Key, report: OnStatus, wish: Wish) -> Loaded:
        family = self._family(info)
        progress = Progress(info.name, report, wish)
        try:
            opened = Opened(info)
            parts = self._parts(drafts(family.parts_of(info), opened, self.device, self.dtypes), info, opened, progress)
            found = Loaded(info, family.model(parts, info, self.device), parts, users=1)
            with self._lock:
                self._loaded[key] = found
            return found
        finally:
            ready = WorkerStatus(state=WorkerState.READY, detail=device_name(self.device), loaded=self.loaded())
            report(ready)

    def _family(self, info: ModelInfo) -> Family:
        if info.family not in self.families:
            known = ", ".join(self.families)
            raise BadModel(f"{info.name} is a model of the family {info.family}. These can be run so far: {known}.")
        return VARIANTS.get((info.family, info.variant), self.families[info.family])()

    def _parts(self, found: list[Draft], info: ModelInfo, opened: Opened, progress: "Progress") -> dict[str, Part]:
        """By name: those that are there already, and the others loaded. From `_make_room` on old models are gone."""
        keys = {part.source.part: part.key(self._content(part, progress.tick)) for part in found}
        with self._lock:
            parts = {part.key: part for each in self._loaded.values() for part in each.parts.values()}
            shared = {name: parts[key] for name, key in keys.items() if key in parts}
            new = [part for part in found if part.source.part not in shared]
            homes = self._make_room(info, new, [*shared.values()])
        progress.total = sum(part.file_bytes for part in new)
        pages = opened.pages()
        loaded = {name: fill(*home, keys[name], pages, progress.tick) for name, home in homes.items()}
        return {part.source.part: (shared | loaded)[part.source.part] for part in found}

    def _content(self, part: Draft, tick: Callable[[int], None]) -> str:
        """Remembered, since it takes reading all of a part."""
        place = (part.source.part, part.source.stamp)
        if place not in self._contents:
            self._contents[place] = content(part, tick)
        return self._contents[place]

    def _make_room(self, info: ModelInfo, new: list[Draft], shared: list[Part]) -> dict[str, Home]:
        """Let go of models until the new parts fit, and say where these shall lie, by name of the part."""
        needed = sum(part.size_bytes for part in new)
        idle = [key for key, each in self._loaded.items() if not each.users]
        outdated = [key for key in idle if self._loaded[key].info.path == info.path and self._is_outdated(key)]
        pieces: list[Tensor] = []
        for key in [*outdated, *(key for key in idle if key not in outdated)]:
            if key in outdated or self._held_bytes() + needed > self.budget_bytes:
                pieces += self._let_go(key, shared)
        return self._homes.choose(new, pieces, within_budget=self._held_bytes() + needed <= self.budget_bytes)

    def _is_outdated(self, key: Key) -> bool:
        """Its file has been replaced: nobody can ask for it any more."""
        try:
            return key != _key(self._loaded[key].info)
        except ModelNotFound:
            return True

    def _let_go(self, key: Key, shared: Iterable[Part]) -> list[Tensor]:
        gone = self._loaded.pop(key)
        kept = {id(part) for each in self._loaded.values() for part in each.parts.values()} | {id(p) for p in shared}
        pieces = []
        for part in gone.parts.values():
            if id(part) not in kept:
                self._release(part)
                pieces.append(emptied(part))
        return [piece for piece in pieces if piece is not None]

    def _held_bytes(self) -> int:
        parts = {id(part): part.size_bytes for each in self._loaded.values() for part in each.parts.values()}
        return sum(parts.values())


class Progress:
    """Of one load: tells the share that is done, now and then, and listens."""

    def __init__(self, name: str, report: OnStatus, wish: Wish) -> None:
        self.total = 0
        self._name, self._report, self._wish = name, report, wish
        self._done = 0
        self._next = time.monotonic() + REPORT_SECONDS
        self._say(0.0)

    def tick(self, size_bytes: int) -> None:
        """Raises LoadStopped."""
        _obey(self._wish)
        self._done += size_bytes
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_SECONDS
            self._say(min(1.0, self._done / self.total) if self.total else 0.0)

    def _say(self, fraction: float) -> None:
        self._report(WorkerStatus(state=WorkerState.LOADING, detail=self._name, fraction=fraction))


def _obey(wish: Wish) -> None:
    how = wish()
    if how is not None:
        raise LoadStopped(how)


def _key(info: ModelInfo) -> Key:
    """The same as long as the files are: a file that was replaced is another model. Raises ModelNotFound."""
    companions = [f"{part}={companion.path}" for part, companion in info.companions.items()]
    return (info.family, info.variant, info.prediction, *companions, *map(str, stamps(info)))
