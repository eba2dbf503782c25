"""From a header to what the model is: the networks inside, family, variant, size, and what is said about an odd one.

Two steps. `structure` looks at names and shapes alone, so that files with the same names need it once. `refine` looks
at the file's name and what its maker wrote down, for what shapes cannot tell: turbo, v-prediction, ...
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from pipelines.library.adapters import find_embedding, find_lora
from pipelines.library.headers import Header, TensorInfo
from pipelines.library.look import Look
from pipelines.library.signatures import DENOISERS, FOREIGN, OTHERS, Signature
from pipelines.types import Kind


class Finding(NamedTuple):
    """What a header says; the fields are those of ModelInfo."""

    kind: Kind
    family: str = ""
    variant: str = ""
    prediction: str = ""
    parts: Mapping[str, int] = {}
    dtype: str = ""
    width: int = 0
    height: int = 0
    cfg_scale: float = 7.0
    detail: str = ""


class Place(NamedTuple):
    """Where a network lies in a file that holds several: the names that begin like this."""

    prefix: str
    part: str
    """diffusers' name; empty: the one that draws."""


PLACES = (
    Place("model.diffusion_model.", ""),
    Place("first_stage_model.", "vae"),
    Place("vae.", "vae"),
    Place("cond_stage_model.", "text_encoder"),
    Place("conditioner.embedders.0.transformer.", "text_encoder"),
    Place("conditioner.embedders.0.model.", "text_encoder_2"),
    Place("conditioner.embedders.1.", "text_encoder_2"),
    Place("text_encoders.clip_g.", "text_encoder_2"),
    Place("text_encoders.t5xxl.", "t5"),
    Place("text_encoders.", "text_encoder"),
)
T5_PARTS = {"sd3": "text_encoder_3"}
"""Which of the text encoders T5 is; the second in the other families."""

WRAPPERS = ("diffusion_model.", "model.", "unet.", "transformer.", "module.")
"""Programs that save a denoiser alone put such a word before all of its names."""

UNETS = ("sd1", "sd2", "sdxl")
WHOLE_ALIASES = ("model_ema.",)
"""A second copy of the denoiser, which nobody needs for drawing."""


class Native(NamedTuple):
    """What a family or a variant of it was made for: side in pixels, guidance, prediction. 0: as its family."""

    family: str
    variant: str
    side: int
    cfg_scale: float
    prediction: str = ""


NATIVE = (
    Native("sd1", "", 512, 7),
    Native("sd2", "", 768, 7),
    Native("sdxl", "", 1024, 7),
    Native("sd3", "", 1024, 4.5),
    Native("flux", "", 1024, 1),
    Native("flux2", "", 1024, 1),
    Native("z_image", "", 1024, 4),
    Native("qwen_image", "", 1024, 4),
    Native("sd1", "lcm", 512, 1.5),
    Native("sd1", "hyper", 512, 1),
    Native("sd1", "turbo", 512, 1),
    Native("sd2", "turbo", 512, 1),
    Native("sdxl", "turbo", 512, 1),
    Native("sdxl", "lightning", 1024, 1),
    Native("sdxl", "hyper", 1024, 1),
    Native("sdxl", "lcm", 1024, 1.5),
    Native("sdxl", "dmd2", 1024, 1),
    Native("sd3", "3.5-large-turbo", 1024, 1),
    Native("flux2", "klein-base-4b", 1024, 4),
    Native("flux2", "klein-base-9b", 1024, 4),
    Native("z_image", "turbo", 1024, 1),
    Native("qwen_image", "lightning", 1024, 1),
)


class Word(NamedTuple):
    """A word in the name or metadata that tells what shapes cannot: family and variant before -> variant after."""

    family: str
    before: str
    pattern: str
    after: str


WORDS = (
    Word("sdxl", "", r"turbo", "turbo"),
    Word("sdxl", "", r"lightning", "lightning"),
    Word("sdxl", "", r"hyper", "hyper"),
    Word("sdxl", "", r"(^|[^a-z])lcm", "lcm"),
    Word("sdxl", "", r"dmd2?([^a-z]|$)", "dmd2"),
    Word("sd1", "", r"(^|[^a-z])lcm", "lcm"),
    Word("sd1", "", r"hyper[-_ ]?sd", "hyper"),
    Word("sd1", "", r"turbo", "turbo"),
    Word("sd2", "", r"turbo", "turbo"),
    Word("sd3", "3.5-large", r"turbo", "3.5-large-turbo"),
    Word("flux", "dev", r"kontext", "kontext"),
    Word("flux2", "klein-4b", r"base", "klein-base-4b"),
    Word("flux2", "klein-9b", r"base", "klein-base-9b"),
    Word("z_image", "", r"turbo", "turbo"),
    Word("z_image", "", r"^(?!.*(base|z[-_]?image[-_.]?(bf16|fp16|fp8|q\d|omni|$)))", "turbo"),
    Word("qwen_image", "", r"edit", "edit"),
    Word("qwen_image", "", r"lightning", "lightning"),
    Word("qwen_image", "", r"layered", "layered"),
)
"""The Z-Image that people share is the turbo one, unless it says otherwise."""

V_WORDS = re.compile(r"v[-_]?pred|768[-_]?v|v[-_]parameteri[sz]ation|v2[-.]?1?[-_]768|768[-_]nonema|[-_]v[-_]ema")
EPSILON_WORDS = re.compile(r"512|base|eps|turbo|inpaint|depth")
MODELSPEC = ("modelspec.architecture", "modelspec.title", "modelspec.implementation", "ss_base_model_version")


def detect(header: Header, name: str) -> Finding:
    """`name` is that of the file: it breaks ties."""
    return refine(structure(header), header.metadata, name)


def structure(header: Header) -> Finding:
    """By names and shapes alone."""
    look = Look(header.tensors)
    dtype = main_dtype(header.tensors)
    if lora := find_lora(look):
        family, variant = lora
        if not family:
            return _unknown(header, dtype, "A LoRA for a family that is not known here")
        return Finding(Kind.LORA, family, variant, dtype=dtype)
    row = None if _is_whole(look) else _first(OTHERS, look)
    if row:
        return Finding(row.kind, row.family, row.variant, parts=_own_part(row, header.size_bytes), dtype=dtype)
    if foreign := _foreign(look):
        return _unknown(header, dtype, f"A {foreign} model, which cannot be used here")
    if found := _checkpoint(header, look, dtype) or _inside(header, look, dtype):
        return found
    if (made_for := find_embedding(look)) is not None:
        return Finding(Kind.EMBEDDING, made_for, dtype=dtype)
    return _unknown(header, dtype, "It fits no kind of model that is known here")


def refine(found: Finding, metadata: Mapping[str, str], name: str) -> Finding:
    """With the words of the file's name and metadata."""
    if found.kind in (Kind.UNKNOWN, Kind.BROKEN):
        return found
    words = " ".join([name.rpartition("/")[2].lower(), *(metadata.get(key, "").lower() for key in MODELSPEC)])
    if found.kind == Kind.VAE and not found.family and found.variant == "4ch":
        return found._replace(family="sdxl" if re.search(r"sdxl|(^|[^a-z])xl([^a-z]|$)", words) else "")
    if found.kind != Kind.CHECKPOINT:
        return found
    stem = re.sub(r"\.(safetensors|sft|ckpt|pt|pth|bin|gguf)\b", "", words).strip()
    variant = found.variant
    for word in WORDS:
        if (word.family, word.before) == (found.family, variant) and re.search(word.pattern, stem):
            variant = word.after
            break
    prediction = found.prediction or _prediction(found.family, variant, metadata, stem)
    return native(found._replace(variant=variant, prediction=prediction))


def native(found: Finding) -> Finding:
    """With the picture size and guidance that such a model was made for."""
    rows = [row for row in NATIVE if row.family == found.family and row.variant in ("", found.variant)]
    if not rows:
        return found
    row = rows[-1]
    side = 512 if found.family == "sd2" and found.prediction == "epsilon" else row.side
    return found._replace(width=side, height=side, cfg_scale=row.cfg_scale)


def main_dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """In which most bytes are."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.size_bytes
    if sizes["U8"] and any(".quant_state.bitsandbytes__nf4" in name for name in tensors):
        return "NF4"
    return max(sizes, key=lambda dtype: sizes[dtype], default="")


def _first(rows: tuple[Signature, ...], look: Look) -> Signature | None:
    return next((row for row in rows if all(test(look) for test in row.tests)), None)


def _foreign(look: Look) -> str:
    return next((name for name, test in FOREIGN if test(look)), "")


def _is_whole(look: Look) -> bool:
    return look.under("model.diffusion_model.") and not look.under("control_model.")


def _own_part(row: Signature, size: int) -> dict[str, int]:
    part = {Kind.VAE: "vae", Kind.TEXT_ENCODER: "text_encoder", Kind.CONTROLNET: "controlnet"}.get(row.kind)
    return {part: size} if part else {}


def _checkpoint(header: Header, look: Look, dtype: str) -> Finding | None:
    """A whole checkpoint, or a denoiser alone."""
    prefix = _prefix(look)
    row = _first(DENOISERS, look.below(prefix) if prefix else look)
    if row is None:
        return None
    family, variant = row.family, row.variant
    if family == "sd1" and look.under("cond_stage_model.model."):  # narrow ones: SD 2 reads with open_clip
        family = "sd2"
    if family == "sdxl" and look.under("conditioner.embedders.0.model."):
        variant = variant or "refiner"
    prediction = "v_prediction" if "v_pred" in look.tensors else ""
    parts = _parts(header.tensors, family)
    if not prefix or prefix in WRAPPERS:
        dtype_parts = {"unet" if family in UNETS else "transformer": header.size_bytes}
        parts = dtype_parts if len(parts) <= 1 else parts
    return Finding(row.kind, family, variant, prediction, parts, dtype)


def _prefix(look: Look) -> str:
    for prefix in ("model.diffusion_model.", *WRAPPERS):
        if look.under(prefix):
            return prefix
    return ""


def _inside(header: Header, look: Look, dtype: str) -> Finding | None:
    """A VAE or text encoder that was cut out of a checkpoint with its prefix."""
    for place in PLACES:
        if place.part and look.under(place.prefix) and (row := _first(OTHERS, look.below(place.prefix))):
            return Finding(row.kind, row.family, row.variant, parts=_own_part(row, header.size_bytes), dtype=dtype)
    return None


def _parts(tensors: Mapping[str, TensorInfo], family: str) -> dict[str, int]:
    """Bytes of each network, by diffusers' name. What is under no prefix belongs to the one that draws."""
    denoiser = "unet" if family in UNETS else "transformer"
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if name.startswith(WHOLE_ALIASES):
            continue
        place = next((place for place in PLACES if name.startswith(place.prefix)), None)
        if place is None and not name.startswith(WRAPPERS) and "." not in name:
            continue  # betas, v_pred and other numbers beside the networks
        part = place.part if place else denoiser
        sizes[T5_PARTS.get(family, "text_encoder_2") if part == "t5" else part or denoiser] += tensor.size_bytes
    return dict(sizes)


def _prediction(family: str, variant: str, metadata: Mapping[str, str], stem: str) -> str:
    """SD 2 and SDXL come in both kinds with the same shapes. SD 2 without a word about it is the one of 768 pixels."""
    if family not in UNETS:
        return "flow"
    spec = (metadata.get("modelspec.prediction_type", "") or metadata.get("modelspec.predict_key", "")).lower()
    if spec.startswith("v") or metadata.get("ss_v_parameterization", "").lower() == "true" or V_WORDS.search(stem):
        return "v_prediction"
    if family != "sd2" or spec.startswith("eps") or variant or EPSILON_WORDS.search(stem):
        return "epsilon"
    return "v_prediction"


def _unknown(header: Header, dtype: str, words: str) -> Finding:
    names = ", ".join(name[:60] for name in list(header.tensors)[:4])
    count, size = len(header.tensors), header.size_bytes / 2**20
    detail = f"{words}. Seen: {count} tensors, {size:,.1f} MiB, most of it {dtype or 'empty'}: {names or 'none'}"
    return Finding(Kind.UNKNOWN, dtype=dtype, detail=f"{detail}{', ...' if count > 4 else ''}")
