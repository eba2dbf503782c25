"""What may be asked of pictures, to start from and at the end: parts of a request."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.fields import LARGEST_SIDE, Image, Name, ResizeMode, Share, Side, Text
from pipelines.frozen import Frozen

MaskedContent = Literal["fill", "original", "latent noise", "latent nothing"]


class Soft(Frozen):
    """Soft inpainting: the mask is a question of degree, and of the step."""

    bias: float = Field(default=1.0, ge=0, le=8, description="Schedule bias: above 1 keeps the original longer")
    preservation: float = Field(default=0.5, ge=0, le=8, description="Preservation strength")
    contrast: float = Field(default=4.0, ge=1, le=32, description="Transition contrast boost")
    influence: Share = Field(default=0.0, description="Mask influence on the final composite")
    difference_threshold: float = Field(default=0.5, ge=0, le=8)
    difference_contrast: float = Field(default=2.0, ge=0, le=8)


class Outpaint(Frozen):
    """How far the canvas grows, in pixels of the picture to start from. The new part is what is painted."""

    left: int = Field(default=0, ge=0, le=LARGEST_SIDE)
    right: int = Field(default=0, ge=0, le=LARGEST_SIDE)
    up: int = Field(default=0, ge=0, le=LARGEST_SIDE)
    down: int = Field(default=0, ge=0, le=LARGEST_SIDE)
    overlap: int = Field(default=16, ge=0, le=256, description="So much of the old picture is painted over")


class Tiled(Frozen):
    """SD upscale: the picture is made larger, and then painted over tile by tile, each of the request's size."""

    upscaler: Name = Field(default="Lanczos", description="None, Lanczos, Nearest or an upscaler's file")
    scale: float = Field(default=2.0, ge=1, le=8)
    overlap: int = Field(default=64, ge=0, le=512, description="Pixels that tiles share, and fade into one another")


class Start(Frozen):
    """A picture to start from: img2img, inpainting, outpainting, editing by instruction."""

    image: Image
    denoising_strength: Share = Field(default=0.75, description="0: the picture itself; 1: hardly anything of it stays")
    resize_mode: ResizeMode = "Just resize"
    mask: Image | None = Field(default=None, description="White is painted, black is kept bit for bit")
    mask_invert: bool = False
    mask_blur: int = Field(default=4, ge=0, le=256, description="Pixels")
    masked_content: MaskedContent = "original"
    only_masked: bool = Field(default=False, description="Paint the masked area at the full size, then put it back")
    padding: int = Field(default=32, ge=0, le=1024, description="Pixels around the mask, with only_masked")
    mask_weight: Share = Field(default=1.0, description="Of inpainting models: how much is hidden from them")
    soft: Soft | None = None
    outpaint: Outpaint | None = None
    tiled: Tiled | None = None
    noise_multiplier: float = Field(default=1.0, ge=0, le=1.5)
    color_correction: bool = Field(default=False, description="Give the result the colours of the original")
    all_steps: bool = Field(default=False, description="Do all steps, not the share that the strength leaves")
    image_cfg_scale: float = Field(default=1.5, ge=0, le=30, description="Of models that edit by instruction")

    @model_validator(mode="after")
    def _check_tiles(self) -> Self:
        if self.tiled and (self.only_masked or self.outpaint or self.mask):
            raise ValueError(
                "tiled: SD upscale paints all of a picture; it takes no mask, and the canvas does not grow"
            )
        return self


class Hires(Frozen):
    """A second pass at a larger size. What is empty or 0 is as in the first."""

    upscaler: Name = Field(default="Latent", description="A latent mode, Lanczos, Nearest or an upscaler's file")
    scale: float = Field(default=2.0, ge=1, le=8)
    width: Side = Field(default=0, description="With height instead of scale; one of them 0: by the ratio")
    height: Side = 0
    steps: int = Field(default=0, ge=0, le=150)
    denoising_strength: Share = 0.7
    sampler: Name = ""
    schedule: Name = ""
    cfg_scale: float = Field(default=0.0, ge=0, le=30)
    prompt: Text = ""
    negative_prompt: Text = ""
    model: Name = ""


class Refiner(Frozen):
    """Another checkpoint for the last steps."""

    model: Name
    switch_at: Share = Field(default=0.8, description="Share of the noise levels after which it takes over")
    during: Literal["first pass", "second pass", "both passes"] = Field(
        default="second pass", description="Where there are two, by hires fix"
    )


class Faces(Frozen):
    """Faces are restored by a network of their own, after the picture is done."""

    model: Name = Field(description="A file of GFPGAN, CodeFormer, ...")
    visibility: Share = 1.0
    weight: Share = Field(default=0.5, description="CodeFormer: 0 is the strongest")
