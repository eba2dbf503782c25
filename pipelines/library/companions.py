"""What a checkpoint needs that its own file does not hold, and which other files give it."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from pipelines.errors import BadModel, ModelNotFound
from pipelines.library.walk import PLACE
from pipelines.types import Kind, ModelInfo

AUTOMATIC, NONE = "Automatic", "None"


class Need(NamedTuple):
    """A network that a family is made of. `variants`: what files can give it, the best first."""

    part: str
    kind: Kind
    variants: tuple[str, ...]
    words: str
    """As the user knows it."""

    example: str
    optional: bool = False
    only: str = ""
    """Of the checkpoint's variants, those with this in their name; empty: all."""


def _vae(variant: str, words: str, example: str) -> Need:
    return Need("vae", Kind.VAE, (variant,), words, example)


def _text(part: str, variant: str, words: str, example: str, only: str = "") -> Need:
    return Need(part, Kind.TEXT_ENCODER, (variant,), words, example, only=only)


SD_VAE = _vae("4ch", "a VAE of 4 channels", "vae-ft-mse-840000-ema-pruned.safetensors")
FLUX_VAE = _vae("16ch", "a VAE of 16 channels", "ae.safetensors")
CLIP_L = _text("text_encoder", "clip_l", "a CLIP-L text encoder", "clip_l.safetensors")
CLIP_G = _text("text_encoder_2", "clip_g", "a CLIP-G text encoder", "clip_g.safetensors")
T5 = _text("text_encoder_2", "t5xxl", "a T5-XXL text encoder", "t5xxl_fp16.safetensors")
QWEN3_4B = _text("text_encoder", "qwen3_4b", "a Qwen3-4B text encoder", "qwen_3_4b.safetensors")
QWEN3_8B = _text("text_encoder", "qwen3_8b", "a Qwen3-8B text encoder", "qwen_3_8b.safetensors", only="9b")
MISTRAL = _text(
    "text_encoder", "mistral_small_24b", "a Mistral Small text encoder", "mistral_3_small_flux2_bf16.safetensors", "dev"
)

NEEDS: dict[str, tuple[Need, ...]] = {
    "sd1": (SD_VAE, CLIP_L),
    "sd2": (
        SD_VAE,
        CLIP_L._replace(variants=("clip_h",), words="an OpenCLIP-H text encoder", example="clip_h.safetensors"),
    ),
    "sdxl": (SD_VAE._replace(example="sdxl_vae.safetensors"), CLIP_L, CLIP_G),
    "sd3": (
        FLUX_VAE._replace(example="sd3_vae.safetensors"),
        CLIP_L,
        CLIP_G,
        T5._replace(part="text_encoder_3", optional=True),
    ),
    "flux": (FLUX_VAE, CLIP_L, T5),
    "flux2": (_vae("32ch", "a FLUX.2 VAE", "flux2-vae.safetensors"), QWEN3_8B, MISTRAL, QWEN3_4B._replace(only="4b")),
    "z_image": (FLUX_VAE, QWEN3_4B),
    "qwen_image": (
        _vae("qwen", "a Qwen-Image VAE", "qwen_image_vae.safetensors"),
        _text("text_encoder", "qwen2.5_vl_7b", "a Qwen2.5-VL-7B text encoder", "qwen_2.5_vl_7b_fp8_scaled.safetensors"),
    ),
}
"""Beside the network that draws, which every checkpoint holds."""

Find = Callable[[Kind, str, str], ModelInfo]
"""(kind, name, family) -> that file; raises ModelNotFound."""


def companions(
    info: ModelInfo, vae: str, text_encoders: Sequence[str], others: Sequence[ModelInfo], find: Find
) -> dict[str, ModelInfo]:
    """The files to take networks from, by diffusers' name. Raises ModelNotFound for what is missing, BadModel for what
    was named and does not fit."""
    needs = [need for need in NEEDS.get(info.family, ()) if need.only in info.variant and _wanted(need, info)]
    chosen = _named_encoders(info, needs, text_encoders, find)
    if picked := _vae_choice(info, vae, needs, others, find):
        chosen["vae"] = picked
    for need in needs:
        if need.part in info.parts or need.part in chosen:
            continue
        found = _best(need, info, others)
        if found:
            chosen[need.part] = found
        elif not need.optional:
            raise ModelNotFound(
                f"{info.name} needs {need.words}. Put one, such as {need.example}, into {PLACE[need.kind]}."
            )
    return chosen


def _wanted(need: Need, info: ModelInfo) -> bool:
    """SDXL's refiner reads with the larger of its two text encoders alone."""
    return not (info.family == "sdxl" and info.variant == "refiner" and need.part == "text_encoder")


def _named_encoders(info: ModelInfo, needs: Iterable[Need], names: Sequence[str], find: Find) -> dict[str, ModelInfo]:
    wanted = {variant: need for need in needs if need.kind == Kind.TEXT_ENCODER for variant in need.variants}
    chosen: dict[str, ModelInfo] = {}
    for name in names:
        file = find(Kind.TEXT_ENCODER, name, "")
        need = wanted.get(file.variant)
        if need is None:
            raise BadModel(
                f"{file.name} is a text encoder of the kind {file.variant}; {info.name} reads with "
                f"{' and '.join(sorted(wanted)) or 'its own alone'}."
            )
        chosen[need.part] = file
    return chosen


def _vae_choice(
    info: ModelInfo, vae: str, needs: Iterable[Need], others: Sequence[ModelInfo], find: Find
) -> ModelInfo | None:
    """A1111's rule: the file that was named; else one with the checkpoint's name; else none, for the one inside."""
    need = next((need for need in needs if need.part == "vae"), None)
    if vae == NONE or need is None:
        return None
    if vae in (AUTOMATIC, ""):
        return next((file for file in _namesakes(info, others) if _suits(need, info, file)), None)
    file = find(Kind.VAE, vae, "")
    if not _suits(need, info, file):
        raise BadModel(
            f"The VAE {file.name} ({' '.join([file.variant, file.family]).strip()}) does not fit {info.name}: "
            f"that needs {need.words}. Choose another one, or Automatic."
        )
    return file


def _suits(need: Need, info: ModelInfo, file: ModelInfo) -> bool:
    """VAEs of SD 1 and SDXL have the same shapes: only a word about the family tells them apart."""
    if file.variant not in need.variants:
        return False
    return file.kind != Kind.VAE or file.family in ("", info.family)


def _namesakes(info: ModelInfo, others: Iterable[ModelInfo]) -> list[ModelInfo]:
    """VAEs that are named like the checkpoint; those beside it first."""
    stem = _stem(info.name)
    same = [file for file in others if file.kind == Kind.VAE and stem == _stem(file.name).removesuffix(".vae")]
    return sorted(same, key=lambda file: file.path.parent != info.path.parent)


def _best(need: Need, info: ModelInfo, others: Iterable[ModelInfo]) -> ModelInfo | None:
    """One that lies beside it first, then the usual name, then what comes first."""
    fitting = [file for file in others if file.kind == need.kind and _suits(need, info, file)]
    if need.kind == Kind.VAE:
        fitting = [file for file in fitting if not _says_other(info.family, file)]

    def rank(file: ModelInfo) -> tuple[bool, bool, bool]:
        beside = file.path.parent == info.path.parent
        return not beside, file.family != info.family, _stem(file.name) != _stem(need.example)

    return min(fitting, key=rank, default=None)


SD1_WORDS = ("mse", "ema", "840000", "560000", "kl-f8", "nai", "anything", "sd1", "v1-5", "v1.5")
"""In the names of VAEs for SD 1, which have the shapes of SDXL's."""

SAYS: Mapping[str, frozenset[str]] = {
    "sd3": frozenset({"sd3", "sd35"}),
    "flux": frozenset({"ae", "flux", "flux1"}),
    "z_image": frozenset({"ae", "flux", "flux1", "z", "zimage"}),
}
"""Words in the names of VAEs of 16 channels. SD3's and Flux's differ in their numbers alone, so names have to tell."""


def _says_other(family: str, file: ModelInfo) -> bool:
    if family == "sdxl":
        return file.family != "sdxl" and any(word in _stem(file.name) for word in SD1_WORDS)
    words = set(re.split(r"[^a-z0-9]+", _stem(file.name)))
    mine = SAYS.get(family, frozenset())
    return bool(mine) and not words & mine and any(words & theirs for theirs in SAYS.values())


def _stem(name: str) -> str:
    return PurePath(name).stem.lower()
