"""The tables of samplers and schedules, under A1111's names. A new one is a function, a row here and a test."""

from dataclasses import dataclass

from pipelines.errors import UnknownChoice
from pipelines.samplers.flow import FlowLevels
from pipelines.samplers.levels import NoiseLevels, Sigmas
from pipelines.samplers.noise import ImageNoise
from pipelines.samplers.schedules import Schedule, exponential, karras, sgm_uniform, simple, uniform
from pipelines.samplers.solvers import Denoise, DrawNoise, OnStep, Solver, dpmpp_2m, euler, euler_ancestral

__all__ = [
    "AUTOMATIC",
    "SAMPLERS",
    "SCHEDULES",
    "SCHEDULE_NAMES",
    "Denoise",
    "DrawNoise",
    "FlowLevels",
    "ImageNoise",
    "NoiseLevels",
    "OnStep",
    "Sampler",
    "Sigmas",
    "sampler_named",
    "sigmas_for",
]


@dataclass(frozen=True)
class Sampler:
    solve: Solver
    schedule: str
    """What "Automatic" means for this sampler."""


SAMPLERS = {
    "DPM++ 2M": Sampler(dpmpp_2m, "Karras"),
    "Euler a": Sampler(euler_ancestral, "Uniform"),
    "Euler": Sampler(euler, "Uniform"),
}

SCHEDULES: dict[str, Schedule] = {
    "Uniform": uniform,
    "Karras": karras,
    "Exponential": exponential,
    "SGM Uniform": sgm_uniform,
    "Simple": simple,
}

AUTOMATIC = "Automatic"
SCHEDULE_NAMES = (AUTOMATIC, *SCHEDULES)


def sampler_named(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise UnknownChoice("sampler", name, list(SAMPLERS))
    return SAMPLERS[name]


def sigmas_for(sampler: Sampler, schedule: str, steps: int, levels: NoiseLevels) -> Sigmas:
    """The noise levels between which the steps go: one more than there are steps, the last one 0.

    "Automatic" is the schedule of the model's makers where they have one, else what suits the sampler.
    """
    own = levels.own_schedule(steps) if schedule == AUTOMATIC else None
    name = sampler.schedule if schedule == AUTOMATIC else schedule
    if name not in SCHEDULES:
        raise UnknownChoice("schedule", name, list(SCHEDULE_NAMES))
    visited = SCHEDULES[name](steps, levels) if own is None else own
    return Sigmas([*visited.tolist(), 0.0], levels.flow)
