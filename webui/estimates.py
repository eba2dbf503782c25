"""Before Generate: does the picture fit into memory, and how long will it take by this machine's own history?"""

from statistics import median

from pydantic import ValidationError

from pipelines.frozen import Frozen
from pipelines.memory import planner as memory
from pipelines.memory.planner import Load, PartSize, Plan, Room, Wish
from pipelines.request import GenerationRequest
from pipelines.stages import extent
from pipelines.types import Capabilities, ModelInfo, Task, WorkerStatus
from webui.db import Database

LOOK_BACK = 20
"""So many ended jobs are looked at: what was long ago may have been another card or another driver."""


NUMBER_BYTES = {"float32": 4, "F32": 4, "F8_E4M3": 1, "F8_E5M2": 1}
"""Of one number, by torch's and by safetensors' names; all others take 2."""

PACKED = ("Q", "IQ", "TQ", "U8", "NF4")
"""What the names of formats begin with that are unpacked layer by layer, while they are used."""


class Estimate(Frozen):
    """What a picture would need, and about how long it would take."""

    plan: Plan | None = None
    """None until a worker has said what it computes on."""
    need_bytes: int | None = None
    free_bytes: int | None = None
    seconds: float | None = None
    trouble: str = ""
    """Why such a picture cannot be asked for at all."""


def estimate(
    db: Database,
    request: GenerationRequest,
    model: ModelInfo,
    capabilities: Capabilities | None,
    worker: WorkerStatus,
) -> Estimate:
    """`request` and `model` as they would be frozen in a job; free memory as the worker said last."""
    free_bytes = worker.free_bytes
    plan = None
    if capabilities is not None and free_bytes is not None:
        load = Load(
            family=model.family,
            parts=part_sizes(model, capabilities.dtypes),
            **extent(request)._asdict(),
        )
        wish = Wish(placement=capabilities.placement, storage=capabilities.storage)
        room = Room(free_bytes=free_bytes, host=capabilities.device == "cpu")
        look = memory.plan if model.name in worker.loaded else memory.plan_ahead
        plan = look(load, room, wish)
    return Estimate(
        plan=plan,
        need_bytes=plan.need_bytes if plan else None,
        free_bytes=free_bytes,
        seconds=seconds_for(db, request, model),
    )


def part_sizes(model: ModelInfo, dtypes: dict[str, str]) -> dict[str, PartSize]:
    """The networks of a model in the format that they compute in, from the headers of its files."""
    found = {}
    for source, parts in (
        (model, model.parts),
        *((info, {name: _bytes(info)}) for name, info in model.companions.items()),
    ):
        packed = source.dtype.startswith(PACKED)
        for name, size in parts.items():
            kind = "text_encoder" if name.startswith("text_encoder") else "vae" if name == "vae" else "unet"
            wide = NUMBER_BYTES.get(dtypes.get(kind, ""), 2)
            scale = 1.0 if packed else wide / NUMBER_BYTES.get(source.dtype, 2)
            found[name] = memory.nominal(name, round(size * scale), wide, packed)
    return found


def _bytes(companion: ModelInfo) -> int:
    return sum(companion.parts.values()) or companion.size_bytes


class Job(Frozen):
    """An ended job as far as time is concerned."""

    pixels: int
    steps: int
    images: int
    seconds: float

    def rate(self) -> float:
        """Seconds for a step over one pixel of one image."""
        return self.seconds / (self.steps * self.images * self.pixels)


def seconds_for(db: Database, request: GenerationRequest, model: ModelInfo) -> float | None:
    """The median pace of the last jobs of this checkpoint, else of its family; of the same size where there are any.

    None if there was no such job yet.
    """
    for where, value in (("checkpoint = ?", str(model.path)), ("json_extract(model, '$.family') = ?", model.family)):
        jobs = _history(db, where, value)
        same = [job for job in jobs if job.pixels == request.width * request.height] or jobs
        if same:
            pace = median(job.rate() for job in same)
            return pace * request.steps * request.units * request.width * request.height
    return None


def _history(db: Database, where: str, value: str) -> list[Job]:
    rows = db.execute(
        f"SELECT task, finished - started AS seconds,"
        f" (SELECT count(*) FROM units WHERE job = jobs.id AND units.state = 'done') AS images FROM jobs"
        f" WHERE state = 'done' AND attempts = 1 AND {where} ORDER BY id DESC LIMIT ?",
        value,
        LOOK_BACK,
    )
    found = []
    for row in rows:
        try:
            task = Task.model_validate_json(row["task"])
        except ValidationError:  # of another version
            continue
        if row["images"]:
            found.append(
                Job(pixels=task.width * task.height, steps=task.steps, images=row["images"], seconds=row["seconds"])
            )
    return found
