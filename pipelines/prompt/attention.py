"""Weights in a prompt: `(word)`, `[word]`, `(word:1.2)`, `\\(`. Never fails, takes time in proportion to the text."""

import re
from typing import NamedTuple

UP, DOWN = 1.1, 1 / 1.1
LIMIT = 100.0
"""Weights are held within this: more is a slip of the keyboard and would only overflow in half precision."""

_TOKEN = re.compile(r"\\[()\[\]\\]|[()\[\]]|[^\\()\[\]]+|\\")
_NUMBER = re.compile(r"\s*([+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}))\s*")


class Span(NamedTuple):
    text: str
    weight: float


def parse(prompt: str) -> list[Span]:
    """Split a prompt into spans of equal weight. An unclosed bracket holds to the end, a stray closing one is text."""
    tokens: list[str] = _TOKEN.findall(prompt)
    factors = _factors(tokens)
    rounds, squares = [1.0], [1.0]  # the products of the brackets that are open; the two kinds may cross
    spans: list[tuple[list[str], float]] = []
    for index, token in enumerate(tokens):
        if token in "([" and index in factors:
            stack = rounds if token == "(" else squares
            stack.append(_held(stack[-1] * factors[index]))
        elif token in ")]" and index in factors:
            (rounds if token == ")" else squares).pop()
        else:
            text = token[1:] if token[0] == "\\" and len(token) == 2 else token
            if index + 1 in factors and tokens[index + 1] == ")":
                text = _split_weight(text, token)[0]
            weight = _held(rounds[-1] * squares[-1])
            if spans and spans[-1][1] == weight:
                spans[-1][0].append(text)
            elif text:
                spans.append(([text], weight))
    return [Span("".join(texts), weight) for texts, weight in spans]


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
