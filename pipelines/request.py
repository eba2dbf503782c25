"""What may be asked of a picture: one frozen model, and one more for each feature that can be left out.

Names of choices are A1111's, so that its infotext, its API and its tutorials mean the same here.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.fields import (
    LARGEST_SIDE,
    SEED_LIMIT,
    SMALLEST_SIDE,
    Extras,
    Image,
    Name,
    ResizeMode,
    Seed,
    Share,
    Side,
    Text,
    check_side,
)
from pipelines.frozen import Frozen
from pipelines.picture_request import Faces, Hires, Outpaint, Refiner, Soft, Start, Tiled
from pipelines.plot import Plot, changed

__all__ = [
    "LARGEST_SIDE",
    "SEED_LIMIT",
    "SMALLEST_SIDE",
    "Control",
    "ControlMode",
    "Emphasis",
    "Extras",
    "Faces",
    "GenerationRequest",
    "Guidance",
    "Hires",
    "Image",
    "Name",
    "Noise",
    "Outpaint",
    "Reference",
    "Refiner",
    "Region",
    "ResizeMode",
    "Sampling",
    "Share",
    "Soft",
    "Start",
    "Tiled",
    "Variant",
    "check_side",
]

Emphasis = Literal["Original", "No norm", "Ignore", "None"]
StyleMethod = Literal["attention", "adain", "adain+attention"]
ControlMode = Literal["Balanced", "My prompt is more important", "ControlNet is more important"]


class Noise(Frozen):
    """Where the noise comes from that a picture begins with, and that is added on the way."""

    rng: Literal["CPU", "GPU", "NV"] = Field(
        default="CPU", description="CPU: the same on every machine; GPU: the device's own; NV: as an NVIDIA card draws"
    )
    variation_seed: Seed = Field(default=-1, description="Of the noise that is mixed in; -1: drawn")
    variation_strength: Share = Field(default=0.0, description="0: none; 1: the picture of the variation seed")
    resize_from: tuple[Side, Side] = Field(
        default=(0, 0), description="Draw the noise of this width and height, so that a seed keeps its composition"
    )
    delta: int = Field(default=0, ge=0, lt=2**32, description="ENSD: added to the seed of noise after the first")


class Sampling(Frozen):
    """How the solver walks, beyond sampler, schedule and steps. None: what the sampler does by itself."""

    eta: float | None = Field(default=None, ge=0, le=10, description="Share of noise that ancestral samplers add")
    s_churn: float = Field(default=0.0, ge=0, le=100, description="Karras et al. 2022, algorithm 2")
    s_tmin: float = Field(default=0.0, ge=0)
    s_tmax: float = Field(default=0.0, ge=0, description="0: no limit")
    s_noise: float = Field(default=1.0, ge=0, le=2)
    sigma_min: float = Field(default=0.0, ge=0, description="Of the schedule; 0: the model's own")
    sigma_max: float = Field(default=0.0, ge=0, description="Of the schedule; 0: the model's own")
    rho: float = Field(default=0.0, ge=0, le=100, description="Of Karras' schedule; 0: 7, of polyexponential 1")
    discard_penultimate: bool | None = Field(default=None, description="Leave out the last noise level but one")
    sgm_noise: bool = Field(default=False, description="First noise times sqrt(1 + sigma^2), as Stability's SGM does")


class Guidance(Frozen):
    """What is done to classifier-free guidance and to the network on the way. All off by default."""

    rescale: Share = Field(default=0.0, description="Lin et al. 2023: how far to bring the spread back")
    start: Share = Field(default=0.0, description="Guide only from this share of the steps on")
    end: Share = Field(default=1.0, description="Guide only up to this share of the steps")
    min_sigma: float = Field(default=0.0, ge=0, le=15, description="NGMS: below, every other step is not guided")
    apg: Share = Field(default=0.0, description="Adaptive projected guidance: share of the parallel part left out")
    apg_norm: float = Field(default=15.0, ge=0, description="Its largest update, as a norm over the latent; 0: any")
    apg_momentum: float = Field(default=-0.5, ge=-1, le=1)
    pag: float = Field(default=0.0, ge=0, le=30, description="Scale of perturbed-attention guidance")
    freeu: tuple[float, float, float, float] | None = Field(default=None, description="FreeU: b1, b2, s1, s2")
    token_merging: float = Field(default=0.0, ge=0, le=0.9, description="Share of tokens that are merged")


class Control(Frozen):
    """A ControlNet, T2I adapter or IP-Adapter, and the picture that it follows."""

    model: Name = Field(default="", description='Empty or "None": for preprocessors that need none (reference_only)')
    image: Image | None = Field(default=None, description="None: the picture to start from")
    mask: Image | None = Field(default=None, description="For inpainting: what is painted")
    module: Name = Field(default="none", description="Preprocessor")
    weight: float = Field(default=1.0, ge=0, le=2)
    start: Share = 0.0
    end: Share = 1.0
    mode: ControlMode = "Balanced"
    resize_mode: ResizeMode = "Crop and resize"
    pixel_perfect: bool = Field(default=True, description="Preprocess at the size of the result")
    resolution: int = Field(default=512, ge=64, le=2048, description="Of the preprocessor, without pixel_perfect")
    threshold_a: float | None = None
    threshold_b: float | None = None
    union_type: Name = Field(default="", description="What a Union ControlNet is to follow; empty: by the module")
    hr_option: Literal["Both", "Low res only", "High res only"] = Field(
        default="Both", description="In which passes it counts, if there is a second one"
    )


class Reference(Frozen):
    """A picture whose content or style is taken over: by an IP-Adapter, or without weights by its attention."""

    image: Image
    model: Name = Field(default="", description="An IP-Adapter; empty: style by shared self-attention")
    weight: float = Field(default=1.0, ge=0, le=3)
    start: Share = 0.0
    end: Share = 1.0
    mask: Image | None = Field(default=None, description="Where it counts; None: everywhere")
    method: StyleMethod = Field(default="attention", description="Without a model: what of its attention is taken over")
    fidelity: Share = Field(
        default=0.5, description="Without a model: how far what is stayed away from is spared, which makes it stronger"
    )


class Region(Frozen):
    """A prompt for a part of the picture: an area in shares of width and height, or a mask."""

    prompt: Text
    area: tuple[Share, Share, Share, Share] = Field(default=(0, 0, 1, 1), description="Left, top, width, height")
    mask: Image | None = None
    weight: float = Field(default=1.0, ge=0, le=10)


class Variant(Frozen):
    """The prompts of one image, in a job whose images have different ones."""

    prompt: Text = ""
    negative_prompt: Text = ""
    hires_prompt: Text = ""
    hires_negative_prompt: Text = ""


class GenerationRequest(Frozen):
    """What to draw. Asked for, it may leave things open (model "", width 0, seed -1); frozen in a job, nothing is."""

    kind: Literal["generate"] = "generate"
    prompt: Text = ""
    negative_prompt: Text = ""
    variants: tuple[Variant, ...] = Field(
        default=(), max_length=1600, description="Prompts of each image, in a job that draws them; empty: all the same"
    )
    model: Name = Field(default="", description="Name of a checkpoint; empty: the first one")
    width: Side = Field(default=0, description="Pixels; 0: the model's own size")
    height: Side = Field(default=0, description="Pixels; 0: the model's own size")
    steps: int = Field(default=20, ge=1, le=150)
    cfg_scale: float = Field(default=7.0, ge=0, le=30, description="Left out: what the model likes best")
    sampler: str = Field(default="DPM++ 2M", max_length=100)
    schedule: str = Field(default="Automatic", max_length=100)
    seed: Seed = Field(default=-1, description="Of the first image, +1 for each further one; -1: drawn")
    batch_count: int = Field(default=1, ge=1, le=100, description="Batches, one after another")
    batch_size: int = Field(default=1, ge=1, le=16, description="Images that are made at once")
    vae: Name = Field(default="Automatic", description="Automatic, None (the model's own) or a file's name")
    text_encoders: tuple[Name, ...] = Field(
        default=(), max_length=4, description="Files to take the text encoders from; empty: chosen by family and shape"
    )
    clip_skip: int = Field(default=0, ge=0, le=12, description="CLIP layers to stop before, from 1; 0: the family's")
    emphasis: Emphasis = Field(default="Original", description="What weights in the prompt do")
    tiling: Literal["", "x", "y", "both"] = Field(default="", description="Edges that fit together")
    noise: Noise = Noise()
    sampling: Sampling = Sampling()
    guidance: Guidance = Guidance()
    start: Start | None = None
    hires: Hires | None = None
    refiner: Refiner | None = None
    controls: tuple[Control, ...] = Field(default=(), max_length=10)
    references: tuple[Reference, ...] = Field(default=(), max_length=10)
    regions: tuple[Region, ...] = Field(default=(), max_length=20)
    faces: Faces | None = None
    plot: Plot | None = Field(default=None, description="One image for each cell, instead of batches")
    extras: Extras = Field(default={}, description="Settings of extensions, by extension name")

    @model_validator(mode="after")
    def _check_tiles(self) -> Self:
        if self.hires and self.start and self.start.tiled:
            raise ValueError("hires: SD upscale has one pass; leave out one of the two")
        return self

    @model_validator(mode="after")
    def _check_variants(self) -> Self:
        if self.variants and len(self.variants) != self.units:
            raise ValueError(f"variants: there are {len(self.variants)} for {self.units} images")
        return self

    @property
    def units(self) -> int:
        """How many images this asks for."""
        return self.plot.size if self.plot else self.batch_count * self.batch_size

    @property
    def files(self) -> int:
        """How many pictures are kept: the images, and the sheet of a plot as the last one."""
        return self.units + (1 if self.plot and self.plot.sheet else 0)

    @property
    def checkpoint(self) -> str:
        """Names a checkpoint with its VAE, among those of a plot."""
        return self.model if self.vae == "Automatic" else f"{self.model} + {self.vae}"

    def cell(self, unit: int) -> Self:
        """Of a plot, the request for this image alone; else the same one. Raises ValidationError."""
        if not self.plot:
            return self
        values = self.model_dump(exclude={"plot"})
        return type(self).model_validate(changed(values, self.plot.changes(unit)) | {"batch_count": 1, "batch_size": 1})

    def seed_of(self, unit: int) -> int:
        """Image k of a batch is the single image of seed + k; with a variation, as in A1111, of variation seed + k."""
        if self.plot:
            return self.cell(unit).seed if unit < self.units else self.seed
        return self.seed if self.noise.variation_strength else self.seed + unit

    def variation_seed_of(self, unit: int) -> int:
        return self.noise.variation_seed + unit

    def spoken(self, unit: int) -> Self:
        """With the prompts of this image as those of the whole job."""
        if not self.variants:
            return self
        mine = self.variants[unit]
        update: dict[str, Any] = {"prompt": mine.prompt, "negative_prompt": mine.negative_prompt, "variants": ()}
        if self.hires:
            texts = {"prompt": mine.hires_prompt, "negative_prompt": mine.hires_negative_prompt}
            update["hires"] = self.hires.model_copy(update=texts)
        return self.model_copy(update=update)
