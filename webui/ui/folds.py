"""The folds below the main settings of the Generate page: what can be done beyond prompt, size and steps. A fold is a
row of the table: paths of the request's fields, line by line."""

import json
from collections.abc import Callable
from typing import NamedTuple

import gradio as gr

from pipelines import needs
from pipelines.control.preprocessors import MODULES
from pipelines.types import Kind
from webui.i18n import t
from webui.studio import Studio
from webui.ui.components import script
from webui.ui.fields import default, widget
from webui.ui.form import DECIDES

Lines = tuple[tuple[str, ...], ...]


class Fold(NamedTuple):
    key: str
    """Of its words."""
    lines: Lines
    switch: str = ""
    """Path of a part that is on by a switch; the others are on by what is filled in."""
    repeat: int = 0
    """So many units of a part, each with these lines below `controls.0` and so on, in tabs of their own."""


CONTROL: Lines = (
    ("image",),
    ("model", "module"),
    ("weight", "mode"),
    ("start", "end"),
    ("resize_mode",),
    ("pixel_perfect", "resolution"),
    ("threshold_a", "threshold_b"),
)

FOLDS = (
    Fold(
        "start",
        (
            ("start.image",),
            ("start.denoising_strength", "start.resize_mode"),
            ("start.mask",),
            ("start.mask_blur", "start.masked_content"),
            ("start.only_masked", "start.mask_invert", "start.color_correction"),
            ("start.padding", "start.noise_multiplier"),
        ),
    ),
    Fold(
        "hires",
        (
            ("hires.upscaler", "hires.scale"),
            ("hires.denoising_strength", "hires.steps"),
            ("hires.sampler", "hires.schedule"),
            ("hires.cfg_scale", "hires.model"),
            ("hires.prompt",),
            ("hires.negative_prompt",),
        ),
        switch="hires",
    ),
    Fold("controls", CONTROL, repeat=3),
    Fold("references", (("image",), ("model", "weight"), ("start", "end")), repeat=2),
    Fold("regions", (("prompt",), ("area", "weight")), repeat=3),
    Fold("refiner", (("refiner.model", "refiner.switch_at"),)),
    Fold("faces", (("faces.model",), ("faces.visibility", "faces.weight"))),
    Fold(
        "noise",
        (
            ("noise.variation_seed", "noise.variation_strength"),
            ("noise.rng", "noise.delta"),
            ("tiling",),
        ),
    ),
    Fold(
        "sampling",
        (
            ("sampling.eta", "sampling.s_noise"),
            ("sampling.s_churn", "sampling.rho"),
            ("sampling.s_tmin", "sampling.s_tmax"),
            ("sampling.sigma_min", "sampling.sigma_max"),
            ("sampling.sgm_noise",),
        ),
    ),
    Fold(
        "guidance",
        (
            ("guidance.rescale", "guidance.pag"),
            ("guidance.start", "guidance.end"),
            ("guidance.min_sigma", "guidance.apg"),
            ("guidance.token_merging", "clip_skip"),
            ("emphasis",),
        ),
    ),
)

VALUES: dict[str, Callable[[Studio], list[str]]] = {
    "hires.upscaler": lambda studio: [*needs.UPSCALERS, *_names(studio, Kind.UPSCALER)],
    "hires.sampler": lambda studio: ["", *(studio.capabilities.samplers if studio.capabilities else ())],
    "hires.schedule": lambda studio: ["", *(studio.capabilities.schedules if studio.capabilities else ())],
    "hires.model": lambda studio: ["", *_names(studio, Kind.CHECKPOINT)],
    "refiner.model": lambda studio: ["", *_names(studio, Kind.CHECKPOINT)],
    "faces.model": lambda studio: ["", *_names(studio, Kind.FACE_RESTORER)],
    "controls.model": lambda studio: ["", *_names(studio, Kind.CONTROLNET), *_names(studio, Kind.T2I_ADAPTER)],
    "controls.module": lambda studio: [module.name for module in MODULES],
    "references.model": lambda studio: ["", *_names(studio, Kind.IP_ADAPTER)],
}
"""Of the fields whose choices are files and what the worker can do."""


def _names(studio: Studio, kind: Kind) -> list[str]:
    return [info.name for info in studio.registry.all(kind)]


def values(studio: Studio, path: str) -> list[str] | None:
    """The choices of a field as they are now; None for one whose choices never change."""
    key = ".".join(name for name in path.split(".") if not name.isdigit())
    return VALUES[key](studio) if key in VALUES else None


def build(studio: Studio) -> dict[str, gr.components.Component]:
    """All folds, closed; the widgets by the paths of their fields."""
    fields: dict[str, gr.components.Component] = {}
    shown: dict[str, list[str]] = {}
    for fold in FOLDS:
        before = set(fields)
        with gr.Accordion(t(f"fold_{fold.key}"), open=False, elem_id=f"txt2img_fold_{fold.key}"):
            if fold.switch:
                name = f"{fold.switch}_on"
                fields[fold.switch] = gr.Checkbox(False, label=t(name), interactive=True, elem_id=f"txt2img_{name}")
            if fold.repeat:
                with gr.Tabs():
                    for unit in range(fold.repeat):
                        with gr.Tab(str(unit + 1)):
                            fields |= _lines(studio, fold.lines, f"{fold.key}.{unit}.")
            else:
                fields |= _lines(studio, fold.lines)
        shown[fold.key] = [path for path in fields if path not in before]
    known = {path: default(path) for paths in shown.values() for path in paths if path != "hires"}
    script(
        "inkstone.folds(props.value)", "txt2img_summaries", value=json.dumps([shown, known, DECIDES]), visible="hidden"
    )
    return fields


def _lines(studio: Studio, lines: Lines, prefix: str = "") -> dict[str, gr.components.Component]:
    fields = {}
    for line in lines:
        with gr.Row(elem_classes=["fields"]):
            for name in line:
                path = prefix + name
                fields[path] = widget(path, tuple(values(studio, path) or ()))
    return fields
