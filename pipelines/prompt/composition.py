"""`a cat :1.2 AND a dog :0.8`: several prompts that are drawn towards at once, each with its weight."""

import re
from typing import NamedTuple

LIMIT = 100.0
"""Weights are held within this: more is a slip of the keyboard."""

_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"\s*+([+-]?(?:\d++(?:\.\d*+)?+|\.\d++))\s*+")


class Part(NamedTuple):
    text: str
    weight: float


def composed(prompt: str, prose: bool = False) -> tuple[Part, ...]:
    """The prompts between the ANDs; a number behind a last colon is the weight of each.

    As in A1111 a prompt without AND may have a weight, too; in `prose` it has not, where "at 12:30" is a time.
    """
    pieces = _AND.split(prompt)
    if len(pieces) == 1 and prose:
        return (Part(prompt, 1.0),)
    return tuple(map(_part, pieces))


def _part(piece: str) -> Part:
    head, colon, tail = piece.rpartition(":")
    number = _NUMBER.fullmatch(tail) if colon else None
    if number:
        return Part(head.rstrip(), max(-LIMIT, min(LIMIT, float(number[1]))))
    return Part(piece.rstrip(), 1.0)
