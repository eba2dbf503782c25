"""Widgets for fields of a request, named by their path (`hires.scale`, `controls.0.weight`): kind and bounds come from
the request model itself, so that a page cannot offer what a job would refuse."""

from typing import Any, Literal, get_args, get_origin

import annotated_types
import gradio as gr
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines import infotext
from pipelines.frozen import Frozen
from pipelines.needs import PICTURES
from pipelines.request import Control, GenerationRequest, Reference, Region
from webui.i18n import t
from webui.ui.components import script

PARTS: dict[str, Frozen] = {
    **infotext.PARTS,
    "controls": Control(model="-"),
    "references": Reference(image="-"),
    "regions": Region(prompt=""),
}
"""The parts that may be missing, as they are by default."""

TEXTS = ("prompt", "negative_prompt")
AREAS = {
    "everywhere": (0, 0, 1, 1),
    "left": (0, 0, 0.5, 1),
    "right": (0.5, 0, 0.5, 1),
    "top": (0, 0, 1, 0.5),
    "bottom": (0, 0.5, 1, 0.5),
    "middle": (0.25, 0.25, 0.5, 0.5),
}
"""Parts of a picture for regional prompts, by the key of their words."""


def info(path: str) -> FieldInfo:
    """Of the field that a path names."""
    kind: Any = GenerationRequest
    found: FieldInfo | None = None
    for name in path.split("."):
        if not name.isdigit():
            found = kind.model_fields[name]
            kind = next((each for each in _kinds(found.annotation) if issubclass(each, BaseModel)), kind)
    assert found is not None
    return found


def default(path: str) -> Any:
    """As a form holds it."""
    part, *rest = path.split(".")
    holder = PARTS.get(part, GenerationRequest())
    value: Any = getattr(holder, rest[-1]) if part in PARTS and rest else GenerationRequest()
    if part not in PARTS:
        for name in path.split("."):
            value = getattr(value, name)
    return "" if value is None or value == "-" else in_form(path, value)


def in_form(path: str, value: Any) -> Any:
    """An area is a text there: drop-downs know no numbers in a row."""
    return ",".join(f"{each:g}" for each in value) if path.endswith(".area") else value


def label(path: str) -> Any:
    """The words of a field: a number in its path does not count."""
    return t(word_key(path))


def word_key(path: str) -> str:
    return "_".join(name for name in path.split(".") if not name.isdigit())


def widget(path: str, choices: tuple[str, ...] = ()) -> gr.components.Component:
    """`choices`: of a field whose values are names of files and the like; more may come later."""
    field, last = info(path), path.rpartition(".")[2]
    elem_id = "txt2img_" + path.replace(".", "_")
    options: dict[str, Any] = {"label": label(path), "interactive": True, "elem_id": elem_id}
    value, kinds = default(path), _kinds(field.annotation)
    if last in PICTURES:
        return picture(path, elem_id)
    if last == "area":
        pairs = [(t(f"area_{name}"), in_form(path, area)) for name, area in AREAS.items()]
        return gr.Dropdown(pairs, value=value, **options)
    if last in TEXTS:
        return gr.Textbox(value, lines=2, max_lines=8, max_length=20_000, **options)
    if literals := _literals(field.annotation):
        return gr.Dropdown([(str(each) or "-", each) for each in literals], value=value, **options)
    if bool in kinds:
        return gr.Checkbox(bool(value), **options)
    if int in kinds or float in kinds:
        return _number(field, value, float in kinds, options)
    return gr.Dropdown([(each or "-", each) for each in choices or (value,)], value=value, **options)


def picture(path: str, elem_id: str) -> gr.HTML:
    """A place to drop a picture on; its value is the picture's id. A mask is drawn on the picture beside it."""
    kind = "mask" if path.endswith("mask") else "picture"
    return script(f"inkstone.{kind}Field(element, props)", elem_id, value="")


def _number(field: FieldInfo, value: Any, fraction: bool, options: dict[str, Any]) -> gr.components.Component:
    low, high = _bounds(field)
    if value == "":  # may be left open: an empty gr.Number would send 0
        return gr.Textbox("", max_lines=1, placeholder=t("automatic"), **options)
    if low is None or high is None or high - low > 300:
        return gr.Number(value, minimum=low, maximum=high, precision=None if fraction else 0, **options)
    step = 1 if not fraction else 0.01 if high - low <= 2 else 0.1
    return gr.Slider(low, high, value=value, step=step, buttons=[], **options)


def _bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    low = next((each.ge for each in _metadata(field) if isinstance(each, annotated_types.Ge)), None)
    high = next((each.le for each in _metadata(field) if isinstance(each, annotated_types.Le)), None)
    return low, high  # type: ignore[return-value]


def _metadata(field: FieldInfo) -> list[Any]:
    """Its own, and that of the named types that it is made of, such as Share."""
    found = list(field.metadata)
    for kind in (field.annotation, *get_args(field.annotation)):
        for each in getattr(kind, "__metadata__", ()):
            found += each.metadata if isinstance(each, FieldInfo) else [each]
    return found


def _kinds(annotation: Any) -> list[type]:
    """The classes that an annotation speaks of: of `Share | None` float and NoneType."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for each in get_args(annotation) for kind in _kinds(each)]


def _literals(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for each in get_args(annotation) if (found := _literals(each))), ())
