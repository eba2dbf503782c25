"""Prompts that change on the way: `[from:to:when]`, `[to:when]`, `[from::when]` and, in turns, `[a|b]`.

Never fails: brackets that mean none of this are text. Takes time in proportion to the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_NUMBER = re.compile(r"\s*+([+-]?(?:\d++\.?+\d*+|\.\d++)(?:[eE][+-]?\d++)?)\s*+")
_PARTNER = {"]": "[", ")": "("}


@dataclass(frozen=True)
class Timeline:
    """What the times in a prompt count. In a second pass shares go from 1 to 2, and steps go on."""

    steps: int
    earlier_steps: int | None = None
    """Of the first pass; None: this is the first."""

    def last_step(self, when: str) -> int:
        """The last step, counted from 1, of what is shown first. A number with a dot is a share of the steps."""
        value, second = float(when), self.earlier_steps is not None
        left = (value - second) * self.steps if "." in when else value - (self.earlier_steps or 0)
        return int(max(0, min(self.steps, left)))


class _Part(NamedTuple):
    """Tokens from one place up to another."""

    start: int
    end: int


@dataclass(frozen=True)
class _Bracket:
    end: int
    """The place behind the closing bracket."""
    parts: tuple[_Part, ...]
    last: int | None
    """The last step of the first part; None: the parts take turns."""

    def part(self, step: int) -> _Part:
        if self.last is None:
            return self.parts[(step - 1) % len(self.parts)]
        return self.parts[0 if step <= self.last else 1]


def scheduled(prompt: str, timeline: Timeline) -> tuple[str, ...]:
    """The prompt at each step. Weights and escapes stay in it: they are read later."""
    tokens: list[str] = _TOKEN.findall(prompt)
    brackets = _brackets(tokens, timeline)
    if not brackets:
        return (prompt,) * timeline.steps
    lasts = {bracket.last for bracket in brackets.values()}
    texts: list[str] = []
    for step in range(1, timeline.steps + 1):
        same = texts and None not in lasts and step - 1 not in lasts
        texts.append(texts[-1] if same else "".join(_at(step, tokens, brackets)))
    return tuple(texts)


def _at(step: int, tokens: list[str], brackets: dict[int, _Bracket]) -> Iterator[str]:
    place, end = 0, len(tokens)
    outer: list[_Part] = []  # where to go on behind the brackets that we are in, and up to where
    while True:
        if place == end:
            if not outer:
                return
            place, end = outer.pop()
        elif bracket := brackets.get(place):
            outer.append(_Part(bracket.end, end))
            place, end = bracket.part(step)
        else:
            yield tokens[place]
            place += 1


def _brackets(tokens: list[str], timeline: Timeline) -> dict[int, _Bracket]:
    """By the place of the opening one: the square brackets that have a meaning. A bracket without a partner is text,
    and so are all around it: a pair holds only whole pairs."""
    found: dict[int, _Bracket] = {}
    opened: list[tuple[int, list[int]]] = []  # place, and places of the colons and bars right inside
    for place, token in enumerate(tokens):
        if token in ("[", "("):
            opened.append((place, []))
        elif token in _PARTNER:
            if not opened or tokens[opened[-1][0]] != _PARTNER[token]:
                opened.clear()
                continue
            start, marks = opened.pop()
            if token == "]" and (bracket := _bracket(tokens, (start, place), marks, timeline)):
                found[start] = bracket
        elif token in (":", "|") and opened:
            opened[-1][1].append(place)
    return found


def _bracket(tokens: list[str], pair: tuple[int, int], marks: list[int], timeline: Timeline) -> _Bracket | None:
    """A number behind the last colon makes it a change, and bars are text there; bars alone make it turns."""
    if not marks:
        return None
    start, end = pair
    last, first = marks[-1], start + 1
    if tokens[last] == ":" and last + 2 == end and (number := _NUMBER.fullmatch(tokens[last + 1])):
        colons = [mark for mark in marks[:-1] if tokens[mark] == ":"]
        if len(colons) > 1:
            return None
        middle = colons[0] if colons else first
        parts = (_Part(first, middle), _Part(middle + bool(colons), last))
        return _Bracket(end + 1, parts, timeline.last_step(number[1]))
    bars = [mark for mark in marks if tokens[mark] == "|"]
    if not bars:
        return None
    edges = [start, *bars, end]
    return _Bracket(end + 1, tuple(_Part(a + 1, b) for a, b in zip(edges, edges[1:], strict=False)), None)
