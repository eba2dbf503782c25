"""Asks tensors for what a config needs: sizes and counts, with a sentence for the user where one is missing."""

from collections.abc import Iterator

from pipelines.errors import BadModel
from pipelines.loading.parts import Tensors
from pipelines.loading.quantised import shape_of


class Shapes:
    """Shapes as the network knows them, whether its weights are packed or not. Raises BadModel for a missing one."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name not in self._tensors:
            raise BadModel(f"The file holds no {name!r}: it is incomplete, or of another kind. Download it again.")
        return shape_of(self._tensors, name)

    def rows(self, name: str) -> int:
        return self[name][0]

    def columns(self, name: str) -> int:
        return self[name][1]

    def count(self, prefix: str) -> int:
        """How many blocks there are: names `prefix` + number + `.`..."""
        return len({name[len(prefix) :].partition(".")[0] for name in self._tensors if name.startswith(prefix)})
