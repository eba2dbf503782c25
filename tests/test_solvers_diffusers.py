"""Solvers against diffusers' schedulers, wherever those have the same formula: same noise levels, model and draws.

Theirs count in fp32, and so does the model here: some 1e-6 is left of that after 20 steps, up to 8e-5 in DEIS, whose
logarithms cancel. A Brownian path is asked for at places that fp32 rounds to 1e-6, between which it moves by 1e-3.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from torch import Tensor

from pipelines.samplers import ImageNoise
from tests.walking import SD1, solve

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (1, 4, 8, 8)
TOLERANCE = 2e-4
PATH_TOLERANCE = 5e-3
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
EVEN = {"timestep_spacing": "linspace"}
KARRAS = {"timestep_spacing": "linspace", "use_karras_sigmas": True}
SDE = {"algorithm_type": "sde-dpmsolver++", **KARRAS}
THIRD = {**KARRAS, "solver_order": 3, "solver_type": "heun"}
UNIPC = {**EVEN, "solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}
FEW = [998, 748, 498, 248]


STEPS = MappingProxyType({"num_inference_steps": 20})


class Row(NamedTuple):
    sampler: str
    scheduler: str
    settings: dict[str, Any]
    call: Mapping[str, Any] = STEPS
    options: Mapping[str, Any] = MappingProxyType({})
    """Of our sampler, and what it is called like there."""


VARIANCE_EXPLODING = [
    Row("Euler", "EulerDiscreteScheduler", KARRAS),
    Row("Euler", "EulerDiscreteScheduler", EVEN),
    Row("Euler a", "EulerAncestralDiscreteScheduler", EVEN),
    Row("Heun", "HeunDiscreteScheduler", KARRAS),
    Row("DPM2", "KDPM2DiscreteScheduler", KARRAS),
    Row("DPM2 a", "KDPM2AncestralDiscreteScheduler", KARRAS),
    Row("LMS", "LMSDiscreteScheduler", KARRAS),
    Row("DPM++ SDE", "DPMSolverSDEScheduler", {**KARRAS, "noise_sampler_seed": 7}),
]
VARIANCE_PRESERVING = [
    Row("DPM++ 2M", "DPMSolverMultistepScheduler", KARRAS),
    Row("DPM++ 2M", "DPMSolverMultistepScheduler", KARRAS, {"num_inference_steps": 6}),
    Row("DPM++ 2M SDE", "DPMSolverMultistepScheduler", SDE),
    Row("DPM++ 2M SDE Heun", "DPMSolverMultistepScheduler", {**SDE, "solver_type": "heun"}),
    Row("DPM++ 3M SDE", "DPMSolverMultistepScheduler", THIRD, options={"eta": 0.0}),
    Row("DEIS", "DEISMultistepScheduler", {**EVEN, "solver_order": 3}),
    Row("UniPC", "UniPCMultistepScheduler", UNIPC),
    Row("UniPC", "UniPCMultistepScheduler", UNIPC, {"num_inference_steps": 5}),
    Row("DDIM", "DDIMScheduler", {**LEADING, "clip_sample": False}),
    Row("DDIM", "DDIMScheduler", {**LEADING, "clip_sample": False}, options={"eta": 0.6}),
    Row("PLMS", "PNDMScheduler", {**LEADING, "skip_prk_steps": True, "set_alpha_to_one": True}),
    Row("LCM", "LCMScheduler", {"clip_sample": False}, {"timesteps": FEW, "original_inference_steps": 500}),
    Row(
        "TCD", "TCDScheduler", {"clip_sample": False}, {"timesteps": FEW, "original_inference_steps": 500}, {"eta": 0.5}
    ),
]


def wavy(x: Tensor, sigma: float) -> Tensor:
    """A denoiser that is not linear, as a network's is not, and sees other things at each noise level."""
    share = x / (1 + sigma)
    return torch.tanh(2 * share) + 0.3 * torch.sin(3 * share + 2 * math.log(sigma))


class Draws:
    """As diffusers draws."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self) -> Tensor:
        return torch.randn(SHAPE, generator=self.generator)

    def between(self, sigma: float, following: float) -> Tensor:
        return self()


def scheduler_of(row: Row) -> Any:
    scheduler = getattr(diffusers, row.scheduler)(**BETAS, **row.settings)
    scheduler.set_timesteps(**row.call)
    scheduler.is_scale_input_called = True
    return scheduler


def theirs(row: Row, scheduler: Any, x: Tensor, levels: Sequence[float], scaled: Callable[[float], float]) -> Tensor:
    """`levels`: at which the model is asked, one for each step. `scaled`: what x is divided by there."""
    draws = Draws()
    for step, sigma in zip(scheduler.timesteps, levels, strict=True):
        seen = wavy(x * scaled(sigma), sigma)
        noise = (x * scaled(sigma) - seen) / sigma
        options = dict(row.options)
        if "DPMSolverMultistep" in row.scheduler:
            options = {"variance_noise": draws()} if "SDE" in row.sampler else {}
        elif any(kind in row.scheduler for kind in ("Ancestral", "LCM", "TCD", "DDIM", "Euler")):
            options["generator"] = draws.generator
        x = scheduler.step(noise, step, x, **options).prev_sample
    return x


@pytest.mark.parametrize("row", VARIANCE_EXPLODING, ids=lambda row: f"{row.sampler}{row.options or ''}")
def test_in_noise_that_is_added(row: Row) -> None:
    scheduler = scheduler_of(row)
    sigmas = [*dict.fromkeys(scheduler.sigmas.double().tolist())]
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    levels = scheduler.sigmas.double().tolist()
    middles = [math.sqrt(high * low) for high, low in zip(sigmas, sigmas[1:], strict=False)]
    if row.sampler == "DPM2 a":
        middles = scheduler.sigmas_interpol.tolist()[::2]
    if "DPM" in row.sampler:
        levels = [level for pair in zip(sigmas, middles, strict=False) for level in pair]
    noise = ImageNoise(SHAPE[1:], [7], torch.device("cpu"), span=(sigmas[-2], sigmas[0]))
    ours = solve(row.sampler, sigmas, start, wavy, noise if row.sampler == "DPM++ SDE" else Draws(), **row.options)
    reference = theirs(row, scheduler, start, levels[: len(scheduler.timesteps)], lambda sigma: 1.0)
    assert (ours - reference).abs().max() < (PATH_TOLERANCE if row.sampler == "DPM++ SDE" else TOLERANCE)


@pytest.mark.parametrize("row", VARIANCE_PRESERVING, ids=lambda row: f"{row.sampler}{row.options or ''}")
def test_in_pictures_that_fade(row: Row) -> None:
    scheduler = scheduler_of(row)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double().tolist()
        levels = sigmas[:-1]
    else:
        levels = [float(SD1.sigmas[step]) for step in scheduler.timesteps]
        sigmas = [*dict.fromkeys(levels), SD1.low if row.sampler == "TCD" else 0.0]
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    ours = solve(row.sampler, sigmas, start, wavy, Draws(), **row.options)
    end = math.hypot(1, sigmas[-1])
    reference = (
        theirs(row, scheduler, start / math.hypot(1, sigmas[0]), levels, lambda sigma: math.hypot(1, sigma)) * end
    )
    assert (ours - reference).abs().max() < TOLERANCE


def test_ipndm() -> None:
    """Theirs knows other noise levels only as betas, which are sigma / sqrt(1 + sigma^2) there, and predicts v."""
    sigmas = [9.0, 5.0, 3.0, 2.0, 1.2, 0.7, 0.3, 0.1]
    scheduler = diffusers.IPNDMScheduler(trained_betas=[sigma / math.hypot(1, sigma) for sigma in sigmas])
    scheduler.set_timesteps(len(sigmas) - 1)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * sigmas[0]
    x = start / math.hypot(1, sigmas[0])
    for step, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        seen = wavy(x * math.hypot(1, sigma), sigma)
        noise = (x * math.hypot(1, sigma) - seen) / sigma
        x = scheduler.step((noise - sigma * seen) / math.hypot(1, sigma), step, x).prev_sample
    assert (solve("IPNDM", sigmas, start, wavy) - x * math.hypot(1, sigmas[-1])).abs().max() < TOLERANCE
