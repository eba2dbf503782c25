"""The table of preprocessors: how a picture becomes what a ControlNet follows. Names, ranges and defaults are A1111's.

No torch: pages, the API and the check of a request read it. `annotators/` does the work.
"""

from typing import NamedTuple

from pipelines.errors import UnknownChoice


class Slider(NamedTuple):
    """A setting of one preprocessor."""

    label: str
    low: float
    high: float
    step: float
    default: float


class Module(NamedTuple):
    name: str
    """As A1111's API calls it."""
    type: str = ""
    """A1111's control type: what kind of ControlNet it is for; empty: any."""
    a: Slider | None = None
    b: Slider | None = None
    file: str = ""
    """The variant of a file of `Kind.PREPROCESSOR` that it needs; empty: none."""
    labels: tuple[str, ...] = ()
    """Other names of the very same thing; the first is that on A1111's page."""
    instead_of: tuple[str, ...] = ()
    """Others of its kind, which are not here: it is used in their place, and that is said."""
    sized: bool = False
    """Its resolution can be chosen."""
    alone: bool = False
    """It needs no ControlNet."""


def _percent(label: str, default: float) -> Slider:
    return Slider(label, 0, 1, 0.01, default)


MODULES = (
    Module("none"),
    Module(
        "canny", "Canny", Slider("Low threshold", 1, 255, 1, 100), Slider("High threshold", 1, 255, 1, 200), sized=True
    ),
    Module(
        "lineart_standard",
        "Lineart",
        labels=("lineart_standard (from white bg & black line)",),
        instead_of=("lineart_coarse", "lineart_anime", "lineart_anime_denoise"),
        sized=True,
    ),
    Module("lines", "MLSD", instead_of=("mlsd",), sized=True),
    Module("scribble_xdog", "Scribble", Slider("XDoG threshold", 1, 64, 1, 32), sized=True),
    Module("tile_resample", "Tile", Slider("Down sampling rate", 1, 8, 0.01, 1)),
    Module("tile_colorfix", "Tile", Slider("Variation", 3, 32, 1, 8)),
    Module("tile_colorfix+sharp", "Tile", Slider("Variation", 3, 32, 1, 8), Slider("Sharpness", 0, 2, 0.01, 1)),
    Module("blur_gaussian", "Tile", Slider("Sigma", 0.01, 64, 0.01, 9), sized=True),
    Module("shuffle", "Shuffle", sized=True),
    Module("color", "T2I-Adapter", labels=("t2ia_color_grid",), sized=True),
    Module("invert", "", labels=("invert (from white bg & black line)",)),
    Module("threshold", "", Slider("Binarization threshold", 0, 255, 1, 127), sized=True),
    Module("inpaint", "Inpaint", labels=("inpaint_global_harmonious",)),
    Module("inpaint_only", "Inpaint", instead_of=("inpaint_only+lama",)),
    Module("recolor_luminance", "Recolor", Slider("Gamma correction", 0.1, 2, 0.001, 1)),
    Module("recolor_intensity", "Recolor", Slider("Gamma correction", 0.1, 2, 0.001, 1)),
    Module("reference_only", "Reference", _percent("Style fidelity", 0.5), alone=True),
    Module("reference_adain", "Reference", _percent("Style fidelity", 0.5), alone=True),
    Module("reference_adain+attn", "Reference", _percent("Style fidelity", 0.5), alone=True),
    Module(
        "ip-adapter-auto",
        "IP-Adapter",
        labels=(
            "ip-adapter_clip_sd15",
            "ip-adapter_clip_sdxl",
            "ip-adapter_clip_sdxl_plus_vith",
            "ip-adapter_clip_h",
            "ip-adapter_clip_g",
        ),
    ),
)


class UnionType(NamedTuple):
    """What a Union ControlNet can be told that it follows; numbers are places in its table, None: it has none."""

    name: str
    sdxl: int | None
    flux: int | None
    types: tuple[str, ...]
    """Control types of modules, or modules, that mean it."""


UNION_TYPES = (
    UnionType("OpenPose", 0, 4, ("OpenPose",)),
    UnionType("Depth", 1, 2, ("Depth",)),
    UnionType("Soft Edge", 2, None, ("SoftEdge", "Scribble")),
    UnionType("Hard Edge", 3, 0, ("Canny", "Lineart", "MLSD")),
    UnionType("Normal Map", 4, None, ("NormalMap",)),
    UnionType("Segmentation", 5, None, ("Segmentation",)),
    UnionType("Tile", 6, 1, ("Tile",)),
    UnionType("Inpaint", 7, None, ("Inpaint",)),
    UnionType("Blur", 6, 3, ("blur_gaussian",)),
    UnionType("Gray", None, 5, ("Recolor",)),
    UnionType("Low Quality", None, 6, ()),
)
"""SDXL: xinsir's controlnet-union-sdxl-1.0 and its ProMax; Flux: Shakker Labs' and InstantX' Union."""


class Found(NamedTuple):
    module: Module
    stands_in: bool
    """It is another one than was asked for."""


def module_named(name: str) -> Found:
    """By any of its names, in any case. Raises UnknownChoice."""
    asked = name.strip().lower()
    for module in MODULES:
        if asked in (module.name, *(label.lower() for label in module.labels)):
            return Found(module, False)
    for module in MODULES:
        if asked in module.instead_of:
            return Found(module, True)
    raise UnknownChoice("preprocessor", name, [module.name for module in MODULES])


def union_type(name: str, module: Module) -> UnionType:
    """By its name, else by what the module makes. Raises UnknownChoice."""
    asked = name.lower().replace(" ", "")
    for row in UNION_TYPES:
        if asked == row.name.lower().replace(" ", "") or (asked and asked in (kind.lower() for kind in row.types)):
            return row
    if not asked:
        fitting = [row for row in UNION_TYPES if module.name in row.types or module.type in row.types]
        if fitting:
            return fitting[-1]
    raise UnknownChoice("union type", name or "(none)", [row.name for row in UNION_TYPES])


def setting(slider: Slider | None, value: float | None) -> float:
    """Within its range; the default where there is none, or A1111's -1."""
    if slider is None:
        return 0.0
    return slider.default if value is None or value < 0 else min(max(value, slider.low), slider.high)
