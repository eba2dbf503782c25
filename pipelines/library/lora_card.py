"""What is known of a LoRA beside its weights: its hash as A1111 writes it, words that call it, its training."""

import hashlib
import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from pipelines.errors import BadModel
from pipelines.frozen import Frozen
from pipelines.library.headers import safetensors
from pipelines.types import ModelInfo

HASH_DIGITS = 12
TAGS = 30
CHUNK_BYTES = 4 * 2**20
SIDECAR_BYTES = 2**20


class LoraCard(Frozen):
    hash: str = Field(default="", description="The 12 digits that stand in an infotext; empty: the file cannot be read")
    base_model: str = Field(default="", description="What it was trained on, in its trainer's words")
    trigger_words: tuple[str, ...] = Field(default=(), description="Words in a prompt that it listens to")
    tags: dict[str, int] = Field(default={}, description="Most frequent tags of its pictures, and how often each came")
    weight: float | None = Field(default=None, description="At which its user likes it best")
    notes: str = ""


def lora_card(info: ModelInfo) -> LoraCard:
    """From the header of the file, and from what A1111 and Civitai's helpers put beside it: `name.json`,
    `name.civitai.info`. Nothing in it is worth an error."""
    metadata = _metadata(info.path)
    own, civitai = _sidecar(info.path.with_suffix(".json")), _sidecar(info.path.with_suffix(".civitai.info"))
    words = [_text(own, "activation text"), metadata.get("modelspec.trigger_phrase", "")]
    trained = civitai.get("trainedWords")
    words += [word for word in trained if isinstance(word, str)] if isinstance(trained, list) else []
    weight = own.get("preferred weight")
    return LoraCard(
        hash=lora_hash(info),
        base_model=_text(civitai, "baseModel")
        or metadata.get("ss_sd_model_name", "")
        or metadata.get("ss_base_model_version", "")
        or metadata.get("modelspec.architecture", ""),
        trigger_words=tuple(dict.fromkeys(word.strip() for word in words if word.strip())),
        tags=_tags(metadata.get("ss_tag_frequency", "")),
        weight=float(weight) if isinstance(weight, int | float) and weight else None,
        notes=_text(own, "notes"),
    )


def lora_hash(info: ModelInfo) -> str:
    """12 digits: those that the trainer wrote into the header, else of SHA-256 over what follows the header; of files
    without one, over all of it. Reads the file once in a process, unless it changes."""
    try:
        status = info.path.stat()
        return _hash(info.path, status.st_size, status.st_mtime_ns)
    except (OSError, BadModel):
        return ""


@lru_cache(maxsize=4096)
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    start = 0
    if path.suffix.lower() == ".safetensors":
        raw = safetensors.read_raw(path)
        start = size - raw.data_bytes
        if told := safetensors.parse(raw).metadata.get("sshs_model_hash", ""):
            return told.removeprefix("0x")[:HASH_DIGITS].lower()
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()[:HASH_DIGITS]


def _metadata(path: Path) -> dict[str, str]:
    try:
        return dict(safetensors.read(path).metadata) if path.suffix.lower() == ".safetensors" else {}
    except (OSError, BadModel):
        return {}


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > SIDECAR_BYTES:
            return {}
        found = json.loads(path.read_text("utf-8", "replace"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    return value if isinstance(value, str) else ""


def _tags(text: str) -> dict[str, int]:
    """kohya's: folder -> tag -> how often."""
    try:
        folders = json.loads(text or "{}")
    except ValueError:
        return {}
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        if isinstance(tags, dict):
            counts.update({tag.strip(): count for tag, count in tags.items() if isinstance(count, int)})
    return dict(counts.most_common(TAGS))
