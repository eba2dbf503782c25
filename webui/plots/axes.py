"""The table of axes of an X/Y/Z plot, by A1111's names: how values are read, what they change, what a change costs."""

import random
from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

from pydantic import JsonValue

from pipelines import needs
from pipelines.choices import AUTOMATIC, meant
from pipelines.plot import MOST_CELLS, Axis, Change
from pipelines.request import SEED_LIMIT, GenerationRequest
from webui.plots.values import BadValues, numbers, whole_numbers, words

Read = Callable[[str, GenerationRequest], list[Change]]
"""(what was typed, the request that is plotted) -> the values of the axis."""

RELOADS, SWAPS, REDRAWS = 1.0, 0.5, 0.0
"""A checkpoint is loaded; a part of one is; only the picture is drawn again."""


class Row(NamedTuple):
    name: str
    read: Read
    cost: float = REDRAWS
    choices: str = ""
    """The field whose choices can be filled in, for pages; empty: numbers or words of one's own."""


def _set(path: str, value: JsonValue) -> Change:
    return Change(label=f"{value:g}" if isinstance(value, float) else str(value), update={path: value})


def whole(path: str) -> Read:
    return lambda text, request: [_set(path, value) for value in whole_numbers(text)]


def number(path: str) -> Read:
    return lambda text, request: [_set(path, value) for value in numbers(text)]


def seeds(path: str) -> Read:
    """-1 draws one: frozen now, so that a crash changes nothing."""
    return lambda text, request: [
        _set(path, value if value >= 0 else random.randrange(SEED_LIMIT)) for value in whole_numbers(text)
    ]


def exact(path: str) -> Read:
    """Words as they are: a VAE may be called None."""
    return lambda text, request: [_set(path, value) for value in words(text)]


def faces(text: str, request: GenerationRequest) -> list[Change]:
    """None is without any."""
    return [
        Change(label=each, update={"faces": None} if each.lower() == "none" else {"faces.model": each})
        for each in words(text)
    ]


def samplers(part: str) -> Read:
    """By any of its names; one that says its schedule too, such as DPM++ 2M Karras, sets that as well."""

    def read(text: str, request: GenerationRequest) -> list[Change]:
        changes = []
        for each in words(text):
            sampler, schedule = meant(each, AUTOMATIC)
            update: dict[str, JsonValue] = {f"{part}sampler": sampler}
            update |= {f"{part}schedule": schedule} if schedule != AUTOMATIC else {}
            changes.append(Change(label=each, update=update))
        return changes

    return read


def flag(path: str) -> Read:
    return lambda text, request: [_set(path, value.lower() in ("true", "yes", "on", "1")) for value in words(text)]


def search_and_replace(text: str, request: GenerationRequest) -> list[Change]:
    """The first value is what stands in the prompt; each value takes its place."""
    first, *_ = found = words(text) or [""]
    texts = (*needs.prompts(request),)
    if not any(first in prompt for prompt in texts):
        raise BadValues(f"Prompt S/R: {first!r} stands in no prompt. The first value must be what is replaced.")
    return [Change(label=each, replace=((first, each),)) for each in found]


def order(text: str, request: GenerationRequest) -> list[Change]:
    """All orders of the given words, put where the words stand in the prompt."""
    found = words(text)
    places = sorted((request.prompt.find(each), each) for each in found)
    if len(found) > 6 or any(at < 0 for at, _ in places):
        raise BadValues("Prompt order: give up to 6 words that stand in the prompt.")
    changes = []
    for arranged in permutations(each for _, each in places):
        prompt, end = request.prompt, len(request.prompt)
        for (at, old), new in reversed(list(zip(places, arranged, strict=True))):
            prompt = prompt[:at] + new + prompt[at + len(old) : end] + prompt[end:]
        changes.append(Change(label=", ".join(arranged), update={"prompt": prompt}))
    return changes


def size(text: str, request: GenerationRequest) -> list[Change]:
    changes = []
    for each in words(text):
        width, cross, height = each.lower().partition("x")
        if not (cross and width.strip().isdigit() and height.strip().isdigit()):
            raise BadValues(f"Size: {each!r} is not like 512x768.")
        changes.append(Change(label=each, update={"width": int(width), "height": int(height)}))
    return changes


AXES = (
    Row("Seed", seeds("seed")),
    Row("Var. seed", seeds("noise.variation_seed")),
    Row("Var. strength", number("noise.variation_strength")),
    Row("Steps", whole("steps")),
    Row("Hires steps", whole("hires.steps")),
    Row("CFG Scale", number("cfg_scale")),
    Row("Image CFG Scale", number("start.image_cfg_scale")),
    Row("Prompt S/R", search_and_replace),
    Row("Prompt order", order),
    Row("Sampler", samplers(""), choices="sampler"),
    Row("Hires sampler", samplers("hires."), choices="sampler"),
    Row("Checkpoint name", exact("model"), RELOADS, choices="model"),
    Row("Neg. guidance min. sigma", number("guidance.min_sigma")),
    Row("Sigma churn", number("sampling.s_churn")),
    Row("Sigma min", number("sampling.s_tmin")),
    Row("Sigma max", number("sampling.s_tmax")),
    Row("Sigma noise", number("sampling.s_noise")),
    Row("Schedule type", exact("schedule"), choices="schedule"),
    Row("Schedule min sigma", number("sampling.sigma_min")),
    Row("Schedule max sigma", number("sampling.sigma_max")),
    Row("Schedule rho", number("sampling.rho")),
    Row("Eta", number("sampling.eta")),
    Row("Clip skip", whole("clip_skip")),
    Row("Denoising", number("start.denoising_strength")),
    Row("Hires denoising", number("hires.denoising_strength")),
    Row("Initial noise multiplier", number("start.noise_multiplier")),
    Row("Hires upscaler", exact("hires.upscaler"), choices="hires.upscaler"),
    Row("Hires upscale", number("hires.scale")),
    Row("VAE", exact("vae"), SWAPS, choices="vae"),
    Row("Face restore", faces, choices="faces.model"),
    Row("Token merging ratio", number("guidance.token_merging")),
    Row("Always discard next-to-last sigma", flag("sampling.discard_penultimate")),
    Row("SGM noise multiplier", flag("sampling.sgm_noise")),
    Row("Refiner checkpoint", exact("refiner.model"), RELOADS, choices="model"),
    Row("Refiner switch at", number("refiner.switch_at")),
    Row("RNG source", exact("noise.rng")),
    Row("CFG rescale", number("guidance.rescale")),
    Row("Perturbed attention", number("guidance.pag")),
    Row("Size", size),
)
"""A new axis is a row here."""

BY_NAME = {row.name.lower(): row for row in AXES}
NEEDED = {"hires": "Hires fix", "start": "a picture to start from", "refiner": "a refiner"}
"""Parts that an axis changes and cannot make up: they must be asked for in the request."""


def axis(name: str, text: str, request: GenerationRequest) -> Axis:
    """Raises BadValues with what cannot be read."""
    row = BY_NAME.get(name.strip().lower())
    if row is None:
        raise BadValues(f"There is no axis {name!r}. Choose one of: {', '.join(each.name for each in AXES)}.")
    changes = row.read(text, request)
    if not changes:
        raise BadValues(f"{row.name}: give one value or more.")
    if len(changes) > MOST_CELLS:
        raise BadValues(f"{row.name}: {len(changes)} values are too many.")
    for part, wanted in NEEDED.items():
        own = any(path.startswith(f"{part}.") and path != f"{part}.model" for path in changes[0].update)
        if getattr(request, part) is None and own:
            raise BadValues(f"{row.name} says nothing without {wanted}: switch that on first.")
    return Axis(name=row.name, changes=tuple(changes), cost=row.cost)
