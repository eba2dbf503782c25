"""The page that makes pictures. Inputs are named after GenerationRequest's fields: none is matched by position."""

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gradio as gr
from pydantic import ValidationError

from pipelines import infotext
from pipelines.errors import PipelineError
from pipelines.request import GenerationRequest
from pipelines.types import Kind
from webui.i18n import t
from webui.ui import folds
from webui.ui.components import (
    MAY_FAIL,
    QUIET,
    Shell,
    choice,
    chosen,
    native,
    number,
    script,
    slider,
    small_button,
    sorry,
    text,
)
from webui.ui.form import asked, fits, held

DEFAULTS = GenerationRequest(prompt="a castle, 3d render")
"""What the form holds at the very first visit; the prompt is something that the starter model draws well."""

STAGE = (
    "inkstone.stage(element, (infotext) => trigger('wanted', {infotext}), (picture) => trigger('chosen', {picture}))"
)

Values = Mapping[Any, Any]


def page(shell: Shell) -> None:
    with gr.Row(elem_id="txt2img"):
        with gr.Column(scale=34, min_width=320, elem_id="txt2img_settings"):
            fields = _form(shell)
            script("inkstone.plan(element)", "txt2img_plan")
            go = gr.Button(t("generate"), variant="primary", elem_id="txt2img_generate")
        with gr.Column(scale=66, min_width=320, elem_id="txt2img_results"):
            stage = script(STAGE, "txt2img_gallery")
    go.click(_submitter(shell, fields), set(fields.values()), None, **MAY_FAIL)
    go.click(None, js="() => inkstone.showStage()", **QUIET)
    _keep(shell, fields)
    _take_over(shell, fields, stage)


def _form(shell: Shell) -> dict[str, gr.components.Component]:
    width, height, cfg_scale = native(shell, DEFAULTS.model)
    fields: dict[str, gr.components.Component] = {"model": shell.model}
    with gr.Column(scale=0, elem_id="txt2img_prompt_row"):  # apart, so that phones can keep it above the thumb
        fields["prompt"] = text("prompt", 3, DEFAULTS.prompt, elem_id="txt2img_prompt")
    fields["negative_prompt"] = text("negative_prompt", 2, elem_id="txt2img_neg_prompt")
    with gr.Row(elem_classes=["fields"]):
        fields["width"] = number("width", width, **SIDE, elem_id="txt2img_width")
        swap = small_button("swap", "txt2img_res_switch_btn")
        fields["height"] = number("height", height, **SIDE, elem_id="txt2img_height")
    with gr.Row(elem_classes=["fields"]):
        fields["steps"] = slider("steps", DEFAULTS.steps, minimum=1, maximum=150, step=1, elem_id="txt2img_steps")
        fields["cfg_scale"] = slider(
            "cfg_scale", cfg_scale, minimum=0, maximum=30, step=0.5, elem_id="txt2img_cfg_scale"
        )
    with gr.Row(elem_classes=["fields"]):
        fields["sampler"] = choice("sampler", [DEFAULTS.sampler], DEFAULTS.sampler, elem_id="txt2img_sampling")
        fields["schedule"] = choice("schedule", [DEFAULTS.schedule], DEFAULTS.schedule, elem_id="txt2img_scheduler")
    with gr.Row(elem_classes=["fields"]):
        fields["seed"] = number("seed", DEFAULTS.seed, minimum=-1, elem_id="txt2img_seed")
        randomise = small_button("random", "txt2img_random_seed")
        reuse = small_button("reuse", "txt2img_reuse_seed")
    with gr.Row(elem_classes=["fields"]):
        fields["batch_count"] = number("batch_count", 1, minimum=1, maximum=100, elem_id="txt2img_batch_count")
        fields["batch_size"] = number("batch_size", 1, minimum=1, maximum=16, elem_id="txt2img_batch_size")

    fields |= folds.build(shell.studio)
    with gr.Accordion(t("model_parts"), open=False, elem_id="txt2img_parts"):
        fields["vae"] = choice("vae", VAES, DEFAULTS.vae, elem_id="setting_sd_vae")
        fields["text_encoders"] = choice("text_encoders", [], [], multiselect=True, elem_id="setting_text_encoders")

    shell.form.update(fields)
    sides = [fields["width"], fields["height"]]
    swap.click(None, sides, sides, js="(width, height) => [height, width]", **QUIET)
    randomise.click(None, None, fields["seed"], js="() => -1", **QUIET)
    reuse.click(None, fields["seed"], fields["seed"], js="(seed) => inkstone.seed() ?? seed", **QUIET)
    shell.model.input(partial(chosen, shell), shell.model, [*sides, fields["cfg_scale"]], **QUIET)
    return fields


VAES = ("Automatic", "None")
SIDE: dict[str, Any] = {"minimum": 64, "maximum": 4096, "step": 8, "min_width": 96}


def _submitter(shell: Shell, fields: Mapping[str, Any]) -> Callable[[Values], Any]:
    async def submit(values: Values) -> None:
        """Only puts it into the queue: progress and pictures come over the page's own channel."""
        wanted = asked({path: values[field] for path, field in fields.items()})
        try:
            await shell.studio.submit(GenerationRequest(**wanted))
        except ValidationError as error:
            raise sorry(_sentence(error)) from error
        except PipelineError as error:
            raise sorry(error) from error

    return submit


def _sentence(error: ValidationError) -> str:
    return " ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}." for each in error.errors()
    )


def _keep(shell: Shell, fields: Mapping[str, Any]) -> None:
    """The form outlives the tab: each change is kept in the browser, without a request."""
    saved = gr.BrowserState({}, storage_key="inkstone-form", secret="inkstone")  # the secret is sent to the page: none
    kept = list(fields.values())
    names = json.dumps(list(fields))
    gr.on(
        [field.change for field in kept],
        None,
        [saved, *kept],
        saved,
        js=f"(saved, ...values) => inkstone.form(saved, {names}, values)",
        **QUIET,
    )

    def opened(values: dict[str, Any]) -> dict[Any, Any]:
        updates = _refresh(shell, fields)
        for name, value in values.items():
            if name in fields and _acceptable(fields[name], name, value):
                updates[fields[name]] = updates.get(fields[name], {}) | gr.update(value=value)
        return updates

    begin = f"(...values) => {{ inkstone.formIsReady = true; inkstone.form(null, {names}, values) }}"
    shell.blocks.load(opened, saved, kept, **QUIET).then(None, kept, None, js=begin, **QUIET)
    shell.status.greeted(lambda: _refresh(shell, fields), None, kept, **QUIET)


def _take_over(shell: Shell, fields: Mapping[str, Any], stage: gr.HTML) -> None:
    """The settings of a picture, back into the form."""

    def wanted(event: gr.EventData) -> dict[Any, Any]:
        try:
            request, notes, _ = infotext.load(str(event.infotext))
        except PipelineError as error:
            raise sorry(error) from error
        for note in notes:
            gr.Info(note)
        values = held(request, fields)
        fitting = {fields[path]: value for path, value in values.items() if _acceptable(fields[path], path, value)}
        return {**fitting, shell.tabs: gr.Tabs(selected="txt2img")}

    async def chosen_picture(event: gr.EventData) -> dict[Any, Any]:
        """To start from; it is kept, so that it is still there when its file is deleted."""
        try:
            name = await asyncio.to_thread(shell.studio.inputs.named, str(event.picture))
        except PipelineError as error:
            raise sorry(error) from error
        return {fields["start.image"]: name, fields["start.mask"]: "", shell.tabs: gr.Tabs(selected="txt2img")}

    start = [fields["start.image"], fields["start.mask"]]
    stage.wanted(wanted, None, [*fields.values(), shell.tabs], **MAY_FAIL)
    stage.chosen(chosen_picture, None, [*start, shell.tabs], **MAY_FAIL)


def _refresh(shell: Shell, fields: Mapping[str, Any]) -> dict[Any, Any]:
    """Fill the drop-downs from the disk and from the worker's greeting; for this page, later ones and the checks."""
    able, registry = shell.studio.capabilities, shell.studio.registry
    choices = {
        "model": [info.name for info in shell.studio.models()],
        "vae": [*VAES, *(info.name for info in registry.all(Kind.VAE))],
        "text_encoders": [info.name for info in registry.all(Kind.TEXT_ENCODER)],
        "sampler": list(able.samplers) if able else [],
        "schedule": list(able.schedules) if able else [],
    }
    choices |= {path: names for path in fields if (names := folds.values(shell.studio, path))}
    known = {fields[name]: [(each or "-", each) for each in names] for name, names in choices.items() if names}
    if any(field.choices != pairs for field, pairs in known.items()):
        for field, pairs in known.items():
            field.choices = pairs
        shell.blocks.config = shell.blocks.get_config_file()
    return {field: gr.update(choices=pairs) for field, pairs in known.items()}


def _acceptable(field: Any, name: str, value: Any) -> bool:
    """Whether what a browser kept may go back into the form: models go away, and versions differ."""
    if not fits(name, value):
        return False
    wanted = value if isinstance(value, list | tuple) else [value]
    return not isinstance(field, gr.Dropdown) or set(wanted) <= {pair[1] for pair in field.choices}
