"""Runs `python -m pipelines.loading.convert` in a process of its own: it needs torch, and memory for a while."""

import asyncio
import subprocess
import sys
from pathlib import Path

from pipelines.errors import BadModel
from webui.config import HOME


async def converted(path: Path) -> Path:
    """Where the new file lies. Raises BadModel with the reason why there is none."""
    command = (sys.executable, "-m", "pipelines.loading.convert", str(path))
    process = await asyncio.create_subprocess_exec(*command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = await process.communicate()
    lines = (errors if process.returncode else output).decode(errors="replace").strip().splitlines()
    if process.returncode or not lines:
        raise BadModel(lines[-1] if lines else f"{path.name} could not be converted; the log tells more.")
    return Path(lines[-1])
