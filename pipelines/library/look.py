"""Questions that a signature asks of a header: which names are there, and how wide are they?"""

import re
from collections.abc import Callable, Mapping
from functools import cache

from pipelines.library.headers import TensorInfo

Shape = tuple[int, ...]


class Look:
    """The names of a file, searched as one text, since most questions are answered with no."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self.text = "\n" + "\n".join(tensors) + "\n"

    def below(self, prefix: str) -> "Look":
        """Only what begins with the prefix, without it."""
        return Look({name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)})

    def under(self, prefix: str) -> bool:
        return f"\n{prefix}" in self.text

    def shape(self, name: str) -> Shape:
        found = self.tensors.get(name)
        return found.shape if found else ()

    def first(self, pattern: str) -> tuple[str, Shape]:
        """The first name that has this in it, and its shape; empty ones if there is none."""
        if found := compiled(pattern).search(self.text, 1):
            name = self.text[self.text.rfind("\n", 0, found.start() + 1) + 1 : self.text.find("\n", found.end() - 1)]
            return name, self.shape(name)
        return "", ()


Test = Callable[[Look], bool]
"""One question of a signature."""


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """`^` and `$` are those of a name."""
    return re.compile(pattern, re.MULTILINE)


def has(*names: str) -> Test:
    """All of these names."""
    return lambda look: all(name in look.tensors for name in names)


def lacks(*names: str) -> Test:
    return lambda look: not any(name in look.tensors for name in names)


def part(*pieces: str) -> Test:
    """Some name with one of these pieces in it. A leading line break stands for the beginning of a name."""
    return lambda look: any(piece in look.text for piece in pieces)


def under(*prefixes: str) -> Test:
    """Some name that begins with one of these."""
    return lambda look: any(look.under(prefix) for prefix in prefixes)


def like(pattern: str) -> Test:
    return lambda look: bool(compiled(pattern).search(look.text, 1))


def either(*tests: Test) -> Test:
    return lambda look: any(test(look) for test in tests)


def both(*tests: Test) -> Test:
    return lambda look: all(test(look) for test in tests)


def side(pattern: str, axis: int, *sizes: int) -> Test:
    """The first tensor with a name like this has one of these sizes there."""

    def test(look: Look) -> bool:
        _, shape = look.first(pattern)
        return -len(shape) <= axis < len(shape) and shape[axis] in sizes

    return test


def at_least(pattern: str, axis: int, size: int) -> Test:
    def test(look: Look) -> bool:
        _, shape = look.first(pattern)
        return -len(shape) <= axis < len(shape) and shape[axis] >= size

    return test


def dimensions(pattern: str, count: int) -> Test:
    """The first tensor with a name like this has so many dimensions."""
    return lambda look: len(look.first(pattern)[1]) == count
