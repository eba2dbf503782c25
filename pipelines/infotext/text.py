"""The text itself: prompt, negative prompt, and a last line of `Label: value` pairs, as A1111 writes and reads it.

Rules of quoting and of three pairs: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features
"""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

PAIR = re.compile(r'\s*(\w[\w \-/]{1,100}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"


class Pairs(NamedTuple):
    prompt: str
    negative_prompt: str
    values: dict[str, str]


def written(prompt: str, negative_prompt: str, values: Mapping[str, str]) -> str:
    lines = [prompt]
    if negative_prompt:
        lines.append(f"{NEGATIVE} {negative_prompt}")
    lines.append(line(values))
    return "\n".join(lines)


def line(values: Mapping[str, str]) -> str:
    return ", ".join(f"{label}: {quoted(value)}" for label, value in values.items())


def pairs(text: str) -> Pairs:
    """The last line counts as pairs only if it holds three or more."""
    *lines, last = text.strip().split("\n")
    found = PAIR.findall(last)
    if len(found) < 3:
        lines, found = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for each in map(str.strip, lines):
        if each.startswith(NEGATIVE):
            target, each = negative, each.removeprefix(NEGATIVE).strip()
        target.append(each)
    return Pairs("\n".join(prompt), "\n".join(negative), {label: unquoted(value) for label, value in found})


def pairs_in(text: str) -> dict[str, str]:
    """Of one line alone, as the value of `ControlNet 0` is."""
    return {label: unquoted(value) for label, value in PAIR.findall(text)}


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def unquoted(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text
