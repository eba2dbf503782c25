"""The page of all model files, and of those on their way: its work is done by assets/models.js over /api/v1/models."""

from typing import Any

import gradio as gr

from webui.ui.components import QUIET, Shell, chosen, script


def page(shell: Shell) -> None:
    table = script("inkstone.models(element, (name) => trigger('chosen', {name}))", "models")
    native = [shell.form[name] for name in ("width", "height", "cfg_scale")]

    async def use(event: gr.EventData) -> dict[Any, Any]:
        """To the Generate page, with the size and the guidance that the model likes best."""
        name = str(event.name)
        values = await chosen(shell, name)
        tabs = gr.Tabs(selected="txt2img")
        return {shell.model: name, shell.tabs: tabs, **dict(zip(native, values, strict=True))}

    table.chosen(use, None, [shell.model, shell.tabs, *native], **QUIET)
