"""The text in a picture that makes it again, both ways, in the format of A1111 that every tool of this field reads.

Fields, order, quoting and the rule of three pairs: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipelines.errors import PipelineError
from pipelines.request import GenerationRequest
from pipelines.types import Kind, ModelInfo

PAIR = re.compile(r'\s*(\w[\w \-/]{1,100}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"


class Field(NamedTuple):
    """A row of the table below: the label in the text, the request's field, and how its text is read back."""

    label: str
    name: str
    read: Callable[[str], Any]


FIELDS = (
    Field("Steps", "steps", int),
    Field("Sampler", "sampler", str),
    Field("Schedule type", "schedule", str),
    Field("CFG scale", "cfg_scale", float),
    Field("Seed", "seed", int),
)


def dump(request: GenerationRequest, unit: int, model: ModelInfo, version: str) -> str:
    """The infotext of image `unit` of a resolved request."""
    values: dict[str, Any] = {row.label: getattr(request, row.name) for row in FIELDS}
    values |= {"Seed": request.seed_of(unit), "Size": f"{request.width}x{request.height}"}
    if model.sha256:
        values["Model hash"] = model.sha256[:10]
    values["Model"] = model.name
    if vae := model.companions.get("vae"):
        values |= {"VAE hash": vae.sha256[:10]} if vae.sha256 else {}
        values["VAE"] = vae.name
    elif request.vae == "None":
        values["VAE"] = "None"
    values |= {f"Module {n}": encoder.name for n, encoder in enumerate(_text_encoders(model), 1)}
    values["Version"] = f"Inkstone {version}"
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"{NEGATIVE} {request.negative_prompt}")
    lines.append(", ".join(f"{label}: {_quote(value)}" for label, value in values.items()))
    return "\n".join(lines)


def _text_encoders(model: ModelInfo) -> list[ModelInfo]:
    """Those that came from files of their own; Forge writes them as Module 1, 2, ..."""
    return [info for part, info in sorted(model.companions.items()) if info.kind == Kind.TEXT_ENCODER]


def pairs(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt, and the pairs of the last line, which counts only if it holds three or more."""
    *lines, last = text.strip().split("\n")
    found = PAIR.findall(last)
    if len(found) < 3:
        lines, found = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            target, line = negative, line.removeprefix(NEGATIVE).strip()
        target.append(line)
    return "\n".join(prompt), "\n".join(negative), {label: _unquote(value) for label, value in found}


def load(text: str) -> GenerationRequest:
    """The request that an infotext describes; what it does not name keeps its default."""
    prompt, negative, found = pairs(text)
    values: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative, "model": found.get("Model", "")}
    if "VAE" in found:
        values["vae"] = found["VAE"]
    if modules := tuple(found[f"Module {n}"] for n in range(1, 5) if f"Module {n}" in found):
        values["text_encoders"] = modules
    try:
        values |= {row.name: row.read(found[row.label]) for row in FIELDS if row.label in found}
        if "Size" in found:
            values["width"], values["height"] = map(int, found["Size"].split("x"))
        return GenerationRequest(**values)
    except (ValueError, ValidationError) as error:
        raise PipelineError(f"This infotext holds values that do not fit: {error}") from error


def _quote(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _unquote(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text
