"""Which files hold one network's weights, in the layouts of diffusers and transformers? Both halves ask here."""

import re
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from pipelines.errors import BadModel

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SUFFIXES = (".safetensors", ".bin")
VARIANTS = ("", ".fp32", ".fp16", ".bf16")
"""The preferred first. Of two copies of the weights diffusers takes the one without a word; so do we."""

PLAIN_NAME = re.compile(r"[\w-][\w.-]*")


def weight_files(folder: Path) -> list[Path]:
    """Safetensors before pickles, full precision before half, one file before shards. Raises BadModel and OSError."""
    for suffix in SUFFIXES:
        for variant in VARIANTS:
            for stem in STEMS:
                if (whole := folder / f"{stem}{variant}{suffix}").is_file():
                    return [whole]
                for index in (f"{stem}{suffix}.index{variant}.json", f"{stem}{variant}{suffix}.index.json"):
                    if (folder / index).is_file():
                        return _shards(folder / index)
    raise BadModel(f"There are no weights in {folder.parent.name}/{folder.name}. Get the model again.")


def read_json(file: Path) -> dict[str, Any]:
    """Raises BadModel."""
    name = f"{file.parent.name}/{file.name}"
    try:
        content = from_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadModel(f"{name} cannot be read: {error}. Get the model again.") from error
    if not isinstance(content, dict):
        raise BadModel(f"{name} does not hold a JSON object. Get the model again.")
    return content


def _shards(index: Path) -> list[Path]:
    found = read_json(index).get("weight_map")
    names = sorted({str(name) for name in found.values()}) if isinstance(found, dict) else []
    if not names or not all(PLAIN_NAME.fullmatch(name) for name in names):
        raise BadModel(f"{index.parent.name}/{index.name} does not say in which files the weights are.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        some = ", ".join(missing[:3])
        raise BadModel(f"The weights in {index.parent.name} are not complete, {some} is missing. Get the model again.")
    return [index.parent / name for name in names]
