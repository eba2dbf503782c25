"""The prompt language: what A1111 makes of the same text, and that no text is too strange or too long."""

import math
import random
from itertools import pairwise

import pytest

from pipelines.prompt.attention import LIMIT, parse


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("", []),
        ("a cat", [("a cat", 1)]),
        ("a (cat:1.5) b", [("a ", 1), ("cat", 1.5), (" b", 1)]),
        ("((cat))", [("cat", 1.21)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("[[cat]]", [("cat", 1 / 1.21)]),
        (r"a \(b\) \[c\] \\", [(r"a (b) [c] " + "\\", 1)]),
        (r"\(not weight:1.2\)", [("(not weight:1.2)", 1)]),
        (r"(foo\), bar:1.2)", [("foo), bar", 1.2)]),
        (r"(cat\:1.2)", [("cat\\", 1.2)]),  # only brackets and the backslash itself are escaped
        ("a\\", [("a\\", 1)]),
        ("(open", [("open", 1.1)]),
        ("(a:1.2", [("a:1.2", 1.1)]),
        ("[open", [("open", 1 / 1.1)]),
        ("stray) text", [("stray) text", 1)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:nan) (b:inf)", [("a:nan", 1.1), (" ", 1), ("b:inf", 1.1)]),
        ("(a: .5 )", [("a", 0.5)]),
        ("(a:-1)", [("a", -1)]),
        ("(a:+2)", [("a", 2)]),
        ("(a:0)", [("a", 0)]),
        ("(a:1e9)", [("a:1e9", 1.1)]),
        ("(a:5000)", [("a", LIMIT)]),
        ("(16:9)", [("16", 9)]),
        ("16:9", [("16:9", 1)]),
        ("()", []),
        ("(:1.2)", []),
        ("(a(b):1.5)", [("a", 1.5), ("b", 1.65)]),
        ("a(b:1)c", [("abc", 1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
    ],
)
def test_spans(text: str, spans: list[tuple[str, float]]) -> None:
    assert [(span.text, round(span.weight, 6)) for span in parse(text)] == [(t, round(w, 6)) for t, w in spans]


def test_any_text_is_a_prompt() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        text = "".join(draw.choices("()[]\\:.,+-0123456789 aé日\n", k=draw.randrange(40)))
        spans = parse(text)
        assert all(span.text and math.isfinite(span.weight) and abs(span.weight) <= LIMIT for span in spans), text
        assert all(one.weight != other.weight for one, other in pairwise(spans)), text
        kept = "".join(span.text for span in spans)
        assert len(kept) <= len(text)
        if not set(text) & set("()[]\\"):
            assert kept == text


@pytest.mark.parametrize("unit", ["(", "[", ")", "(a", "a)", "\\", "(a:1.1)", "((a))", ":", "(:", "x" * 9])
def test_time_grows_with_the_length_only(unit: str) -> None:
    """Counted in calls and lines of Python, not in seconds: those depend on who else uses the machine."""
    short, long = (work(unit * count) for count in (200, 2000))
    assert long < 11 * short + 1000


def work(text: str) -> int:
    """How many lines of Python the parser goes through."""
    import sys

    lines = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal lines
        lines += 1
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        parse(text)
    finally:
        sys.settrace(None)
    return lines


def test_the_longest_prompt_is_quick() -> None:
    for unit in ("(", "(a:1.1", "[(", ")", "a:", "(a) "):
        assert len(parse((unit * 20_000)[:20_000])) <= 20_000
