"""The nouns of the project. Frozen pydantic models: they cross processes, HTTP and SQLite as JSON."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from pipelines.frozen import Frozen
from pipelines.request import GenerationRequest


class Kind(StrEnum):
    """What a model file is for."""

    CHECKPOINT = "checkpoint"  # draws pictures: a whole one, or the denoiser alone
    LORA = "lora"
    EMBEDDING = "embedding"
    VAE = "vae"
    TEXT_ENCODER = "text_encoder"
    CONTROLNET = "controlnet"
    T2I_ADAPTER = "t2i_adapter"
    IP_ADAPTER = "ip_adapter"
    UPSCALER = "upscaler"
    FACE_RESTORER = "face_restorer"
    IMAGE_ENCODER = "image_encoder"  # reads pictures for IP-Adapters
    PREPROCESSOR = "preprocessor"  # finds depth, poses, lines in a picture
    UNKNOWN = "unknown"  # can be read, but fits no row of the table
    BROKEN = "broken"  # cannot be read


class Format(StrEnum):
    SAFETENSORS = "safetensors"
    PICKLE = "pickle"
    GGUF = "gguf"
    DIFFUSERS = "diffusers"  # a folder


class ModelInfo(Frozen):
    """A model on disk, as the registry found it."""

    name: str = Field(description="Path below its kind's folder, with the suffix of a file: anime/dream.safetensors")
    kind: Kind = Kind.CHECKPOINT
    family: str = Field(description="Row of the table of families, such as sd1; empty: not known, or for any")
    variant: str = Field(default="", description="base is empty; inpaint, pix2pix, refiner, turbo, schnell, fill, ...")
    prediction: str = Field(default="", description="epsilon, v_prediction or flow; empty: what the family does")
    format: Format = Format.DIFFUSERS
    path: Path
    size_bytes: int
    parts: dict[str, int] = Field(default={}, description="Networks inside, by diffusers' name (unet, vae), in bytes")
    dtype: str = Field(default="", description="In which most of its bytes are, by safetensors' name: F16, Q4_K, ...")
    width: int = Field(default=0, description="The picture size that the model was trained for, in pixels")
    height: int = 0
    cfg_scale: float = Field(default=7.0, description="The guidance at which it looks best")
    sha256: str | None = Field(default=None, description="Of the weights; None until it has been computed")
    detail: str = Field(default="", description="What was seen in an unknown file, or why a broken one cannot be read")
    companions: dict[str, "ModelInfo"] = Field(
        default={}, description="Networks that come from other files, by diffusers' name; set when a job is frozen"
    )

    @property
    def title(self) -> str:
        """As A1111 writes it: `name.safetensors [0123456789]`."""
        return f"{self.name} [{self.sha256[:10]}]" if self.sha256 else self.name


Task = GenerationRequest
"""Every kind of long work. A second kind makes this a union that is discriminated by `kind`."""


def file_key(kind: Kind, name: str) -> str:
    """A name says nothing without its kind: a LoRA may be called like a checkpoint."""
    return f"{kind}/{name}"


class Assignment(Frozen):
    """What a worker is given: a job's task, the checkpoint it needs, and which of its images are still to be made."""

    job: int
    task: Task
    model: ModelInfo
    units: tuple[int, ...]
    files: dict[str, ModelInfo] = Field(default={}, description="Further files that the task names, by `file_key`")
    images: dict[str, bytes] = Field(default={}, description="The pictures that the task holds, by their names there")


class Interrupt(StrEnum):
    STOP = "stop"  # end the job
    SKIP = "skip"  # leave out the images that are being made and go on with the next batch


class Capabilities(Frozen):
    """What a worker can do; it fills the drop-downs of the pages."""

    device: str = Field(description="cpu, cuda:0, ...")
    device_name: str
    memory_bytes: int
    samplers: tuple[str, ...]
    schedules: tuple[str, ...]
    families: tuple[str, ...]
    versions: dict[str, str] = Field(description="Of torch, diffusers and the like")
    dtypes: dict[str, str] = Field(default={}, description="What each kind of network computes in: float32, bfloat16")
    placement: Literal["auto", "full", "offload", "stream"] = Field(default="auto", description="As in the settings")
    storage: Literal["auto", "full", "fp8", "nf4"] = Field(default="auto", description="As in the settings")
    attention: str = Field(default="", description="The backend that is in use: SDPA, xformers, ...")
    attentions: dict[str, str] = Field(default={}, description="Every backend -> why it cannot be used here, or empty")


class WorkerState(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"  # could not start; `detail` says why
    DIED = "died"  # ended by itself; a new one is on its way


class WorkerStatus(Frozen):
    """The worker's own state, apart from any job: what the header of the page says."""

    type: Literal["worker"] = "worker"
    state: WorkerState = WorkerState.STARTING
    detail: str = Field(default="", description="The model while loading, the device when ready, the reason on failure")
    fraction: float | None = Field(default=None, description="While loading: how much is there, from 0 to 1")
    free_bytes: int | None = Field(default=None, description="Memory that the device has left for models and pictures")
    loaded: tuple[str, ...] = Field(default=(), description="Names of the checkpoints in memory, the last used first")
    capabilities: Capabilities | None = None


class Started(Frozen):
    type: Literal["started"] = "started"


class Step(Frozen):
    """One denoising step is done. `unit` is the first image of the batch that is still wanted."""

    type: Literal["step"] = "step"
    unit: int
    step: int = Field(description="1 up to `steps`")
    steps: int
    preview: bytes | None = Field(default=None, description="JPEG of the predicted picture")


class Decoding(Frozen):
    """The VAE turns latents into a picture, in tiles if memory is short."""

    type: Literal["decoding"] = "decoding"
    unit: int
    tile: int = Field(description="0 up to `tiles`")
    tiles: int


class Note(Frozen):
    """Something was done in another way than asked, and the picture came all the same: what, why, what helps."""

    type: Literal["note"] = "note"
    text: str


class Picture(Frozen):
    """One image is done. The pixels are the worker's last word; the web side adds the infotext and writes the file."""

    type: Literal["picture"] = "picture"
    unit: int
    seed: int
    png: bytes


class Skipped(Frozen):
    type: Literal["skipped"] = "skipped"
    units: tuple[int, ...]


class Done(Frozen):
    type: Literal["done"] = "done"
    seconds: float


class Stopped(Frozen):
    """The user's stop was seen."""

    type: Literal["stopped"] = "stopped"


class Failed(Frozen):
    type: Literal["failed"] = "failed"
    error: str = Field(description="Class of the error, such as OutOfMemory")
    message: str


Ending = Done | Stopped | Failed
Event = Annotated[
    Started | Step | Decoding | Note | Picture | Skipped | Done | Stopped | Failed, Field(discriminator="type")
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
