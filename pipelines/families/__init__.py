"""The table of model families. One module each says how to load, encode, predict and decode; nothing else differs."""

from collections.abc import Callable
from pathlib import Path

import torch

from pipelines.families.base import LoadedModel

Load = Callable[[Path, torch.device], LoadedModel]


def _sd1(path: Path, device: torch.device) -> LoadedModel:
    from pipelines.families.sd1 import SD1  # diffusers takes seconds to import: only when a model is loaded

    return SD1.load(path, device)


FAMILIES: dict[str, Load] = {"sd1": _sd1}
