"""Between the form of the Generate page and a request: values by path one way, a request the other."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.fields import put
from pipelines.needs import PICTURES
from pipelines.request import GenerationRequest
from webui.ui.fields import PARTS, default, in_form

DECIDES = {
    "start": "image",
    "refiner": "model",
    "faces": "model",
    "controls": "model",
    "references": "image",
    "regions": "prompt",
}
"""The field of a part that says, by being filled in, that the part is asked for. `hires` has a switch of its own."""


def asked(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the form holds, by path, as GenerationRequest takes it. Parts that are not asked for are left out."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        last = path.rpartition(".")[2]
        if value is None or path == "hires" or (value == "" and default(path) == ""):
            continue
        put(tree, path, tuple(map(float, str(value).split(","))) if last == "area" else value)
    if not values.get("hires"):
        tree.pop("hires", None)
    for part, field in DECIDES.items():
        _settle(tree, part, field)
    return tree


def _settle(tree: dict[str, Any], part: str, field: str) -> None:
    """Numbered units become a tuple; what is not asked for goes."""
    found = tree.pop(part, {})
    units = [unit for key, unit in found.items() if key.isdigit()]
    if wanted := tuple(unit for unit in units if unit.get(field)):
        tree[part] = wanted
    elif not units and found.get(field):
        tree[part] = found


def held(request: GenerationRequest, paths: Iterable[str]) -> dict[str, Any]:
    """The other way: what a form is to hold for a request, by path. Parts that it lacks are as by default; what stands
    directly in the request and was not set is left out. Pictures stay as they are."""
    values: dict[str, Any] = {}
    for path in paths:
        first, *rest = path.split(".")
        if path == "hires":
            values[path] = request.hires is not None
        elif path.rpartition(".")[2] in PICTURES:
            continue
        elif rest:
            values[path] = _at(request, path)
        elif first in request.model_fields_set:
            values[path] = getattr(request, first)
    return values


def fits(path: str, value: Any) -> bool:
    """Whether a request could hold this there: what a browser kept may be of another version."""
    part, *rest = path.split(".")
    if path == "hires" or (path.rpartition(".")[2] in (*PICTURES, "area") and isinstance(value, str)):
        return True
    try:
        if not rest:
            GenerationRequest.model_validate({path: value})
        elif part in PARTS:
            type(PARTS[part]).model_validate({**PARTS[part].model_dump(), rest[-1]: value})
        else:
            GenerationRequest.model_validate({part: {rest[-1]: value}})
    except ValidationError:
        return value in (None, "") and default(path) == ""
    return True


def _at(request: Any, path: str) -> Any:
    value: Any = request
    for name in path.split("."):
        units = value[int(name) : int(name) + 1] if name.isdigit() else (getattr(value, name, None),)
        value = next(iter(units), None)
        if value is None:
            return default(path)
    return in_form(path, value)
