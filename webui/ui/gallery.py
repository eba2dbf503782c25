"""The page of all pictures in outputs/: its work is done by assets/gallery.js over /api/v1/images."""

from webui.ui.components import Shell, script


def page(shell: Shell) -> None:
    script("inkstone.gallery(element)", "gallery")
