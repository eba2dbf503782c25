"""The pages. One module a page; a page is a function from Shell to nothing, called inside its tab."""

import json
from typing import Any

import gradio as gr

from webui.i18n import gradio_tables, t, tables
from webui.studio import Studio
from webui.ui import gallery, generate, models, theme
from webui.ui.components import ASSETS, Shell, asset, choice, script

PAGES = {
    "txt2img": ("tab_generate", generate.page),
    "gallery": ("tab_gallery", gallery.page),
    "models": ("tab_models", models.page),
}
"""A new page is a module and a row here."""

SCRIPTS = (
    *("core.js", "live.js", "viewer.js", "header.js", "pictures.js", "folds.js", "stage.js", "plan.js"),
    *("gallery.js", "models.js"),
)


def build(studio: Studio) -> gr.Blocks:
    """All pages as tabs of one document: switching is instant, and nothing that was typed is lost."""
    names = [info.name for info in studio.models()]
    with gr.Blocks(title="Inkstone", fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        with gr.Row(elem_id="quicksettings"):
            script("inkstone.brand(element)", "brand", scale=0, min_width=0)
            model = choice(
                "model",
                names,
                studio.default_model() if names else None,
                elem_id="setting_sd_model_checkpoint",
                container=False,
                scale=0,
                min_width=240,
            )
            status = script("inkstone.status(element, () => trigger('greeted'))", "status", scale=1, min_width=0)
        with gr.Tabs(elem_id="tabs") as tabs:
            shell = Shell(studio, blocks, tabs, model, status)
            for name, (label, page) in PAGES.items():
                with gr.Tab(t(label), id=name, elem_id=f"tab_{name}"):
                    page(shell)
    return blocks


def mount_options() -> dict[str, Any]:
    """For `gr.mount_gradio_app`: Blocks() would drop theme, css and head silently."""
    return {
        "theme": theme.make(),
        "head": _head(),
        "i18n": gradio_tables(),
        "favicon_path": str(ASSETS / "inkstone.svg"),
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "allowed_paths": [],
        "max_file_size": "50mb",
        "show_error": True,
    }


def _head() -> str:
    """Our style and scripts, within the page: nothing to load, nothing to cache wrongly after an update.

    The style is not given as `css`: Gradio would write each rule twice and confine those in @media to its own tree.
    """
    words = json.dumps(tables(), ensure_ascii=False).replace("</", "<\\/")
    mark = json.dumps(asset("inkstone.svg")).replace("</", "<\\/")
    parts = (f"window.inkstone = {{tables: {words}, mark: {mark}}};", *(asset(name) for name in SCRIPTS))
    style = f"<style>{asset('style.css')}</style>"
    return f'<meta name="color-scheme" content="light dark">{style}<script>{"".join(parts)}</script>'
