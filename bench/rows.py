"""How a figure is written down."""

from typing import NamedTuple


class Row(NamedTuple):
    name: str
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.name:<44} {self.value:10.3f} {self.unit}"
