"""The functions behind the names of samplers and schedules. A new one is a row in `choices.py`, one here, a test.

What they are called, and what they do by themselves, stands in `choices.py`, which needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines import choices
from pipelines.choices import AUTOMATIC, SCHEDULE_NAMES, SamplerRow, read_sampler, read_schedule
from pipelines.request import Sampling
from pipelines.samplers.adams import deis, ipndm, lms, plms
from pipelines.samplers.adaptive import dpm_adaptive, dpm_fast
from pipelines.samplers.dpm2 import dpm_2, dpmpp_2s_ancestral
from pipelines.samplers.dpmpp import dpmpp_2m, dpmpp_2m_heun, dpmpp_3m, dpmpp_sde
from pipelines.samplers.euler import ddim_cfgpp, euler, euler_ancestral, heun
from pipelines.samplers.few import lcm, tcd
from pipelines.samplers.flow import FlowLevels
from pipelines.samplers.levels import NoiseLevels, Sigmas
from pipelines.samplers.noise import ImageNoise
from pipelines.samplers.restart import restart
from pipelines.samplers.schedules import SCHEDULES, Reach
from pipelines.samplers.unipc import unipc
from pipelines.samplers.walk import PLAIN, Denoise, Noise, OnStep, Solver, Walk

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "SCHEDULE_NAMES",
    "Denoise",
    "FlowLevels",
    "ImageNoise",
    "Noise",
    "NoiseLevels",
    "OnStep",
    "Sampler",
    "Sigmas",
    "Walk",
    "sampler_named",
    "sigmas_for",
]


@dataclass(frozen=True)
class Sampler:
    solve: Solver
    row: SamplerRow

    def eta(self, options: Sampling) -> float:
        """Which share of noise is fresh: what is asked for, if this sampler takes that, else its own."""
        return self.row.eta or 0.0 if self.row.eta is None or options.eta is None else options.eta


SOLVERS: Mapping[str, Solver] = {
    "DPM++ 2M": dpmpp_2m,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2M SDE": dpmpp_2m,
    "DPM++ 2M SDE Heun": dpmpp_2m_heun,
    "DPM++ 2S a": dpmpp_2s_ancestral,
    "DPM++ 3M SDE": dpmpp_3m,
    "Euler a": euler_ancestral,
    "Euler": euler,
    "LMS": lms,
    "Heun": heun,
    "DPM2": dpm_2,
    "DPM2 a": dpm_2,
    "DPM fast": dpm_fast,
    "DPM adaptive": dpm_adaptive,
    "Restart": restart,
    "DDIM": euler_ancestral,
    "DDIM CFG++": ddim_cfgpp,
    "PLMS": plms,
    "UniPC": unipc,
    "LCM": lcm,
    "TCD": tcd,
    "DEIS": deis,
    "IPNDM": ipndm,
}
SAMPLERS = {name: Sampler(SOLVERS[name], row) for name, row in choices.SAMPLERS.items()}


def sampler_named(name: str) -> Sampler:
    """By its name or an alias. Raises UnknownChoice."""
    return SAMPLERS[read_sampler(name)[0]]


def sigmas_for(sampler: Sampler, schedule: str, steps: int, levels: NoiseLevels, options: Sampling = PLAIN) -> Sigmas:
    """The noise levels between which the steps go: one more than there are steps, the last one 0.

    "Automatic" is the schedule of the model's makers where they have one, else what suits the sampler. Raises
    PipelineError for what does not fit together.
    """
    label = read_schedule(schedule)
    own, row = label == AUTOMATIC, sampler.row
    label = row.schedule if own else label
    drop = row.discard_penultimate if options.discard_penultimate is None else options.discard_penultimate
    count = steps + 1 if drop else steps
    visited = levels.own_schedule(count) if own else None
    if levels.flow:
        choices.check_flow(row.name, label if visited is None else AUTOMATIC)
    if visited is None:
        visited = SCHEDULES[label](count, Reach.of(levels, options))
    sigmas: list[float] = visited.tolist()
    return Sigmas([*(sigmas[:-1] if drop else sigmas), 0.0], levels.flow)
