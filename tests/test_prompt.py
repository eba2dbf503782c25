"""The prompt language: what A1111 makes of the same text, and that no text is too strange or too long."""

import math
import time
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.prompt import Span, Timeline, parse, read, worded
from pipelines.prompt.attention import BREAK, LIMIT
from pipelines.prompt.composition import composed
from pipelines.prompt.schedule import scheduled


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
        (r"(cat\:1.2)", [("cat", 1.2)]),  # only brackets and the backslash itself are escaped
        (r"a\|b\\", [("a|b" + "\\", 1)]),
        ("a\\", [("a", 1)]),
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


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("(a BREAK b:1.5)", [("a", 1.5), BREAK, ("b", 1.5)]),
        ("a  BREAK\nBREAK b", [("a", 1), BREAK, BREAK, ("b", 1)]),
        ("((a)BREAK[b]", [("a", 1.21), BREAK, ("b", 1)]),
        ("BREAK a", [BREAK, ("a", 1)]),
        ("a BREAK", [("a", 1), BREAK]),
        ("aBREAK BREAKb break", [("aBREAK BREAKb break", 1)]),
    ],
)
def test_breaks(text: str, spans: list[tuple[str, float]]) -> None:
    assert [(s.text, round(s.weight, 6), s.breaks) for s in parse(text)] == [
        tuple(span) if isinstance(span, Span) else (*span, False) for span in spans
    ]


def test_what_weights_do_may_be_chosen() -> None:
    assert read("(a:1.5) [b] BREAK", "None") == [Span("(a:1.5) [b] BREAK", 1)]
    assert read("(a:1.5) b", "Ignore") == [Span("a", 1), Span(" b", 1)]
    assert read("(a:1.5) b", "No norm") == read("(a:1.5) b") == parse("(a:1.5) b")
    assert read("", "None") == []


FIRST, SECOND = Timeline(10), Timeline(10, 10)


@pytest.mark.parametrize(
    ("text", "timeline", "steps"),
    [
        ("test", FIRST, {10: "test"}),
        ("[a:1.2]", FIRST, {10: ""}),
        ("[cat:0.8]", FIRST, {8: "", 10: "cat"}),
        ("a [b:c:0.5] d", FIRST, {5: "a b d", 10: "a c d"}),
        ("a [b : c : 1 ] d", FIRST, {1: "a b  d", 10: "a  c  d"}),
        ("[b:c:5]", FIRST, {5: "b", 10: "c"}),
        ("[b::5]", FIRST, {5: "b", 10: ""}),
        ("[b:c:1.0]", FIRST, {10: "b"}),
        ("[b:c:1]", FIRST, {1: "b", 10: "c"}),
        ("[a:b:5.]", FIRST, {10: "a"}),
        ("[b:c:11]", FIRST, {10: "b"}),
        ("[b:c:0]", FIRST, {10: "c"}),
        ("[b:c:-3]", FIRST, {10: "c"}),
        ("[b:c:1e999]", FIRST, {10: "b"}),
        ("[fe|||]male", FIRST, {1: "female", 4: "male", 5: "female", 8: "male", 9: "female", 10: "male"}),
        ("[a|b|c]", Timeline(4), {1: "a", 2: "b", 3: "c", 4: "a"}),
        ("[[a:b:2]|c]", Timeline(5), {1: "a", 2: "c", 3: "b", 4: "c", 5: "b"}),
        ("[[a:b:0.3]:c:0.6]", FIRST, {3: "a", 6: "b", 10: "c"}),
        ("x[a:[b|c]:2]y", Timeline(5), {2: "xay", 3: "xby", 4: "xcy", 5: "xby"}),
        (
            "[[[a:b:1]:[c:d:3]:2]|([e:f:4]:1.2)]",
            Timeline(6),
            {1: "a", 2: "(e:1.2)", 3: "c", 4: "(e:1.2)", 5: "d", 6: "(f:1.2)"},
        ),
        ("[:5]", FIRST, {10: ""}),
        ("a [[[b]]:2]", FIRST, {2: "a ", 10: "a [[b]]"}),
        ("[(a:2):3]", FIRST, {3: "", 10: "(a:2)"}),
        (r"[a\:b:c\|d:5]", FIRST, {5: r"a\:b", 10: r"c\|d"}),
        (r"[a\|b|c]", Timeline(2), {1: r"a\|b", 2: "c"}),
        # brackets that do not fit are text, and do not keep others from changing
        ("((a][:b:c [d:3]", FIRST, {3: "((a][:b:c ", 10: "((a][:b:c d"}),
        ("[a (b [c:d:5] e]", FIRST, {5: "[a (b c e]", 10: "[a (b d e]"}),
        ("[a:b:[c:3]:5]", FIRST, {3: "[a:b::5]", 10: "[a:b:c:5]"}),
        ("[a] [b:c:x]", FIRST, {10: "[a] [b:c:x]"}),
        # A1111 takes the whole prompt literally as soon as there is one of these
        ("a|b [c:d:5]", FIRST, {5: "a|b c", 10: "a|b d"}),
        ("[a:b:0.25]{c|d}", FIRST, {2: "a{c|d}", 10: "b{c|d}"}),
        ("a [{b|d{:.5] c", FIRST, {5: "a  c", 10: "a {b|d{ c"}),
        ("[a|b:0.5]", FIRST, {5: "", 10: "a|b"}),
        ("[(a|b):c:5]", FIRST, {5: "(a|b)", 10: "c"}),
        # the second pass counts on
        ("[a:b:0.5]", SECOND, {10: "b"}),
        ("[a:b:1.5]", FIRST, {10: "a"}),
        ("[a:b:1.5]", SECOND, {5: "a", 10: "b"}),
        ("[a:b:15]", FIRST, {10: "a"}),
        ("[a:b:15]", SECOND, {5: "a", 10: "b"}),
        ("[a|b]", Timeline(2, 3), {1: "a", 2: "b"}),
    ],
)
def test_schedules(text: str, timeline: Timeline, steps: dict[int, str]) -> None:
    found = list(scheduled(text, timeline))
    assert len(found) == timeline.steps
    assert list(steps.values()) == [text for text, _ in groupby(found)]
    assert found == [
        text for last, text in steps.items() for _ in range(last - max((s for s in steps if s < last), default=0))
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [("a cat", 1)]),
        ("a :1.2 AND b: 0.5", [("a", 1.2), (" b", 0.5)]),
        ("aANDb", [("aANDb", 1)]),
        ("a AND", [("a", 1), ("", 1)]),
        ("AND AND", [("", 1), ("", 1), ("", 1)]),
        ("cat: 1.5", [("cat", 1.5)]),
        ("a:-1 AND b:+2. AND c:.5 ", [("a", -1), (" b", 2), (" c", 0.5)]),
        ("a:1.2.3 AND (b:1.5) AND c: x", [("a:1.2.3", 1), (" (b:1.5)", 1), (" c: x", 1)]),
        ("[a:b:2] AND c:1e5", [("[a:b:2]", 1), (" c:1e5", 1)]),
        ("a:5000", [("a", 100)]),
    ],
)
def test_parts(text: str, parts: list[tuple[str, float]]) -> None:
    assert composed(text) == tuple(parts)


def test_a_wording_has_each_text_once() -> None:
    wording = worded("a [b|c] <lora:x:1> AND [:d:2] # no", "[b:c:2] # neither", 4)
    assert wording.texts == ("a b", "a c", " ", " d", "b ", "c ")
    assert [term.by_step for term in wording.towards] == [(0, 1, 0, 1), (2, 2, 3, 3)]
    assert wording.away == (4, 4, 5, 5)
    assert worded("a", "a", 2).texts == ("a",)


def test_the_negative_prompt_is_read_where_it_counts() -> None:
    assert not worded("a", "b", 2, guided=False).away
    assert not worded("a:0.25 AND b:0.75", "c", 2, guided=False).away
    assert worded("a:1.5", "b", 2, guided=False).texts == ("a", "b")
    assert worded("a:1 AND b:-1", "c", 2, guided=False).away
    assert worded("a", "b AND c: 2 <lora:x:1>", 1).texts == ("a", "b AND c: 2 <lora:x:1>")


def test_in_prose_a_number_at_the_end_is_no_weight() -> None:
    assert worded("a clock at 12:30", "", 1, prose=True).texts[0] == "a clock at 12:30"
    assert worded("a:0.5 AND b", "", 1, prose=True).weights == (0.5, 1)


@pytest.mark.parametrize(
    ("text", "rest"),
    [("a # b\nc", "a \nc"), ("# a\nb", "b"), ("a\n#b\n#c\nd", "a\nd"), ("a\n\nb", "a\n\nb"), ("#", ""), ("a", "a")],
)
def test_comments(text: str, rest: str) -> None:
    assert worded(text, "", 1).texts[0] == rest


WORDS = [
    "(",
    ")",
    "[",
    "]",
    "\\",
    ":",
    "|",
    "1.5",
    "7",
    ".",
    " ",
    "a",
    "é日",
    "\n",
    "BREAK",
    " AND ",
    "#",
    "<lora:",
    ">",
]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map("".join))


@given(TEXTS)
def test_any_text_has_spans(text: str) -> None:
    spans = parse(text)
    assert all(span.text and math.isfinite(span.weight) and abs(span.weight) <= LIMIT for span in spans)
    assert all(one.weight != other.weight for one, other in pairwise(spans) if not one.breaks and not other.breaks)
    kept = "".join(span.text for span in spans if not span.breaks)
    assert len(kept) <= len(text)
    if not set(text) & set("()[]\\") and "BREAK" not in text:
        assert kept == text


@given(TEXTS, TEXTS, st.integers(1, 20), st.none() | st.integers(1, 20), st.booleans())
def test_any_text_is_a_prompt(text: str, negative: str, steps: int, earlier: int | None, guided: bool) -> None:
    wording = worded(text, negative, Timeline(steps, earlier), guided)
    places = [*(term.by_step for term in wording.towards), *([wording.away] if wording.away else [])]
    assert {place for by_step in places for place in by_step} == set(range(len(wording.texts)))
    assert all(len(by_step) == steps for by_step in places)
    assert len(set(wording.texts)) == len(wording.texts)
    assert all(math.isfinite(weight) for weight in wording.weights)
    if guided:
        assert wording.away


def read_all(text: str) -> None:
    """All that happens to a prompt before it is encoded."""
    for each in worded(text, "", 2).texts:
        read(each)


UNITS = [
    "(",
    "[",
    ")",
    "(a",
    "a)",
    "\\",
    "(a:1.1)",
    "((a))",
    ":",
    "(:",
    "x" * 9,
    "[a:",
    "[a|",
    "|",
    "[a:b:0.5]",
    "]",
    "[",
]
UNITS += [
    " ",
    "\n",
    "1",
    "1.",
    "<a:",
    "<lora:a>",
    "<",
    "# ",
    "a AND ",
    ": 1 ",
    "BREAK ",
    "[[a|b]:",
    ":5]",
    "\\[",
    "[a:1",
]


@pytest.mark.parametrize("unit", UNITS)
def test_time_grows_with_the_length_only(unit: str) -> None:
    """Counted in calls and lines of Python, not in seconds: those depend on who else uses the machine."""
    short, long = (work(unit * count) for count in (200, 2000))
    assert long < 11 * short + 1000


@pytest.mark.parametrize("unit", UNITS)
def test_the_longest_prompt_is_quick(unit: str) -> None:
    """Regular expressions do their work in one line of Python: so here it is seconds after all."""
    text = (unit * 100_000)[:100_000]
    start = time.thread_time()
    read_all(text)
    assert time.thread_time() - start < 2


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
        read_all(text)
    finally:
        sys.settrace(None)
    return lines
