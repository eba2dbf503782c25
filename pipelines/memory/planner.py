"""Decides how a job fits into a device's memory, before anything is moved. Pure: numbers in, a Plan out. No torch.

A job has three phases, and only what a phase needs must be there: encode (text encoders), denoise, decode (VAE).
Levels, the fastest first; `placement.py` carries them out:

    FULL     all weights on the device
    OFFLOAD  one network at a time; the others wait in RAM
    STREAM   of the denoiser a share stays, and the rest passes through two buffers, layer by layer, in every step

A slower level is chosen only if no faster one fits. More memory therefore never gives a slower level.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Literal

from pydantic import Field

from pipelines.frozen import Frozen
from pipelines.memory.activations import LEAVES, TEXT_BYTES, TILES, denoiser_bytes, vae_bytes

MIB, GIB = 2**20, 2**30
DENOISERS = ("unet", "transformer", "prior")
RESERVE_BYTES = 192 * MIB
"""cuBLAS and cuDNN workspaces, and holes between allocations."""
WEIGHTS_MARGIN = 1.02
BIG_BYTES = 6 * GIB
"""A denoiser above this is kept in fp8 rather than streamed in 16 bits: each step would move gigabytes."""
STEP_BYTES = 64 * MIB
"""The resident share is a multiple of this, so that two jobs in a row get the same plan."""

Storage = Literal["", "fp8", "nf4"]


class Level(IntEnum):
    """Higher is faster."""

    STREAM = 0
    OFFLOAD = 1
    FULL = 2


class PartSize(Frozen):
    """The weights of one network, in bytes, in the format that it computes in."""

    size_bytes: int
    leaf_bytes: int = Field(description="Of its largest layer: what must be there at once when it is streamed")
    fp8_bytes: int = Field(description="With the weights of its blocks in 8 bits")
    nf4_bytes: int = Field(description="With the weights of its blocks in 4 bits")
    number_bytes: int = Field(default=2, description="Of one number that it computes with: 2 or 4")

    def stored(self, storage: Storage) -> int:
        return {"": self.size_bytes, "fp8": self.fp8_bytes, "nf4": self.nf4_bytes}[storage]


class Load(Frozen):
    """What is to be done."""

    family: str
    parts: dict[str, PartSize]
    width: int
    height: int
    batch: int = Field(default=1, description="Images at once")
    guided: bool = Field(default=True, description="Each step asks the denoiser twice: with the prompt and without")
    prompts: int = Field(default=1, description="Several if AND joins them, or if perturbed attention asks once more")
    beside: tuple[int, ...] = Field(default=(), description="Bytes of networks that work beside it: ControlNets, ...")

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def rows(self) -> int:
        """Latents that the denoiser is shown in a step."""
        return self.batch * (self.prompts + self.guided)

    @property
    def denoiser(self) -> str:
        return next((name for name in DENOISERS if name in self.parts), "")


class Room(Frozen):
    """Where it is to be done."""

    free_bytes: int
    host: bool = Field(default=False, description="The device computes in the memory in which the weights are at home")


class Wish(Frozen):
    """What the user asked for in the settings."""

    placement: Literal["auto", "full", "offload", "stream"] = "auto"
    storage: Literal["auto", "full", "fp8", "nf4"] = "auto"


class Plan(Frozen):
    level: Level = Level.FULL
    storage: Storage = Field(default="", description="Format of the denoiser's weights while they wait")
    tile: int = Field(default=0, description="Side of the VAE's tiles, in latents; 0: the picture as a whole")
    split_cfg: bool = Field(default=False, description="Prompt and negative prompt one after another")
    rows: int = Field(default=0, description="Latents that the denoiser is shown at once then; 0: half of them")
    streamed: tuple[str, ...] = Field(default=(), description="Networks that pass through the device layer by layer")
    on_cpu: tuple[str, ...] = Field(default=(), description="Text encoders that compute on the CPU")
    resident_bytes: int = Field(default=0, description="How much of the denoiser lies on the device while it computes")
    need_bytes: int = Field(default=0, description="The highest use that is expected")
    fits: bool = True
    reason: str = Field(default="", description="Where it does not fit: what to do")
    host: bool = False
    in_file: bool = Field(default=False, description="RAM is short: the denoiser's weights are cast as they are needed")

    @property
    def tiled_vae(self) -> bool:
        return self.tile > 0

    def __str__(self) -> str:
        """For the log, and for the note that says how a picture was made."""
        words = [self.level.name if not self.host else "CPU"]
        words += [f"{self.storage} weights"] if self.storage else []
        words += ["weights from the file"] if self.in_file else []
        words += [f"VAE in tiles of {self.tile * 8} pixels"] if self.tile else []
        words += ["a pass for each prompt"] if self.split_cfg else []
        words += ["text encoder on the CPU"] if self.on_cpu else []
        return ", ".join(words)


def plan(load: Load, room: Room, wish: Wish | None = None) -> Plan:
    """The fastest way that fits. If none does: the smallest one, with `fits` False and a sentence on what to do."""
    wish = wish or Wish()
    best: Plan | None = None
    for candidate in _candidates(load, room, wish):
        if candidate.need_bytes <= room.free_bytes:
            return candidate
        if best is None or candidate.need_bytes < best.need_bytes:
            best = candidate
    assert best is not None  # there is always a candidate
    return best.model_copy(update={"fits": False, "reason": _advice(best, load, room, wish)})


def plan_ahead(load: Load, room: Room, wish: Wish | None = None) -> Plan:
    """As `plan`, before the weights are in memory: a device that computes in RAM needs room there for them, too. Short
    of it, those that are to be cast to 32 bits stay in their file (`loading/homes.py`), the denoiser's above all."""
    if not room.host:
        return plan(load, room, wish)
    denoiser = load.parts.get(load.denoiser)
    held = sum(size.size_bytes for size in load.parts.values())
    whole = _beside(held, load, room, wish)
    if whole.fits or denoiser is None or denoiser.number_bytes < 4:
        return whole
    lean = _beside(held - denoiser.size_bytes + denoiser.leaf_bytes, load, room, wish)
    return lean.model_copy(update={"in_file": True}) if lean.fits else whole


def _beside(held: int, load: Load, room: Room, wish: Wish | None) -> Plan:
    """With so many bytes of weights in the same memory."""
    found = plan(load, room.model_copy(update={"free_bytes": room.free_bytes - held}), wish)
    whole = found.model_copy(update={"need_bytes": found.need_bytes + held})
    return whole if found.fits else whole.model_copy(update={"reason": _advice(whole, load, room, wish or Wish())})


def degrade(plan: Plan) -> Plan | None:
    """One level lower, for the second try after memory ran out. None: there is nothing left to give up."""
    lower: dict[str, object]
    if not plan.tile or (plan.host and not plan.split_cfg):
        lower = {"tile": TILES[0], "split_cfg": plan.split_cfg or plan.host}
    elif plan.host:
        lower = {"tile": TILES[-1]}
    else:
        lower = {"split_cfg": plan.split_cfg or plan.level < Level.FULL, "tile": TILES[-1]}
    if not plan.host:
        lower["level"] = Level(max(plan.level - 1, Level.STREAM))
        if plan.level < Level.FULL:
            lower["resident_bytes"] = _rounded(plan.resident_bytes // 2)
    worse = plan.model_copy(update={**lower, "need_bytes": 0})
    return None if worse == plan.model_copy(update={"need_bytes": 0}) else worse


def at_most(plan: Plan, limit: Plan) -> Plan:
    """The plan with nothing in it that is more than in `limit`, with which a job like it once got through."""
    if plan.host != limit.host:
        return plan
    return plan.model_copy(
        update={
            "level": min(plan.level, limit.level),
            "tile": min(filter(None, (plan.tile, limit.tile)), default=0),
            "split_cfg": plan.split_cfg or limit.split_cfg,
            "streamed": tuple(dict.fromkeys((*plan.streamed, *limit.streamed))),
            "resident_bytes": limit.resident_bytes
            if plan.level > Level.STREAM
            else min(plan.resident_bytes, limit.resident_bytes),
        }
    )


def _candidates(load: Load, room: Room, wish: Wish) -> Iterator[Plan]:
    """From the fastest to the one that takes least."""
    splits = (False, True) if load.rows > load.batch else (False,)
    if room.host:  # weights are in RAM already, and are used from there: only pictures cost
        for split in splits:
            yield _priced(Plan(host=True, split_cfg=split), load, room)
        return
    levels = (Level.FULL, Level.OFFLOAD, Level.STREAM)
    for level in levels if wish.placement == "auto" else (Level[wish.placement.upper()],):
        for storage in _storages(load, level, wish):
            for split in splits if level != Level.FULL or wish.placement != "auto" else (False,):
                yield _priced(Plan(level=level, storage=storage, split_cfg=split), load, room)


def _storages(load: Load, level: Level, wish: Wish) -> tuple[Storage, ...]:
    if wish.storage == "full":
        return ("",)
    if wish.storage != "auto":
        return (wish.storage,)
    size = load.parts.get(load.denoiser)
    if size is None or size.size_bytes <= BIG_BYTES or size.fp8_bytes > 0.9 * size.size_bytes:
        return ("",)
    table: dict[Level, tuple[Storage, ...]] = {Level.OFFLOAD: ("", "fp8"), Level.STREAM: ("fp8",)}
    return table.get(level, ("",))


def _priced(plan: Plan, load: Load, room: Room) -> Plan:
    """The candidate with everything in it that follows from the room: tiles, streamed text encoders, the need."""
    free = room.free_bytes
    held = _weights(load, plan) if plan.level == Level.FULL and not room.host else 0
    phases: list[int] = []
    streamed: list[str] = []
    on_cpu: list[str] = []
    for name, size in load.parts.items():
        if name == load.denoiser or name.startswith("vae"):
            continue
        own = 0 if held or room.host else round(size.size_bytes * WEIGHTS_MARGIN)
        acts = TEXT_BYTES.get(load.family, max(TEXT_BYTES.values()))
        need = own + acts
        if own and held + need + RESERVE_BYTES > free:
            need = 3 * size.leaf_bytes + acts
            (streamed if need + RESERVE_BYTES <= free else on_cpu).append(name)
            need = need if name in streamed else 0
        phases.append(need)
    need, tile = _decode_need(load, room, held)
    phases.append(need)
    need, resident = _denoise_need(plan, load, room, held)
    phases.append(need)
    if plan.level == Level.STREAM and load.denoiser:
        streamed.insert(0, load.denoiser)
    need = held + max(phases) + RESERVE_BYTES
    update = {"tile": tile, "resident_bytes": resident, "on_cpu": tuple(on_cpu), "streamed": tuple(streamed)}
    return plan.model_copy(update={**update, "rows": load.batch, "need_bytes": need})


def _weights(load: Load, plan: Plan) -> int:
    sizes = (
        size.stored(plan.storage) if name == load.denoiser else size.size_bytes for name, size in load.parts.items()
    )
    return round((sum(sizes) + sum(load.beside)) * WEIGHTS_MARGIN)


def _decode_need(load: Load, room: Room, held: int) -> tuple[int, int]:
    """(bytes, side of a tile): as a whole if that fits, else in tiles."""
    size = load.parts.get("vae")
    if size is None:
        return 0, 0
    own = 0 if held or room.host else round(size.size_bytes * WEIGHTS_MARGIN)
    for tile in (0, *TILES):
        pixels = min(load.pixels, (tile * 8) ** 2) if tile else load.pixels
        need = own + vae_bytes(load.family, size.size_bytes, size.number_bytes, pixels)
        if held + need + RESERVE_BYTES <= room.free_bytes:
            break
    return need, tile if tile and load.pixels > (tile * 8) ** 2 else 0


def _denoise_need(plan: Plan, load: Load, room: Room, held: int) -> tuple[int, int]:
    """(bytes, resident share of the weights)."""
    size = load.parts.get(load.denoiser)
    if size is None:
        return 0, 0
    rows = load.batch if plan.split_cfg else load.rows
    acts = denoiser_bytes(load.family, size.size_bytes, size.number_bytes, load.pixels) * rows
    whole = size.stored(plan.storage)
    unpacked = size.leaf_bytes if plan.storage else 0
    if held or room.host:
        return acts + unpacked, whole
    if plan.level == Level.OFFLOAD:
        return round((whole + sum(load.beside)) * WEIGHTS_MARGIN) + acts + unpacked, whole
    passing = 3 * size.leaf_bytes + acts  # two buffers, and a third for a weight that a LoRA changes
    passing += sum(min(other, 2 * size.leaf_bytes) for other in load.beside)
    spare = int((room.free_bytes - RESERVE_BYTES - passing) / WEIGHTS_MARGIN)
    resident = max(0, min(_rounded(spare), whole))
    return passing + round(resident * WEIGHTS_MARGIN), resident


def _rounded(size: int) -> int:
    return size // STEP_BYTES * STEP_BYTES


def _advice(plan: Plan, load: Load, room: Room, wish: Wish) -> str:
    need, free = f"{plan.need_bytes / GIB:.1f} GB", f"{max(room.free_bytes, 0) / GIB:.1f} GB"
    cures = ["make the picture smaller", *(["make fewer at once (batch size)"] if load.batch > 1 else [])]
    cures += [f"set placement to auto (it is {wish.placement})"] if wish.placement not in ("auto", "stream") else []
    cures.append(f"close other programs that use {'memory' if room.host else 'the graphics card'}")
    return f"About {need} are needed and {free} are free: {', or '.join(cures)}."


def nominal(name: str, size_bytes: int, number_bytes: int = 2, packed: bool = False) -> PartSize:
    """What is known of a network before it is loaded: its bytes, from the header of its file."""
    leaf = next((size for kind, size in LEAVES.items() if name.startswith(kind)), 64 * MIB)
    if name == "text_encoder":  # of Qwen, the words are a tenth
        leaf = max(leaf, size_bytes // 10)
    low, nf4 = (size_bytes if packed else round(size_bytes * bits / number_bytes) for bits in (1.04, 0.6))
    leaf = min(size_bytes, leaf)
    return PartSize(size_bytes=size_bytes, leaf_bytes=leaf, fp8_bytes=low, nf4_bytes=nf4, number_bytes=number_bytes)
