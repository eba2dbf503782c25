"""Samplers and schedules by name: A1111's names, aliases and defaults, what each can do. Without torch.

The functions behind the names stand in `samplers/`. Adding a sampler is a row here and a function there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipelines.errors import PipelineError, UnknownChoice

AUTOMATIC = "Automatic"


@dataclass(frozen=True)
class SamplerRow:
    name: str
    schedule: str = "Uniform"
    """What "Automatic" means for it."""
    aliases: tuple[str, ...] = ()
    """A1111's other names, as its API lists them; other spellings are understood without them: see `read_sampler`."""
    order: int = 1
    """Halving the steps' length divides the error by 2 to the power of this, without fresh noise."""
    calls: int = 1
    """Of the model, a step."""
    eta: float | None = None
    """The share of fresh noise, unless another is asked for; None: it takes no eta."""
    churn: bool = False
    """Whether it takes sigma churn."""
    brownian: bool = False
    """Its noise is a Brownian path over the noise levels."""
    discard_penultimate: bool = False
    """It leaves out the last noise level but one."""
    unit_start: bool = False
    """Begins with the noise of a picture of variance 1: noise * sqrt(1 + sigma^2), as samplers in training steps do."""
    cfg_plus_plus: bool = False
    """Wants the guided and the unguided x0, and a CFG scale from 0 to 1: A1111's from 0 to 12.5."""
    alone: bool = False
    """Its steps depend on the picture: images of a batch are made one by one."""
    flow: bool = True
    """Whether there is a form of it for flow models."""


@dataclass(frozen=True)
class ScheduleRow:
    label: str
    name: str
    """In A1111's API."""
    aliases: tuple[str, ...] = ()
    rho: float | None = None
    """Of its curve, unless another is asked for; None: it takes none."""
    ends: bool = True
    """Whether it takes a sigma min and max."""
    flow: bool = True


def _by_name(*rows: SamplerRow) -> Mapping[str, SamplerRow]:
    return MappingProxyType({row.name: row for row in rows})


SAMPLERS: Mapping[str, SamplerRow] = _by_name(
    SamplerRow("DPM++ 2M", "Karras", ("k_dpmpp_2m",), order=2),
    SamplerRow("DPM++ SDE", "Karras", ("k_dpmpp_sde",), order=2, calls=2, eta=1.0, brownian=True),
    SamplerRow("DPM++ 2M SDE", "Exponential", ("k_dpmpp_2m_sde",), order=2, eta=1.0, brownian=True),
    SamplerRow("DPM++ 2M SDE Heun", "Exponential", ("k_dpmpp_2m_sde_heun",), order=2, eta=1.0, brownian=True),
    SamplerRow("DPM++ 2S a", "Karras", ("k_dpmpp_2s_a",), order=2, calls=2, eta=1.0),
    SamplerRow(
        "DPM++ 3M SDE",
        "Exponential",
        ("k_dpmpp_3m_sde",),
        order=2,
        eta=1.0,
        brownian=True,
        discard_penultimate=True,
    ),
    SamplerRow("Euler a", aliases=("k_euler_a", "k_euler_ancestral"), eta=1.0),
    SamplerRow("Euler", aliases=("k_euler",), churn=True),
    SamplerRow("LMS", aliases=("k_lms",), order=4),
    SamplerRow("Heun", aliases=("k_heun",), order=2, calls=2, churn=True),
    SamplerRow("DPM2", "Karras", ("k_dpm_2",), order=2, calls=2, churn=True, discard_penultimate=True),
    SamplerRow("DPM2 a", "Karras", ("k_dpm_2_a",), order=2, calls=2, eta=1.0, discard_penultimate=True),
    SamplerRow("DPM fast", aliases=("k_dpm_fast",), order=3, eta=1.0, flow=False),
    SamplerRow("DPM adaptive", aliases=("k_dpm_ad",), order=3, eta=1.0, alone=True, flow=False),
    SamplerRow("Restart", "Karras", ("restart",), order=2, calls=2),
    SamplerRow("DDIM", "DDIM", ("ddim",), eta=0.0, unit_start=True),
    SamplerRow("DDIM CFG++", "DDIM", ("ddim_cfgpp",), eta=0.0, unit_start=True, cfg_plus_plus=True),
    SamplerRow("PLMS", "DDIM", ("plms",), order=2, unit_start=True),
    SamplerRow("UniPC", "SGM Uniform", ("unipc",), order=4, unit_start=True),
    SamplerRow("LCM", "SGM Uniform", ("k_lcm",)),
    SamplerRow("TCD", "SGM Uniform", ("tcd",), eta=0.3, flow=False),
    SamplerRow("DEIS", aliases=("deis",), order=3),
    SamplerRow("IPNDM", aliases=("ipndm",), order=2),
)

SCHEDULES: tuple[ScheduleRow, ...] = (
    ScheduleRow(AUTOMATIC, "automatic", ends=False),
    ScheduleRow("Uniform", "uniform", ends=False),
    ScheduleRow("Karras", "karras", rho=7.0),
    ScheduleRow("Exponential", "exponential"),
    ScheduleRow("Polyexponential", "polyexponential", rho=1.0),
    ScheduleRow("SGM Uniform", "sgm_uniform", ("SGMUniform",)),
    ScheduleRow("KL Optimal", "kl_optimal"),
    ScheduleRow("Align Your Steps", "align_your_steps", ends=False, flow=False),
    ScheduleRow("Simple", "simple", ends=False),
    ScheduleRow("Normal", "normal"),
    ScheduleRow("DDIM", "ddim", ends=False),
    ScheduleRow("Beta", "beta"),
    ScheduleRow("Turbo", "turbo", ends=False),
)
"""The first is the sampler's own or, with flow models, that of their makers."""
SCHEDULE_NAMES = tuple(row.label for row in SCHEDULES)


def read_sampler(name: str) -> tuple[str, str | None]:
    """The sampler that is meant, and its schedule if the name ends with one: "DPM++ 2M Karras", "k_euler_a",
    "dpmpp_2m". Raises UnknownChoice.
    """
    folded = _folded(name)
    if folded in _SAMPLERS:
        return _SAMPLERS[folded], None
    for ending in sorted(_SCHEDULES, key=len, reverse=True):
        if folded.endswith(ending) and (sampler := _SAMPLERS.get(folded.removesuffix(ending))):
            return sampler, _SCHEDULES[ending]
    raise UnknownChoice("sampler", name, list(SAMPLERS))


def read_schedule(name: str) -> str:
    """The label of the schedule that is meant: "karras", "sgm_uniform", "SGMUniform". Raises UnknownChoice."""
    if label := _SCHEDULES.get(_folded(name)):
        return label
    raise UnknownChoice("schedule", name, list(SCHEDULE_NAMES))


def meant(sampler: str, schedule: str) -> tuple[str, str]:
    """Both by the names of the tables; a schedule in the sampler's name goes before. Raises UnknownChoice."""
    name, own = read_sampler(sampler)
    return name, own or read_schedule(schedule)


def check_flow(sampler: str, schedule: str) -> None:
    """Raises PipelineError if one of them has no form for flow models, by the names of the tables."""
    if not SAMPLERS[sampler].flow:
        fitting = ", ".join(row.name for row in SAMPLERS.values() if row.flow)
        raise PipelineError(f"{sampler} cannot draw with flow models such as this one. Choose one of: {fitting}.")
    if schedule in {row.label for row in SCHEDULES if not row.flow}:
        fitting = ", ".join(row.label for row in SCHEDULES if row.flow)
        raise PipelineError(
            f"The schedule {schedule} is not for flow models such as this one. Choose one of: {fitting}."
        )


def _folded(name: str) -> str:
    """What different spellings of a name have in common: DPM++ 2S a, k_dpmpp_2s_a, dpmpp_2s_ancestral."""
    folded = re.sub(r"^k[_\-\s]", "", name.strip().lower()).replace("++", "pp")
    return re.sub(r"[^a-z0-9]", "", folded).replace("ancestral", "a")


_SAMPLERS = {_folded(spelling): row.name for row in SAMPLERS.values() for spelling in (row.name, *row.aliases)}
_SCHEDULES = {_folded(each): row.label for row in SCHEDULES for each in (row.label, row.name, *row.aliases)}
