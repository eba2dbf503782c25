"""The lists of things that the starter model is taught, read from concepts.toml."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Concepts(BaseModel):
    """Names by list, and everyday words for some of them."""

    model_config = ConfigDict(frozen=True)

    first: frozenset[str]
    added: frozenset[str]
    aliases: dict[str, tuple[str, ...]]

    @property
    def wide(self) -> frozenset[str]:
        return self.first | self.added

    def named(self, which: str) -> frozenset[str]:
        """The list called `first` or `wide`."""
        return {"first": self.first, "wide": self.wide}[which]


def read_concepts() -> Concepts:
    path = Path(__file__).with_name("concepts.toml")
    return Concepts.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
