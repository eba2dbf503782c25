"""What preprocessors are given and give."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]
"""RGB, [height, width, 3], 8 bit."""


@dataclass(frozen=True)
class Settings:
    a: float
    b: float
    device: torch.device
    file: Callable[[str], Path | None]
    """Variant of a file of `Kind.PREPROCESSOR` -> where it is; None if there is none."""
    note: Callable[[str], None]


Annotate = Callable[[Array, Settings], Array]
