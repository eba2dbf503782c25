"""`<lora:name:1>` and its relatives: what a prompt asks for beside its words. A tag of another kind stays text."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from pipelines.prompt.comments import uncommented

TAG = re.compile(r"<(\w++):([^<>]++)>")
LORA = ("lora", "lyco", "locon")
LIMIT = 100.0
"""Weights are held within this: more is a slip of the keyboard."""


class LoraUse(NamedTuple):
    """A LoRA or one of its relatives, and how much it counts in the text encoders and in the U-Net or transformer."""

    name: str
    te: float
    unet: float
    blocks: str = ""
    """Weights of single blocks: see `adapters/blocks.py`. Empty: all count in full."""


class Tags(NamedTuple):
    """A prompt without its tags, what they ask for, and what of that can't be done."""

    text: str
    loras: tuple[LoraUse, ...] = ()
    notes: tuple[str, ...] = ()


def untagged(prompt: str) -> Tags:
    """Take the tags out. A LoRA may come more than once: then its weights add up."""
    loras: list[LoraUse] = []
    notes: list[str] = []

    def read(tag: re.Match[str]) -> str:
        kind, (name, *rest) = tag[1].lower(), tag[2].split(":")
        if kind == "hypernet":
            notes.append(f"Hypernetworks are not supported: {tag[0]} is left out.")
        elif kind not in LORA:
            return tag[0]
        elif name.strip():
            loras.append(_use(name.strip(), rest, tag[0], notes))
        else:
            notes.append(f"{tag[0]} names no LoRA and is left out.")
        return ""

    return Tags(TAG.sub(read, prompt), tuple(loras), tuple(notes))


def loras_in(prompt: str) -> tuple[LoraUse, ...]:
    return untagged(uncommented(prompt)).loras


def names_in(*prompts: str) -> tuple[str, ...]:
    """Of all LoRAs, each once, in the order in which they are named."""
    return tuple(dict.fromkeys(lora.name for prompt in prompts for lora in loras_in(prompt)))


def _use(name: str, rest: list[str], tag: str, notes: list[str]) -> LoraUse:
    """`te` and `unet`, in this order or by name, and `lbw`. The second is as the first, and that is 1."""
    named = {key.strip().lower(): value for key, equals, value in (item.partition("=") for item in rest) if equals}
    placed = dict(zip(("te", "unet", "dyn"), (item for item in rest if "=" not in item), strict=False))
    values: Mapping[str, str] = {**placed, **named}
    if "dyn" in values:
        notes.append(f"{tag}: `dyn` is not supported, the whole LoRA is used.")
    te = _number(values.get("te"), 1.0, tag, notes)
    return LoraUse(name, te, _number(values.get("unet"), te, tag, notes), values.get("lbw", "").strip())


def _number(text: str | None, default: float, tag: str, notes: list[str]) -> float:
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        notes.append(f"{tag}: {text.strip()!r} is no weight, {default:g} is taken.")
        return default
    return max(-LIMIT, min(LIMIT, value))
