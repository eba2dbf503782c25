"""The page of all model files, and of those on their way: its work is done by assets/models.js over /api/v1/models."""

import gradio as gr

from webui.ui.components import QUIET, Shell, script


def page(shell: Shell) -> None:
    table = script("inkstone.models(element, (name) => trigger('chosen', {name}))", "models")

    def chosen(event: gr.EventData) -> dict[object, object]:
        return {shell.model: gr.update(value=event.name), shell.tabs: gr.Tabs(selected="txt2img")}

    table.chosen(chosen, None, [shell.model, shell.tabs], **QUIET)
