"""The form of the Generate page: every field of its folds goes into a request and comes back."""

from typing import Any

import gradio as gr
import pytest

from pipelines.request import Control, GenerationRequest, Hires, Refiner, Region, Start
from webui.i18n import tables
from webui.ui.fields import AREAS, default, widget
from webui.ui.folds import FOLDS
from webui.ui.form import asked, fits, held

PATHS = [
    path
    for fold in FOLDS
    for line in fold.lines
    for name in line
    for path in ([f"{fold.key}.{unit}.{name}" for unit in range(fold.repeat)] if fold.repeat else [name])
] + ["hires"]


def untouched() -> dict[str, Any]:
    return {path: default(path) for path in PATHS if path != "hires"}


def test_a_form_that_nobody_touched_asks_for_nothing() -> None:
    assert GenerationRequest(**asked({**untouched(), "hires": False})) == GenerationRequest()


def test_what_is_filled_in_is_asked_for() -> None:
    changes = {
        "start.image": "a",
        "start.mask_blur": 9,
        "hires": True,
        "hires.scale": 1.5,
        "controls.1.model": "canny",
        "controls.1.threshold_a": "100",
        "regions.0.prompt": "a dog",
        "regions.0.area": "0.5,0,0.5,1",
        "refiner.model": "fine",
        "guidance.rescale": 0.7,
        "sampling.eta": "0.5",
        "clip_skip": 2,
    }
    request = GenerationRequest(**asked(untouched() | changes))
    assert request.start == Start(image="a", mask_blur=9)
    assert request.hires == Hires(scale=1.5)
    assert request.controls == (Control(model="canny", threshold_a=100),)
    assert request.regions == (Region(prompt="a dog", area=(0.5, 0, 0.5, 1)),)
    assert request.refiner == Refiner(model="fine")
    assert (request.guidance.rescale, request.sampling.eta, request.clip_skip) == (0.7, 0.5, 2)
    assert (request.references, request.faces) == ((), None)


def test_a_request_comes_back_into_the_form() -> None:
    request = GenerationRequest(
        hires=Hires(scale=1.5),
        controls=(Control(model="canny", threshold_a=100),),
        regions=(Region(prompt="a dog", area=(0.5, 0, 0.5, 1)),),
        clip_skip=2,
    )
    values = held(request, PATHS)
    assert GenerationRequest(**asked(values)) == request
    assert all(fits(path, value) for path, value in values.items())
    assert "start.image" not in values


@pytest.mark.parametrize("path", ["steps", "hires.scale", "controls.0.weight", "noise.delta", "start.resize_mode"])
def test_what_a_request_would_refuse_does_not_fit(path: str) -> None:
    assert not fits(path, "many")
    assert fits(path, default(path))


def test_every_field_has_words_and_bounds() -> None:
    words = tables()["en"]
    for path in PATHS:
        if path != "hires":
            assert "_".join(name for name in path.split(".") if not name.isdigit()) in words, path
    assert all(f"fold_{fold.key}" in words for fold in FOLDS)
    assert all(f"area_{name}" in words for name in AREAS)
    with gr.Blocks():
        scale = widget("hires.scale")
        assert isinstance(scale, gr.Slider)
        assert (scale.minimum, scale.maximum) == (1, 8)
        assert isinstance(widget("sampling.eta"), gr.Textbox)
        assert isinstance(widget("start.only_masked"), gr.Checkbox)
        mode = widget("controls.0.mode")
        assert isinstance(mode, gr.Dropdown)
        assert [value for _, value in mode.choices] == [
            "Balanced",
            "My prompt is more important",
            "ControlNet is more important",
        ]
