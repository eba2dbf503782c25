"""Weights in a prompt: `(word)`, `[word]`, `(word:1.2)`, `\\(`; and `BREAK`, behind which CLIP begins a new chunk.

Never fails, takes time in proportion to the text.
"""

import re
from typing import NamedTuple

from pipelines.request import Emphasis

UP, DOWN = 1.1, 1 / 1.1
LIMIT = 100.0
"""Weights are held within this: more is a slip of the keyboard and would only overflow in half precision."""

_BREAK = re.compile(r"\bBREAK\b")
_TOKEN = re.compile(r"\\[()\[\]\\]|[()\[\]]|[^\\()\[\]]+|\\")
_NUMBER = re.compile(r"\s*([+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}))\s*")


class Span(NamedTuple):
    text: str
    weight: float
    breaks: bool = False
    """No text but a BREAK."""


BREAK = Span("\n", 1.0, breaks=True)
"""For who reads on without a break it is the end of a line."""


def read(prompt: str, emphasis: Emphasis = "Original") -> list[Span]:
    """As `parse`, as far as weights are wanted: with "None" brackets are text, with "Ignore" they do nothing."""
    if emphasis == "None":
        return [Span(prompt, 1.0)] if prompt else []
    spans = parse(prompt)
    return [span._replace(weight=1.0) for span in spans] if emphasis == "Ignore" else spans


def parse(prompt: str) -> list[Span]:
    """Split a prompt into spans of equal weight. An unclosed bracket holds to the end, a stray closing one is text.
    A backslash takes a bracket, or a backslash, as text; before anything else it is left out."""
    tokens: list[str] = _TOKEN.findall(prompt)
    factors = _factors(tokens)
    rounds, squares = [1.0], [1.0]  # the products of the brackets that are open; the two kinds may cross
    spans = _Spans()
    for index, token in enumerate(tokens):
        if token in "([" and index in factors:
            stack = rounds if token == "(" else squares
            stack.append(_held(stack[-1] * factors[index]))
        elif token in ")]" and index in factors:
            (rounds if token == ")" else squares).pop()
        else:
            text = token[1:] if token[0] == "\\" else token
            if index + 1 in factors and tokens[index + 1] == ")":
                text = _split_weight(text, token)[0]
            spans.add(text, _held(rounds[-1] * squares[-1]))
    return spans.done()


class _Spans:
    """Texts one after another; those of equal weight become one."""

    def __init__(self) -> None:
        self._done: list[Span] = []
        self._texts: list[str] = []
        self._weight = 1.0

    def add(self, text: str, weight: float) -> None:
        first, *others = _BREAK.split(text) if "BREAK" in text else [text]
        self._text(first.rstrip() if others else first, weight)
        for number, other in enumerate(others, 1):
            self.done().append(BREAK)
            self._text(other.strip() if number < len(others) else other.lstrip(), weight)

    def done(self) -> list[Span]:
        if self._texts:
            self._done.append(Span("".join(self._texts), self._weight))
            self._texts = []
        return self._done

    def _text(self, text: str, weight: float) -> None:
        if not text:
            return
        if weight != self._weight:
            self.done()
            self._weight = weight
        self._texts.append(text)


def _factors(tokens: list[str]) -> dict[int, float]:
    """The factor of each opening bracket, by its place; the places of the closing brackets that have a partner, too."""
    factors: dict[int, float] = {}
    rounds: list[int] = []
    squares: list[int] = []
    for index, token in enumerate(tokens):
        if token in "([":
            (rounds if token == "(" else squares).append(index)
            factors[index] = UP if token == "(" else DOWN
        elif token == "]" and squares:
            squares.pop()
            factors[index] = 1.0
        elif token == ")" and rounds:
            explicit = _split_weight(tokens[index - 1], tokens[index - 1])[1]
            factors[rounds.pop()] = UP if explicit is None else explicit
            factors[index] = 1.0
    return factors


def _split_weight(text: str, token: str) -> tuple[str, float | None]:
    """`cat:1.2` is the text `cat` and the weight 1.2, when a bracket closes behind it."""
    head, colon, tail = text.rpartition(":")
    number = _NUMBER.fullmatch(tail) if colon and token[0] != "\\" else None
    return (head, float(number[1])) if number else (text, None)


def _held(weight: float) -> float:
    return max(-LIMIT, min(LIMIT, weight))
