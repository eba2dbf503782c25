"""How the values of an axis are written: a list with commas, and ranges as in A1111: `1-10 (+2)`, `0.5-1 [3]`."""

import csv
import math
import re
from typing import TypeVar

from pipelines.errors import PipelineError
from pipelines.plot import MOST_CELLS

_NUMBER = r"([+-]?\d{1,15}(?:\.\d{1,9})?)"
_RANGE = re.compile(rf"\s*{_NUMBER}\s*-\s*{_NUMBER}(?:\s*\(\s*{_NUMBER}\s*\)|\s*\[\s*(\d{{1,5}})\s*\])?\s*")


T = TypeVar("T")


class BadValues(PipelineError): ...


def words(text: str) -> list[str]:
    """Separated by commas or lines; a value with a comma in it stands in quotes."""
    try:
        rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
    except csv.Error as error:
        raise BadValues(f"These values cannot be read: {error}.") from error
    return [word.strip() for row in rows for word in row if word.strip()]


def whole_numbers(text: str) -> list[int]:
    found = [round(number) for word in words(text) for number in _numbers(word)]
    return _checked(found, text)


def numbers(text: str) -> list[float]:
    found = [round(number, 6) for word in words(text) for number in _numbers(word)]
    return _checked(found, text)


def _numbers(word: str) -> list[float]:
    """`1-5` counts by ones; `1-10 (+2)` by twos; `1-10 [4]` gives four at even distances."""
    if not (match := _RANGE.fullmatch(word)):
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BadValues(f"{word!r} is no number and no range such as 1-10, 1-10 (+2) or 1-10 [5].")
        return [number]
    first, last = float(match[1]), float(match[2])
    if match[4]:
        count = min(int(match[4]), MOST_CELLS)
        if count < 2:
            return [first]
        return [first + (last - first) * i / (count - 1) for i in range(count)]
    step = float(match[3]) if match[3] else (1.0 if last >= first else -1.0)
    if step == 0 or (last - first) * step < 0:
        raise BadValues(f"{word!r} never ends: a step of {step:g} does not lead from {first:g} to {last:g}.")
    count = min(int((last - first) / step + 1e-9) + 1, MOST_CELLS + 1)
    return [first + step * i for i in range(count)]


def _checked(found: list[T], text: str) -> list[T]:
    if len(found) > MOST_CELLS:
        raise BadValues(f"{text[:40]!r} has more than {MOST_CELLS} values.")
    return found
