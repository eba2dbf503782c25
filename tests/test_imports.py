"""What an import may cost, and what the web process must never load."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers")


def loaded_by(code: str) -> set[str]:
    """The top-level modules in a fresh Python after this code."""
    code = f"import sys; {code}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_command_itself_is_light() -> None:
    """The port must be bound within half a second."""
    assert not loaded_by("import app, webui.front, webui.security") & {*HEAVY, "gradio", "fastapi", "numpy", "PIL"}


@pytest.mark.parametrize(
    "module",
    [
        *("pipelines.engine", "pipelines.process_engine", "pipelines.library.registry", "pipelines.library.watcher"),
        *(
            "pipelines.memory.planner",
            "pipelines.infotext",
            "pipelines.prompt",
            "pipelines.choices",
            "pipelines.stages",
        ),
    ],
)
def test_the_light_half_of_pipelines(module: str) -> None:
    assert not loaded_by(f"import {module}") & {*HEAVY, "numpy", "gradio"}


def test_the_web_side_loads_no_torch() -> None:
    assert not loaded_by("import webui.studio, webui.downloads, webui.api, webui.ui, extensions.loader") & set(HEAVY)
