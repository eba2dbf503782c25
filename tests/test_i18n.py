"""The tables of words: complete in each language, and no key without a use or a use without a key."""

import re
from pathlib import Path

import pytest

from webui import i18n
from webui.ui.fields import AREAS, word_key
from webui.ui.folds import FOLDS

ROOT = Path(i18n.__file__).parent
SOURCES = "\n".join(
    path.read_text("utf-8")
    for path in (*(ROOT / "ui").glob("*.py"), *(ROOT / "ui" / "assets").glob("*.js"))
)  # fmt: skip
ENGLISH = i18n.tables()["en"]
MADE = {
    *(f"fold_{fold.key}" for fold in FOLDS),
    *(f"{fold.switch}_on" for fold in FOLDS if fold.switch),
    *(f"area_{name}" for name in AREAS),
    *(
        word_key(f"{fold.key}.{name}" if fold.repeat else name)
        for fold in FOLDS
        for line in fold.lines
        for name in line
    ),
}
"""Keys that the form makes from the fields of a request."""
NAMES = re.compile(r"ControlNet|ENSD|Eta|NGMS|Sigma \w+")
"""Of A1111's settings, that are the same in every language."""


@pytest.mark.parametrize("language", i18n.tables())
def test_every_language_has_every_word(language: str) -> None:
    table = i18n.tables()[language]
    assert table.keys() == ENGLISH.keys()
    assert all(table.values())


@pytest.mark.parametrize("language", i18n.tables())
def test_every_language_has_the_same_placeholders(language: str) -> None:
    for key, words in i18n.tables()[language].items():
        assert sorted(re.findall(r"\{\w+\}", words)) == sorted(re.findall(r"\{\w+\}", ENGLISH[key])), key


def test_every_key_that_is_used_exists() -> None:
    calls = r'\b(?:t|button|text|choice|number|slider|small_button)\(\s*"(\w+)"'
    used = set(re.findall(calls, SOURCES))
    hints = {f"{key}_hint" for key in re.findall(r'\btext\("(\w+)"', SOURCES)}
    assert len(used) > 40, "the pattern above no longer fits the code"
    assert used | hints | MADE <= ENGLISH.keys()


def test_every_key_is_used() -> None:
    unused = [
        key
        for key in ENGLISH
        if key not in MADE and f'"{key}"' not in SOURCES and f'text("{key.removesuffix("_hint")}"' not in SOURCES
    ]
    assert unused == []


def test_chinese_is_chinese() -> None:
    for key, words in i18n.tables()["zh-CN"].items():
        assert re.search(r"[\u4e00-\u9fff]", words) or NAMES.fullmatch(words), key


def test_other_chinese_browsers_get_it_too() -> None:
    assert i18n.tables()["zh"] == i18n.tables()["zh-CN"]
