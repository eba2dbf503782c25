"""The words of the pages: one table a language, shared by Python's labels and the browser's scripts."""

import json
from pathlib import Path

import gradio as gr
from gradio.i18n import I18nData

LOCALES = Path(__file__).parent / "locales"
ALIASES = {"zh": "zh-CN"}
"""A browser that asks for `zh`, `zh-SG` or `zh-TW` gets Simplified Chinese: better than English."""


def tables() -> dict[str, dict[str, str]]:
    """Language tag -> key -> words. Whoever is asked for a language that is not here falls back to English."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(LOCALES.glob("*.json"))}
    return found | {alias: found[language] for alias, language in ALIASES.items()}


def t(key: str) -> I18nData:
    """The words of this key in the language of whoever looks at the page; chosen in the browser."""
    return I18nData(key)


def gradio_tables() -> gr.I18n:
    return gr.I18n(**tables())
