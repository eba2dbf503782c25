"""A job whose images differ from each other on purpose: X/Y/Z plots, prompt matrices, prompts from a file. Data only.

An axis is a list of changes to the request; a cell is one change of each axis. What the words of an axis mean
(`CFG scale: 1-10 [5]`) is read when the job is frozen (`webui/plots/`), so that a worker needs to know nothing of it.
"""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, model_validator

from pipelines.fields import put
from pipelines.frozen import Frozen

MOST_CELLS = 2000


class Change(Frozen):
    """A value of an axis."""

    label: str = Field(max_length=2000)
    update: dict[str, JsonValue] = Field(default={}, description="Path of a field (hires.scale) -> its value")
    replace: tuple[tuple[str, str], ...] = Field(default=(), description="Words of the prompts -> other words")


class Axis(Frozen):
    name: str = Field(max_length=100)
    changes: Annotated[tuple[Change, ...], Field(min_length=1, max_length=MOST_CELLS)]
    cost: float = Field(default=0.0, description="The costliest axis changes least often")


class Plot(Frozen):
    axes: Annotated[tuple[Axis, ...], Field(min_length=1, max_length=3)]
    sheet: bool = Field(default=True, description="Also make one picture of them all, with a legend")

    @property
    def size(self) -> int:
        return prod(len(axis.changes) for axis in self.axes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many values each axis has: X, Y, Z."""
        counts = [len(axis.changes) for axis in self.axes] + [1, 1]
        return counts[0], counts[1], counts[2]

    def place(self, unit: int) -> tuple[int, ...]:
        """Of a unit, the number of its value on every axis. Units are made with the costliest axis outermost."""
        order = sorted(range(len(self.axes)), key=lambda number: self.axes[number].cost)  # the innermost first
        numbers = [0] * len(self.axes)
        for number in order:
            unit, numbers[number] = divmod(unit, len(self.axes[number].changes))
        return tuple(numbers)

    def changes(self, unit: int) -> list[Change]:
        return [axis.changes[number] for axis, number in zip(self.axes, self.place(unit), strict=True)]

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.size > MOST_CELLS:
            raise ValueError(f"{self.size} pictures are too many: {MOST_CELLS} are the most")
        return self


def changed(values: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    """The fields of a request, as a tree, with these changes: values first, then words in the prompts."""
    for change in changes:
        for path, value in change.update.items():
            put(values, path, value)
    for old, new in (pair for change in changes for pair in change.replace):
        for place in (values, values.get("hires") or {}):
            for name in ("prompt", "negative_prompt"):
                if name in place:
                    place[name] = place[name].replace(old, new)
    return values
