"""The table of labels: where each one's value stands in a request, and how it is read and written. In A1111's order."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    label: str
    path: str
    """Of the field in GenerationRequest, with dots. What stands in `start` belongs to img2img, and so on."""
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    always: bool = False
    """Written even where it is the default, if the part of the request is there at all."""


def plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def size(text: str) -> tuple[int, int]:
    width, height = map(int, text.lower().split("x"))
    return width, height


def size_text(value: Any) -> str:
    return f"{value[0]}x{value[1]}"


def numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def numbers_text(value: Any) -> str:
    return ", ".join(map(plain, value))


def true(text: str) -> bool:
    return text.strip().lower() == "true"


def choice(words: dict[Any, str]) -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """Words of A1111 for our values. An unknown word is taken as it is: the request refuses it with the choices."""
    values = {word.lower(): value for value, word in words.items()}
    return lambda text: values.get(text.strip().lower(), text), lambda value: words.get(value, str(value))


def number(label: str, path: str, always: bool = False) -> Row:
    return Row(label, path, float, plain, always)


def whole(label: str, path: str, always: bool = False) -> Row:
    return Row(label, path, lambda text: int(float(text)), plain, always)


def word(label: str, path: str, always: bool = False) -> Row:
    return Row(label, path, str, str, always)


def flag(label: str, path: str) -> Row:
    return Row(label, path, true, str)


TILING = choice({"both": "True", "": "False", "x": "X", "y": "Y"})
MASK_MODE = choice({False: "Inpaint masked", True: "Inpaint not masked"})
AREA = choice({False: "Whole picture", True: "Only masked"})

ROWS = (
    whole("Steps", "steps", always=True),
    word("Sampler", "sampler", always=True),
    word("Schedule type", "schedule", always=True),
    number("CFG scale", "cfg_scale", always=True),
    number("Image CFG scale", "start.image_cfg_scale"),
    whole("Seed", "seed", always=True),
    word("Face restoration", "faces.model", always=True),
    whole("Variation seed", "noise.variation_seed"),
    number("Variation seed strength", "noise.variation_strength"),
    Row("Seed resize from", "noise.resize_from", size, size_text),
    number("Denoising strength", "start.denoising_strength", always=True),
    whole("Clip skip", "clip_skip"),
    whole("ENSD", "noise.delta"),
    number("Token merging ratio", "guidance.token_merging"),
    word("RNG", "noise.rng"),
    Row("Tiling", "tiling", *TILING),
    Row("Mask mode", "start.mask_invert", *MASK_MODE),
    whole("Mask blur", "start.mask_blur"),
    Row("Inpaint area", "start.only_masked", *AREA),
    whole("Masked area padding", "start.padding"),
    word("Masked content", "start.masked_content"),
    number("Conditional mask weight", "start.mask_weight"),
    number("Soft inpainting schedule bias", "start.soft.bias"),
    number("Soft inpainting preservation strength", "start.soft.preservation"),
    number("Soft inpainting transition contrast boost", "start.soft.contrast"),
    number("Soft inpainting mask influence", "start.soft.influence"),
    number("Soft inpainting difference threshold", "start.soft.difference_threshold"),
    number("Soft inpainting difference contrast", "start.soft.difference_contrast"),
    whole("SD upscale overlap", "start.tiled.overlap"),
    word("SD upscale upscaler", "start.tiled.upscaler"),
    number("SD upscale factor", "start.tiled.scale"),
    *(whole(f"Outpaint {side}", f"start.outpaint.{side}") for side in ("left", "right", "up", "down")),
    number("Noise multiplier", "start.noise_multiplier"),
    word("Resize mode", "start.resize_mode"),
    flag("Color correction", "start.color_correction"),
    word("Hires checkpoint", "hires.model"),
    word("Hires sampler", "hires.sampler"),
    word("Hires prompt", "hires.prompt"),
    word("Hires negative prompt", "hires.negative_prompt"),
    number("Hires CFG Scale", "hires.cfg_scale"),
    word("Hires schedule type", "hires.schedule"),
    number("Hires upscale", "hires.scale", always=True),
    whole("Hires steps", "hires.steps"),
    word("Hires upscaler", "hires.upscaler", always=True),
    word("Emphasis", "emphasis"),
    number("Schedule min sigma", "sampling.sigma_min"),
    number("Schedule max sigma", "sampling.sigma_max"),
    number("Schedule rho", "sampling.rho"),
    number("Eta", "sampling.eta"),
    number("Sigma churn", "sampling.s_churn"),
    number("Sigma tmin", "sampling.s_tmin"),
    number("Sigma tmax", "sampling.s_tmax"),
    number("Sigma noise", "sampling.s_noise"),
    number("NGMS", "guidance.min_sigma"),
    number("Skip Early CFG", "guidance.start"),
    number("Skip Late CFG", "guidance.end"),
    number("CFG rescale", "guidance.rescale"),
    number("APG", "guidance.apg"),
    number("APG norm", "guidance.apg_norm"),
    number("APG momentum", "guidance.apg_momentum"),
    number("PAG scale", "guidance.pag"),
    Row("FreeU", "guidance.freeu", numbers, numbers_text),
    word("Refiner", "refiner.model", always=True),
    number("Refiner switch at", "refiner.switch_at", always=True),
    word("Hires refiner", "refiner.during"),
    flag("Discard penultimate sigma", "sampling.discard_penultimate"),
    flag("SGM noise multiplier", "sampling.sgm_noise"),
)

OTHER_NAMES = {
    "Eta DDIM": "Eta",
    "Rescale CFG": "CFG rescale",
    "Schedule": "Schedule type",
    "CFG Rescale": "CFG rescale",
}
"""Labels of other versions and programs -> ours."""

SAME = ("Use same sampler", "Use same checkpoint", "Use same scheduler", "Use same upscaler")
"""Values of the hires pass that say: as in the first."""
