"""Flow matching's noise levels and steps: diffusers' schedulers as the reference, exact answers where there are any."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from pipelines.families.qwen import FLOWS
from pipelines.families.sd3 import SD3
from pipelines.samplers import SAMPLERS, SCHEDULES, FlowLevels, ImageNoise, NoiseLevels, sigmas_for
from pipelines.samplers.flow import fixed, flux2, growing
from tests.walking import solve as walk

SIZES = [(16, 64, 64), (16, 128, 128), (16, 96, 160), (16, 160, 160)]


def solve(name: str, levels: NoiseLevels, steps: int, denoise: Any, x: Tensor, schedule: str = "Automatic") -> Tensor:
    sigmas = sigmas_for(SAMPLERS[name], schedule, steps, levels)
    noise = ImageNoise(x.shape, [7], torch.device("cpu"), span=(min(sigmas[:-1]), sigmas[0]))
    return walk(name, sigmas, x[None] * sigmas[0], denoise, noise)[0]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("family", ["sd3", "flux", "schnell", "flux2", "qwen"])
def test_automatic_is_what_the_makers_walk(family: str, steps: int, shape: tuple[int, int, int]) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    tokens = shape[1] * shape[2] // 4
    even = np.linspace(1.0, 1 / steps, steps)
    levels, settings, call = {
        "sd3": (SD3.levels, {"shift": 3.0}, {"num_inference_steps": steps}),
        "flux": (
            FlowLevels(growing()),
            {"use_dynamic_shifting": True},
            {"sigmas": even, "mu": calculate_shift(tokens)},
        ),
        "schnell": (FlowLevels(fixed(1.0)), {"shift": 1.0}, {"sigmas": even}),
        "flux2": (
            FlowLevels(flux2),
            {"use_dynamic_shifting": True},
            {"sigmas": even, "mu": compute_empirical_mu(tokens, steps)},
        ),
        "qwen": (
            FLOWS[""],
            {"use_dynamic_shifting": True, "shift_terminal": 0.02},
            {"sigmas": even, "mu": calculate_shift(tokens, 256, 8192, 0.5, 0.9)},
        ),
    }[family]
    if family == "qwen" and steps == 1:
        pytest.skip("diffusers divides by 0")
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)  # type: ignore[arg-type]
    scheduler.set_timesteps(**call)
    ours = sigmas_for(SAMPLERS["Euler"], "Automatic", steps, levels.fitted(shape, steps))
    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize("schedule", {*SCHEDULES} - {"Align Your Steps", "DDIM"})
def test_every_schedule_falls_from_pure_noise_to_nothing(schedule: str) -> None:
    for levels in (SD3.levels, FlowLevels(growing()).fitted((16, 64, 64), 12)):
        sigmas = sigmas_for(SAMPLERS["Euler"], schedule, 12, levels)
        assert len(sigmas) == 13
        assert sigmas[0] == pytest.approx(1.0)
        assert sigmas[-1] == 0
        assert all(high > low for high, low in zip(sigmas, sigmas[1:], strict=False))
        assert sigmas.flow


def test_a_level_knows_its_step_and_back() -> None:
    for step in (0.0, 0.5, 500.0, 999.0):
        assert SD3.levels.step(SD3.levels.sigma(step)) == pytest.approx(step, abs=1e-6)
    assert SD3.levels.high == 1.0


def test_noise_takes_the_picture_s_place() -> None:
    x0, noise = torch.full((2,), 3.0), torch.full((2,), 1.0)
    assert SD3.levels.noised(x0, noise, 0.25).tolist() == [2.5, 2.5]
    assert SD3.levels.noised(x0, noise, 1.0).tolist() == [1.0, 1.0]
    diffusion = NoiseLevels(np.linspace(0.99, 0.01, 10))
    assert diffusion.noised(x0, noise, 2.0).tolist() == [5.0, 5.0]
    assert diffusion.fitted((4, 8, 8), 20) is diffusion


SPREAD = 0.5
"""Of the pictures below: normally distributed numbers, for which the best denoiser is known."""


def best(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] of a normal x0, by Bayes."""
    signal = 1 - sigma
    return x * (signal * SPREAD**2 / (signal**2 * SPREAD**2 + sigma**2))


@pytest.mark.parametrize("name", ["Euler", "Euler a", "DPM++ 2M"])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_pictures_come_out_as_wide_as_they_are(name: str, factor: float) -> None:
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    drawn = solve(name, FlowLevels(fixed(factor)), 500, best, noise)
    assert float(drawn.std()) == pytest.approx(SPREAD, rel=0.02)


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M"])
def test_without_fresh_noise_the_way_is_the_exact_one(name: str) -> None:
    """From noise n the flow of normal pictures ends at SPREAD * n."""
    noise = torch.linspace(-3, 3, 7)
    many = solve(name, FlowLevels(fixed(1.0)), 400, best, noise)
    assert torch.allclose(many, SPREAD * noise, atol=0.02)


def test_two_steps_back_are_better_than_one() -> None:
    """Order 2 shows: with as many steps, DPM++ 2M ends nearer to the exact answer than Euler."""
    noise = torch.linspace(-3, 3, 7)
    euler, multi = (
        (solve(name, FlowLevels(fixed(1.0)), 20, best, noise) - SPREAD * noise).abs().max()
        for name in ("Euler", "DPM++ 2M")
    )
    assert multi < 0.3 * euler


def test_dpmpp_2m_is_that_of_diffusers() -> None:
    """Theirs stands at the level just below 1 first, where the signal is not 0: from there on both walk alike."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double().tolist()
    levels = type("Walk", (FlowLevels,), {"own_schedule": lambda self, steps: np.array(sigmas[:-1])})(fixed(3.0))
    theirs = start = torch.linspace(-2, 2, 9)
    for step, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        velocity = (theirs - best(theirs, sigma)) / sigma
        theirs = scheduler.step(velocity, step, theirs).prev_sample
    ours = solve("DPM++ 2M", levels, 12, best, start / sigmas[0])
    assert torch.allclose(ours, theirs, atol=2e-3)


def test_the_first_step_from_pure_noise_is_finite() -> None:
    for name in (name for name, sampler in SAMPLERS.items() if sampler.row.flow):
        drawn = solve(name, FlowLevels(fixed(1.0)), 2, best, torch.ones(3))
        assert drawn.isfinite().all()
        assert not math.isnan(float(drawn.sum()))


def test_no_size_starts_above_pure_noise() -> None:
    """A level of 1 + 2e-16 would have a negative signal, whose logarithm there is not."""
    for side in range(8, 200, 2):
        for shift in (growing(), flux2):
            levels = FlowLevels(shift).fitted((16, side, side + 2), 8)
            sigmas = sigmas_for(SAMPLERS["DPM++ 2M"], "Automatic", 8, levels)
            assert 1 - 1e-12 < sigmas[0] <= 1
            assert solve("DPM++ 2M", levels, 8, best, torch.ones(1)).isfinite().all()
