"""Scripts that make a plot from words, as A1111's: X/Y/Z plot, prompt matrix, prompts from file or text."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipelines.plot import MOST_CELLS, Axis, Change, Plot
from pipelines.request import GenerationRequest
from webui.plots.axes import axis
from webui.plots.values import BadValues

MOST_PARTS = 10
"""Of a prompt matrix: 2 to the power of this many pictures."""

Text = Annotated[str, Field(max_length=100_000)]


class AxisText(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(max_length=100, description="As in GET /api/v1/plots/axes")
    values: Text = Field(description="1, 2, 5 or 1-10 (+2) or 1-10 [5], or names with commas between them")


class Script(BaseModel):
    """What is to be plotted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["xyz", "matrix", "lines"] = "xyz"
    axes: tuple[AxisText, ...] = Field(default=(), max_length=3, description="Of xyz: X, Y, Z")
    lines: Text = Field(default="", description="Of lines: a prompt a line, or --prompt, --steps, ... as in A1111")
    sheet: bool = True


def plotted(request: GenerationRequest, script: Script) -> GenerationRequest:
    """The request with its plot. Raises BadValues."""
    return request.model_copy(update={"plot": SCRIPTS[script.kind](request, script)})


def xyz(request: GenerationRequest, script: Script) -> Plot:
    if not script.axes:
        raise BadValues("Choose at least one axis.")
    axes = tuple(axis(each.name, each.values, request) for each in script.axes)
    return Plot(axes=_bounded(axes), sheet=script.sheet)


def matrix(request: GenerationRequest, script: Script) -> Plot:
    """`a|b|c` draws the first part alone, with b, with c, and with both."""
    first, *parts = (part.strip() for part in request.prompt.split("|"))
    if not parts or len(parts) > MOST_PARTS:
        raise BadValues(f"Prompt matrix: write the parts of the prompt with | between them, {MOST_PARTS} at most.")
    return Plot(axes=_table(first, parts, (len(parts) + 1) // 2), sheet=script.sheet)


def _table(first: str, parts: Sequence[str], half: int) -> tuple[Axis, ...]:
    """Columns switch the first half of the parts, rows the others: each puts words in place of its own mark."""
    sides = (("X", parts[:half]), ("Y", parts[half:]))
    marks = {name: f"<{name} of the matrix>" for name, own in sides if own}
    update: dict[str, JsonValue] = {"prompt": first + "".join(marks.values())}
    axes = []
    for name, own in sides:
        changes = []
        for used in product((False, True), repeat=len(own)):
            words = [part for part, use in zip(own, reversed(used), strict=True) if use]
            replace = ((marks[name], "".join(f", {word}" for word in words)),) if own else ()
            changes.append(Change(label=", ".join(words) or "–", update=update, replace=replace))
        axes.append(Axis(name=f"Prompt matrix {name}", changes=tuple(changes)))
    return tuple(axes) if parts[half:] else (axes[0],)


def lines(request: GenerationRequest, script: Script) -> Plot:
    """Each line is a picture: a prompt, or flags with values as in A1111's script."""
    changes = [_line(line) for line in script.lines.splitlines() if line.strip()]
    if not changes:
        raise BadValues("Prompts from text: write a prompt a line.")
    return Plot(axes=_bounded((Axis(name="Prompts", changes=tuple(changes)),)), sheet=script.sheet)


FLAGS: Mapping[str, tuple[str, Callable[[str], JsonValue]]] = {
    "prompt": ("prompt", str),
    "negative_prompt": ("negative_prompt", str),
    "seed": ("seed", int),
    "steps": ("steps", int),
    "width": ("width", int),
    "height": ("height", int),
    "cfg_scale": ("cfg_scale", float),
    "sampler_name": ("sampler", str),
    "scheduler": ("schedule", str),
    "sd_model": ("model", str),
    "subseed": ("noise.variation_seed", int),
    "subseed_strength": ("noise.variation_strength", float),
    "tiling": ("tiling", lambda text: "both" if text.lower() == "true" else ""),
}
"""A1111's flags -> the field of the request. Others are refused by name."""


def _line(line: str) -> Change:
    if not line.strip().startswith("--"):
        return Change(label=line.strip(), update={"prompt": line.strip()})
    update: dict[str, JsonValue] = {}
    try:
        tokens = shlex.split(line)
    except ValueError as error:
        raise BadValues(f"{line[:60]!r}: a quote is not closed.") from error
    for name, value in zip(tokens[::2], [*tokens[1::2], ""][: len(tokens[::2])], strict=True):
        flag = name.removeprefix("--")
        if not name.startswith("--") or flag not in FLAGS:
            raise BadValues(f"{name!r} is not known. These are: {', '.join(f'--{each}' for each in FLAGS)}.")
        path, read = FLAGS[flag]
        try:
            update[path] = read(value)
        except ValueError as error:
            raise BadValues(f"--{flag}: {value!r} is no number.") from error
    return Change(label=str(update.get("prompt", line.strip())), update=update)


def _bounded(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    count = prod(len(each.changes) for each in axes)
    if count > MOST_CELLS:
        raise BadValues(f"{count} pictures are too many: {MOST_CELLS} are the most.")
    return axes


SCRIPTS: Mapping[str, Callable[[GenerationRequest, Script], Plot]] = {"xyz": xyz, "matrix": matrix, "lines": lines}
