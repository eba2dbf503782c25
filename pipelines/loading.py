"""Reads the parts of a model folder in diffusers' layout, and says in a sentence what is wrong with a broken one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipelines.device import choose_dtype
from pipelines.errors import BadModel, ModelNotFound


def check_folder(path: Path, parts: tuple[str, ...]) -> None:
    if not path.exists():
        raise ModelNotFound(f"The model's files are gone: there is nothing at {path}. Refresh the list of models.")
    if not path.is_dir():
        raise BadModel(f"{path.name} is a single file. So far only folders in diffusers' layout can be loaded.")
    missing = [part for part in parts if not (path / part).exists()]
    if missing:
        raise BadModel(f"The model {path.name} lacks {', '.join(missing)}. Download it again.")


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(config, dict):
        raise _broken(path, "it holds no settings")
    return config


def load_module(load: Callable[..., Any], folder: Path, device: torch.device) -> Any:
    """A network by its class's `from_pretrained`, which fills gaps with random numbers: here a gap is an error."""
    options = {"dtype": choose_dtype(device), "use_safetensors": True, "output_loading_info": True}
    module, report = load_part(load, folder, **options)
    gaps = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if gaps:
        raise _broken(folder, f"{len(gaps)} of its weights are missing or of another size, such as {gaps[0]}")
    return module.to(device).eval().requires_grad_(False)


def load_part(load: Callable[..., Any], folder: Path, **options: Any) -> Any:
    """What these libraries raise about a broken file is theirs to choose, and they choose a good many."""
    try:
        return load(folder, local_files_only=True, **options)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise _broken(folder, str(error) or type(error).__name__) from error


def _broken(part: Path, reason: str) -> BadModel:
    """The first sentence of the reason will do: the rest is advice on calling the library."""
    sentence = reason.strip().partition("\n")[0].partition(". ")[0].rstrip(".")[:200]
    return BadModel(f"The model cannot be loaded, {part} is broken or of another kind ({sentence}). Download it again.")
