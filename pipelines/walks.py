"""The walk of a pass: its noise levels, its noise, and where it begins."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from pipelines.choices import AUTOMATIC, SCHEDULES
from pipelines.request import GenerationRequest, Sampling
from pipelines.samplers import ImageNoise, NoiseLevels, OnStep, Sampler, Sigmas, Walk, sampler_named, sigmas_for
from pipelines.scene import Kit, Scene
from pipelines.stages import Stage

PASSES: Mapping[str, str] = {"first": "first pass", "hires": "second pass"}
"""What A1111 calls them."""


def sigmas_of(request: GenerationRequest, stage: Stage, kit: Kit) -> Sigmas:
    """The noise levels that a pass walks: of a picture to start from, only the last ones. What is asked for and does
    nothing there is noted."""
    model, steps = kit.model(stage.model), stage.planned_steps
    if not stage.walked_steps:
        return Sigmas([0.0], model.levels.flow)
    levels = model.levels.fitted(model.latent_shape(stage.width, stage.height), steps)
    planned = sigmas_for(sampler_named(stage.sampler), stage.schedule, steps, levels, request.sampling)
    for note in unused(stage, request.sampling, model.levels.flow):
        kit.note(note)
    return Sigmas(planned[len(planned) - 1 - stage.walked_steps :], planned.flow)


def unused(stage: Stage, options: Sampling, flow: bool) -> list[str]:
    """Sentences about what is asked for and does nothing with this sampler or model."""
    row, label = stage.row, stage.schedule
    label = row.schedule if label == AUTOMATIC and not flow else label
    schedule = next(each for each in SCHEDULES if each.label == label)
    ends = options.sigma_min > 0 or options.sigma_max > 0
    asked = {
        f"{row.name} takes no eta: it is not used.": options.eta is not None and row.eta is None,
        f"{row.name} takes no sigma churn: it is not used.": options.s_churn > 0 and not row.churn,
        "SGM noise is for diffusion models: it is not used with this flow model.": options.sgm_noise and flow,
        f"The schedule {label} takes no sigma min and max: they are not used.": ends and not schedule.ends,
        f"The schedule {label} takes no rho: it is not used.": options.rho > 0 and schedule.rho is None,
    }
    return [sentence for sentence, idle in asked.items() if idle]


class Leg(NamedTuple):
    """A part of a pass that one checkpoint walks."""

    model: str
    start: int
    """The step from which on."""
    stop: int
    """The step before which it ends."""


def walk_of(scene: Scene, sampler: Sampler, noise: ImageNoise, leg: Leg, on_step: OnStep) -> Walk:
    options = scene.request.sampling
    eta, levels = sampler.eta(options), scene.model.levels
    sigmas = Sigmas(scene.sigmas[leg.start : leg.stop + 1], scene.sigmas.flow)
    return Walk(sigmas, noise, on_step, options, eta, levels, lambda: scene.seen.unguided)


def legs_of(request: GenerationRequest, stage: Stage, sigmas: Sigmas, levels: NoiseLevels) -> list[Leg]:
    """All of the pass, or up to where the refiner takes over, and its own."""
    steps, switch = len(sigmas) - 1, switched_at(request, stage, sigmas, levels)
    if request.refiner is None or switch is None:
        return [Leg(stage.model, 0, steps)]
    legs = [Leg(stage.model, 0, switch), Leg(request.refiner.model, switch, steps)]
    return [leg for leg in legs if leg.start < leg.stop]


def switched_at(request: GenerationRequest, stage: Stage, sigmas: Sigmas, levels: NoiseLevels) -> int | None:
    """The first step of the refiner: the share is one of the training's steps, as in A1111 since 1.8. None: without."""
    refiner = request.refiner
    if refiner is None or (request.hires and refiner.during not in (PASSES[stage.name], "both passes")):
        return None
    count = len(levels.sigmas)
    passed = [(count - 1 - round(levels.step(sigma))) / count for sigma in sigmas[:-1]]
    return next((index for index, share in enumerate(passed) if share > refiner.switch_at), None)


def noise_of(scene: Scene) -> ImageNoise:
    """Of the images of a pass, each from its seed."""
    model, stage, options = scene.model, scene.stage, scene.request.noise
    resized = model.latent_shape(*options.resize_from) if all(options.resize_from) else None
    return ImageNoise(
        model.latent_shape(stage.width, stage.height),
        scene.seeds,
        scene.device,
        options,
        scene.variation_seeds,
        resized,
        (scene.sigmas[-2], scene.sigmas[0]),
    )


def begun(scene: Scene, sampler: Sampler, noise: Tensor) -> Tensor:
    """Where the steps begin: at what is given, with noise; or at noise, which may count as a picture of variance 1."""
    sigma = scene.sigmas[0]
    if scene.given:
        return scene.given.begun(noise, sigma)
    whole = sampler.row.unit_start or scene.request.sampling.sgm_noise
    return noise * (math.hypot(1, sigma) if whole and not scene.sigmas.flow else sigma)
