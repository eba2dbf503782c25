"""The text in a picture that makes it again, both ways, in the format of A1111 that every tool of this field reads."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from pipelines.choices import read_sampler, read_schedule
from pipelines.errors import PipelineError, UnknownChoice
from pipelines.fields import put
from pipelines.frozen import Frozen
from pipelines.infotext.rows import OTHER_NAMES, ROWS, SAME
from pipelines.infotext.text import line, pairs, pairs_in, written
from pipelines.library.lora_card import lora_hash
from pipelines.plot import Plot
from pipelines.prompt.tags import names_in
from pipelines.request import Control, Faces, GenerationRequest, Hires, Refiner, Start
from pipelines.types import Kind, ModelInfo, file_key

__all__ = ["Read", "dump", "line", "load", "pairs", "pairs_in"]

NO_FILES: Mapping[str, ModelInfo] = {}
PLAIN = GenerationRequest()
PARTS: dict[str, Frozen] = {
    "start": Start(image="-"),
    "hires": Hires(),
    "refiner": Refiner(model="-"),
    "faces": Faces(model="-"),
}
"""Parts of a request that may be missing, as they are by default."""

TOLD = {"Size", "Model", "Model hash", "VAE", "VAE hash", "Version", "User", "Lora hashes", "TI hashes", "Hires resize"}
TOLD |= {"Script", *(f"{letter} {what}" for letter in "XYZ" for what in ("Type", "Values"))}
"""Labels beside the table that are read, or that say nothing to us."""


class Read(NamedTuple):
    """What a text asks for; what of it cannot be done; and what names its checkpoint if no file has that name."""

    request: GenerationRequest
    notes: tuple[str, ...]
    model_hash: str


def dump(
    request: GenerationRequest, unit: int, model: ModelInfo, version: str, files: Mapping[str, ModelInfo] = NO_FILES
) -> str:
    """The infotext of image `unit` of a resolved request; `files`: what else it names, as a job holds it."""
    plotted: dict[str, str] = {}
    if request.plot and unit == request.units:
        plotted, unit = _plot(request.plot), 0
    elif request.plot:
        request, unit = request.cell(unit), 0
        model = files.get(file_key(Kind.CHECKPOINT, request.checkpoint), model)
    request = request.spoken(unit)
    values: dict[str, str] = {}
    of_unit = _of_unit(request, unit)
    for row in ROWS:
        value = _at(request, row.path)
        if row.label in of_unit:
            values[row.label] = of_unit[row.label]
        elif value is not None and (row.always or value != _default(row.path)):
            values[row.label] = row.write(value)
        if row.label == "Face restoration":
            values |= _models(request, model)
    if request.hires and (request.hires.width or request.hires.height):
        values["Hires resize"] = f"{request.hires.width}x{request.hires.height}"
    values |= {f"ControlNet {n}": _control(control) for n, control in enumerate(request.controls)}
    if hashes := _loras(request, files):
        values["Lora hashes"] = hashes
    values |= plotted
    values["Version"] = f"Inkstone {version}"
    return written(request.prompt, request.negative_prompt, values)


def load(text: str) -> Read:
    """What it does not name keeps its default. Raises PipelineError for values that do not fit."""
    prompt, negative, found = pairs(text)
    found = {OTHER_NAMES.get(label, label): value for label, value in found.items() if value not in SAME}
    asked: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative, "model": found.get("Model", "")}
    if "VAE" in found:
        asked["vae"] = found["VAE"]
    if modules := tuple(found[f"Module {n}"] for n in range(1, 5) if f"Module {n}" in found):
        asked["text_encoders"] = modules
    try:
        for row in ROWS:
            if row.label in found:
                put(asked, row.path, row.read(found[row.label]))
        if "Size" in found:
            asked["width"], asked["height"] = map(int, found["Size"].split("x"))
        if "Hires resize" in found:
            hires = asked.setdefault("hires", {})
            hires["width"], hires["height"] = map(int, found["Hires resize"].split("x"))
        notes = _settled(asked, found)
        return Read(GenerationRequest(**asked), notes, found.get("Model hash", ""))
    except (ValueError, ValidationError) as error:
        raise PipelineError(f"This infotext holds values that do not fit: {error}") from error


def _settled(asked: dict[str, Any], found: Mapping[str, str]) -> tuple[str, ...]:
    """Parts that are not whole are left out; gives the sentences about what cannot be done."""
    notes = _chosen(asked) + (_chosen(asked["hires"]) if "hires" in asked else [])
    start = asked.pop("start", {})
    if "hires" in asked and "denoising_strength" in start:
        asked["hires"]["denoising_strength"] = start.pop("denoising_strength")
    if start:
        notes.append("It was made from another picture, which is not in it: give it on the Edit page.")
    if "refiner" in asked and "model" not in asked["refiner"]:
        del asked["refiner"]
    if any(label.startswith("ControlNet") for label in found):
        notes.append("It followed pictures (ControlNet), which are not in it: give them again.")
    known = {row.label for row in ROWS} | TOLD
    unknown = [label for label in found if label not in known and not re.fullmatch(r"(Module|ControlNet) \d+", label)]
    if unknown:
        notes.append(f"Not used: {', '.join(unknown)}.")
    return tuple(notes)


def _chosen(part: dict[str, Any]) -> list[str]:
    """Sampler and schedule of a pass by our names: "DPM++ 2M Karras" was A1111's until 1.9. What nobody knows is left
    out; gives the sentences about that."""
    notes = []
    try:
        if "sampler" in part:
            part["sampler"], schedule = read_sampler(part["sampler"])
            part |= {"schedule": schedule} if schedule else {}
    except UnknownChoice as error:
        notes.append(str(error))
        del part["sampler"]
    try:
        if "schedule" in part:
            part["schedule"] = read_schedule(part["schedule"])
    except UnknownChoice as error:
        notes.append(str(error))
        del part["schedule"]
    return notes


def _of_unit(request: GenerationRequest, unit: int) -> dict[str, str]:
    """What does not stand in the request under its own path: each image has its seed, and a hires pass the strength."""
    values = {"Seed": str(request.seed_of(unit))}
    if request.noise.variation_strength:
        values["Variation seed"] = str(request.noise.variation_seed + unit)
    if request.hires and not request.start:
        values["Denoising strength"] = f"{request.hires.denoising_strength:g}"
    return values


def _models(request: GenerationRequest, model: ModelInfo) -> dict[str, str]:
    values = {"Size": f"{request.width}x{request.height}"}
    values |= {"Model hash": model.sha256[:10]} if model.sha256 else {}
    values["Model"] = model.name
    if vae := model.companions.get("vae"):
        values |= {"VAE hash": vae.sha256[:10]} if vae.sha256 else {}
        values["VAE"] = vae.name
    elif request.vae == "None":
        values["VAE"] = "None"
    encoders = [info for _, info in sorted(model.companions.items()) if info.kind == Kind.TEXT_ENCODER]
    return values | {f"Module {n}": encoder.name for n, encoder in enumerate(encoders, 1)}


def _loras(request: GenerationRequest, files: Mapping[str, ModelInfo]) -> str:
    """`name: hash` of each that the prompts name. Reads a file whose hash is not known yet."""
    prompts = (request.prompt, *((request.hires.prompt,) if request.hires else ()))
    found = {name: files.get(file_key(Kind.LORA, name)) for name in names_in(*prompts)}
    hashes = {re.sub("[:,]", "", name): lora_hash(info) for name, info in found.items() if info}
    return ", ".join(f"{name}: {digits}" for name, digits in hashes.items() if digits)


def _plot(plot: Plot) -> dict[str, str]:
    """Of the sheet of a plot, as A1111 names its script."""
    values = {"Script": "X/Y/Z plot"}
    for letter, axis in zip("XYZ", plot.axes, strict=False):
        values |= {f"{letter} Type": axis.name, f"{letter} Values": ", ".join(change.label for change in axis.changes)}
    return values


def _control(control: Control) -> str:
    """As the ControlNet extension writes a unit."""
    values = {
        "Module": control.module,
        "Model": control.model,
        "Weight": f"{control.weight:g}",
        "Resize Mode": control.resize_mode,
        **({} if control.pixel_perfect else {"Processor Res": str(control.resolution)}),
        **{f"Threshold {x}": f"{value:g}" for x, value in _thresholds(control) if value is not None},
        "Guidance Start": f"{control.start:g}",
        "Guidance End": f"{control.end:g}",
        "Pixel Perfect": str(control.pixel_perfect),
        "Control Mode": control.mode,
        **({"Hr Option": control.hr_option} if control.hr_option != "Both" else {}),
    }
    return line(values)


def _thresholds(control: Control) -> tuple[tuple[str, float | None], ...]:
    return ("A", control.threshold_a), ("B", control.threshold_b)


def _at(request: Any, path: str) -> Any:
    """None where the part is not there."""
    for name in path.split("."):
        request = getattr(request, name, None)
    return request


def _default(path: str) -> Any:
    part, _, field = path.partition(".")
    return _at(PARTS[part], field) if part in PARTS else _at(PLAIN, path)
