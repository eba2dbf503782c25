"""The table of model families. One module each says which networks it takes, how they encode, predict and decode."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.loading.parts import Family

Row = Callable[[], "Family"]


def row(module: str, name: str) -> Row:
    """Looked up when a model is loaded: diffusers takes seconds to import, and each family only imports its own."""

    def family() -> "Family":
        found: Family = getattr(import_module(f"pipelines.families.{module}"), name)
        return found

    return family


FAMILIES: Mapping[str, Row] = {
    "sd1": row("sd1", "FAMILY"),
    "sd2": row("sd2", "FAMILY"),
    "sdxl": row("sdxl", "FAMILY"),
    "sd3": row("sd3", "SD3_FAMILY"),
    "flux": row("flux", "FLUX"),
    "flux2": row("flux2", "FLUX2"),
    "z_image": row("zimage", "Z_IMAGE"),
    "qwen_image": row("qwen", "QWEN_IMAGE"),
}

VARIANTS: Mapping[tuple[str, str], Row] = {("sdxl", "refiner"): row("sdxl", "REFINER")}
"""Family and variant, where a variant has other networks than its family."""
