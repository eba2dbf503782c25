"""Widgets as the pages use them, and what every page is given. Factories: Gradio writes .pyi files for subclasses."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from pipelines.errors import PipelineError
from pipelines.request import GenerationRequest
from pipelines.types import ModelInfo
from webui.i18n import t
from webui.studio import Studio

ASSETS = Path(__file__).parent / "assets"

QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How our handlers run: at once, without an overlay, and not as a public API; that is what /api/v1 is for."""

MAY_FAIL: dict[str, Any] = QUIET | {"queue": True, "concurrency_limit": None}
"""For handlers that raise gr.Error: outside of the queue Gradio answers 500, and the page shows no word of it."""


@dataclass(frozen=True)
class Shell:
    """What is around the pages and shared by them."""

    studio: Studio
    blocks: gr.Blocks
    tabs: gr.Tabs
    model: gr.Dropdown
    status: gr.HTML
    form: dict[str, Any] = field(default_factory=dict)
    """The widgets of the Generate page, by the request's fields; filled in when that page is made."""


def native(shell: Shell, name: str | None) -> tuple[int, int, float]:
    """The size and the guidance that this model likes best: they are shown, never applied behind one's back."""
    models: dict[str, ModelInfo] = {info.name: info for info in shell.studio.models()}
    model = models.get(name or shell.model.value or "")
    return (model.width, model.height, model.cfg_scale) if model else (512, 512, GenerationRequest().cfg_scale)


async def chosen(shell: Shell, name: str) -> tuple[int, int, float]:
    """A checkpoint was picked: the worker may load it while the prompt is still being typed."""
    with contextlib.suppress(PipelineError):  # a part is missing: the plan below the form says so
        shell.studio.hint(name)
    return native(shell, name)


def asset(name: str) -> str:
    return (ASSETS / name).read_text("utf-8")


def script(call: str, elem_id: str, **options: Any) -> gr.HTML:
    """An element that our own scripts fill in: `call` is one of assets/*.js, given the element and `trigger`.

    Gradio takes each quoted word of the call for an event, so name there the events that the script fires.
    """
    return gr.HTML(html_template="", js_on_load=call, elem_id=elem_id, apply_default_css=False, **options)


def text(key: str, lines: int, value: str = "", **options: Any) -> gr.Textbox:
    return gr.Textbox(
        value,
        label=t(key),
        placeholder=t(f"{key}_hint"),
        lines=lines,
        max_lines=12,
        max_length=20_000,
        interactive=True,
        **options,
    )


def choice(key: str, choices: Sequence[str], value: str | list[str] | None, **options: Any) -> gr.Dropdown:
    return gr.Dropdown([(name, name) for name in choices], value=value, label=t(key), interactive=True, **options)


def number(key: str, value: int, **options: Any) -> gr.Number:
    return gr.Number(value, label=t(key), precision=0, interactive=True, **options)


def slider(key: str, value: float, **options: Any) -> gr.Slider:
    return gr.Slider(value=value, label=t(key), interactive=True, buttons=[], **options)


def small_button(key: str, elem_id: str) -> gr.Button:
    return gr.Button(t(key), size="sm", scale=0, min_width=72, elem_id=elem_id, elem_classes=["small"])


def sorry(error: Exception | str) -> gr.Error:
    """What the user sees as a message in the corner, without a traceback in the log."""
    return gr.Error(str(error), print_exception=False)
