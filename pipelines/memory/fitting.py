"""Fits each job into memory: asks the planner, puts its plan into force, and learns when memory runs out after all."""

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from pydantic import ValidationError
from torch import Tensor

from pipelines import attention, processors
from pipelines.adapters.wardrobe import Wardrobe
from pipelines.decoding import OnTile, VAEWork
from pipelines.device import NAMES, device_name, free_bytes, read_facts, write_facts
from pipelines.families.base import PLAIN, Asides, Cond, LoadedModel, Reading
from pipelines.images.networks import PixelNetworks
from pipelines.loading.beside import Networks
from pipelines.loading.parts import Part
from pipelines.memory.leaves import size_of
from pipelines.memory.placement import Residency, apply
from pipelines.memory.planner import DENOISERS, Level, Load, PartSize, Plan, Room, Wish, at_most, degrade, plan
from pipelines.prompt import Reader, Span
from pipelines.request import GenerationRequest
from pipelines.samplers import NoiseLevels
from pipelines.stages import extent
from pipelines.types import ModelInfo

log = logging.getLogger(__name__)

LESSONS_FILE = "memory.json"
SAME_BYTES = 256 * 2**20
"""So much may a share of weights differ from the one that is in force without being worth a move."""

Note = Callable[[str], None]


@dataclass(frozen=True)
class Choices:
    """What the settings say about memory and attention."""

    wish: Wish = field(default_factory=Wish)
    vram_gb: float = 0
    attention: str = "auto"


class Fitter:
    """One device's memory. A plan stays in force until another one is needed: the next job finds its weights there."""

    def __init__(self, device: torch.device, choices: Choices | None = None, cache: Path | None = None) -> None:
        self.device, self.choices = device, choices or Choices()
        self.backend = attention.choose(self.choices.attention, device)
        self.wardrobe = Wardrobe()
        self.networks = Networks(device, attention=self.backend)
        self.pixels = PixelNetworks(device)
        self._cache = cache
        self._lessons = read_facts(cache, LESSONS_FILE)
        self._residency: Residency | None = None
        self._parts: dict[str, Part] = {}
        self._sizes: dict[str, PartSize] = {}
        self._lock = threading.RLock()  # a model may be loaded ahead in another thread

    def free_bytes(self) -> int:
        """For models and pictures: what holds this fitter's own weights now can be used again."""
        with self._lock:
            held = self._residency.resident_bytes if self._residency else 0
        return free_bytes(self.device, self.choices.vram_gb) + held

    def plan(
        self, model: LoadedModel, info: ModelInfo, task: GenerationRequest, beside: Iterable[ModelInfo] = ()
    ) -> Plan:
        """`beside`: files of further networks that work beside the model's."""
        for part in model.parts.values():
            self._remembered_dtype(part)
        load = Load(
            family=info.family,
            parts={name: self._size(part) for name, part in model.parts.items()},
            beside=tuple(needed_beside(file, model) for file in beside),
            **extent(task)._asdict(),
        )
        found = plan(load, Room(free_bytes=self.free_bytes(), host=self.device.type == "cpu"), self.choices.wish)
        lesson = self._lesson(info, task)
        return at_most(found, lesson) if lesson else found

    @contextmanager
    def fitted(self, model: LoadedModel, plan: Plan, note: Note) -> Generator["Fitted", None, None]:
        """The model with its weights where the plan says. They stay there afterwards, for the next job."""
        residency = self._in_force(model.parts, plan)
        for part in model.parts.values():
            processors.apply(part.module, self.backend)

        def recast(part: Part) -> None:
            residency.recast(part)
            self._remember(f"dtype {part.key}", str(part.dtype).removeprefix("torch."))

        work = VAEWork(model.parts["vae"], self.device, plan.tile, recast, note)
        with work.in_charge():
            yield Fitted(model, plan, work)

    def lower(self, used: Plan, info: ModelInfo, task: GenerationRequest) -> Plan | None:
        """Memory ran out with this plan: the next one to try, which is remembered for the model and the size."""
        self.clear()
        self.wardrobe.clear()
        self.pixels.clear()
        found = degrade(used)
        if found is not None:
            self._remember(self._lesson_name(info, task), found.model_dump(mode="json"))
        return found

    def clear(self) -> None:
        """Everything off the device, and no copy to it under way any more: the weights at home may be written over."""
        with self._lock:
            if self._residency is not None:
                self._residency.undo()
            self._residency, self._parts = None, {}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def release(self, part: Part) -> None:
        """This part is about to lose its weights."""
        with self._lock:
            self._sizes.pop(part.key, None)
            if any(held is part for held in self._parts.values()):
                self.clear()

    def _in_force(self, parts: Mapping[str, Part], plan: Plan) -> Residency:
        with self._lock:
            held = self._residency
            same = held is not None and self._parts == dict(parts) and _alike(held.plan, plan)
            if held is None or not same:
                self.clear()
                held = self._residency = apply(parts, plan, self.device)
                self._parts = dict(parts)
                log.info("Weights: %s (about %.1f GB at most)", plan, plan.need_bytes / 2**30)
            return held

    def _size(self, part: Part) -> PartSize:
        """Walking all layers takes milliseconds. The format may have changed since the last time."""
        known = self._sizes.get(part.key)
        if known is None or known.number_bytes != part.dtype.itemsize:
            known = self._sizes[part.key] = size_of(part)
        return known

    def _remembered_dtype(self, part: Part) -> None:
        wide = NAMES.get(str(self._lessons.get(f"dtype {part.key}")))
        if wide is not None and wide != part.dtype:
            self.release(part)
            part.dtype = wide

    def _lesson(self, info: ModelInfo, task: GenerationRequest) -> Plan | None:
        try:
            return Plan.model_validate(self._lessons[self._lesson_name(info, task)])
        except (KeyError, ValidationError):  # of an older version
            return None

    def _lesson_name(self, info: ModelInfo, task: GenerationRequest) -> str:
        where = f"{device_name(self.device)} {self.choices.vram_gb or 'all'} GB"
        width, height, batch, *_ = extent(task)
        return f"plan {where} {info.path} {width}x{height}x{batch}"

    def _remember(self, name: str, value: object) -> None:
        self._lessons[name] = value
        write_facts(self._cache, LESSONS_FILE, self._lessons)


class Fitted:
    """A model under a plan: the same to look at, with the two things that a plan changes on the way."""

    def __init__(self, model: LoadedModel, plan: Plan, work: VAEWork) -> None:
        self.inner, self.plan = model, plan
        self.device: torch.device = model.device
        self.levels: NoiseLevels = model.levels
        self.vae: torch.nn.Module = model.vae
        self.reader: Reader = model.reader
        self.parts: Mapping[str, Part] = model.parts
        self.asides: Asides = model.asides
        self._work = work

    def __getattr__(self, name: str) -> Any:
        """Families have more than the protocol says: extensions may know them."""
        return getattr(self.inner, name)

    @contextmanager
    def wrapping(self, axes: tuple[bool, bool]) -> Generator[None, None, None]:
        """The VAE is to know that pictures go on at their other side: along the width, along the height."""
        self._work.wrap = axes
        try:
            yield
        finally:
            self._work.wrap = (False, False)

    def watch_tiles(self, on_tile: OnTile) -> None:
        self._work.on_tile = on_tile

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        return self.inner.encode(prompts, reading)

    def chunks_of(self, spans: Sequence[Span], reading: Reading = PLAIN) -> int:
        return self.inner.chunks_of(spans, reading)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return self.inner.latent_shape(width, height)

    def predict(self, x: Tensor, sigma: float, cond: Cond) -> Tensor:
        """All rows at once, or in pieces where the plan says so."""
        size = self.plan.rows or -(-len(x) // 2)
        if not self.plan.split_cfg or len(x) <= size:
            return self.inner.predict(x, sigma, cond)
        pieces = [range(first, min(first + size, len(x))) for first in range(0, len(x), size)]
        return torch.cat([self.inner.predict(x[at.start : at.stop], sigma, cond.take(at)) for at in pieces])

    def to_latent(self, pixels: Tensor) -> Tensor:
        return self.inner.to_latent(pixels)

    def beside(self, picture: Tensor, mask: Tensor, hidden: float = 1.0) -> Tensor | None:
        return self.inner.beside(picture, mask, hidden)

    def decode(self, latent: Tensor) -> PIL.Image.Image:
        return self.inner.decode(latent)


def needed_beside(file: ModelInfo, model: LoadedModel) -> int:
    """Bytes of a network of another file in the format that the model computes in."""
    size = file.parts.get("controlnet", file.size_bytes)
    number = next((part.dtype.itemsize for name, part in model.parts.items() if name in DENOISERS), 2)
    return round(size * number / 4) if file.dtype == "F32" else size * number // 2


def _alike(held: Plan, wanted: Plan) -> bool:
    near = abs(held.resident_bytes - wanted.resident_bytes) <= SAME_BYTES or wanted.level > Level.STREAM
    keys = ("level", "storage", "streamed", "on_cpu", "host")
    return near and all(getattr(held, key) == getattr(wanted, key) for key in keys)
