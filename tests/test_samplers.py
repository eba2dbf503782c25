"""Solvers against exact solutions, schedules against numbers worked out by hand, both against diffusers' own."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.errors import BadModel, UnknownChoice
from pipelines.samplers import (
    SAMPLERS,
    SCHEDULE_NAMES,
    SCHEDULES,
    Denoise,
    ImageNoise,
    NoiseLevels,
    sampler_named,
    sigmas_for,
)
from pipelines.samplers.schedules import Schedule, exponential, karras

SD1 = NoiseLevels.of_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
POWERS = NoiseLevels(1 / (1 + 4.0 ** np.arange(5)))  # the noise levels 1, 2, 4, 8, 16
MEAN, SPREAD = 0.3, 0.7


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """The ideal denoiser for data that are normally distributed, so that every solution can be written down."""
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def no_noise() -> Tensor:
    raise AssertionError("this sampler draws no noise")


def solve(name: str, sigmas: Sequence[float], x: Tensor, denoise: Denoise = gaussian) -> Tensor:
    return SAMPLERS[name].solve(denoise, x, sigmas, no_noise, lambda i, x0: None)


def error(name: str, schedule: Schedule, steps: int) -> float:
    """Of the solver at the lowest level, where the exact solution of the probability flow is known."""
    sigmas = schedule(steps, SD1).tolist()
    start = torch.tensor([5.0, -20.0], dtype=torch.float64)
    exact = MEAN + (start - MEAN) * math.sqrt((SPREAD**2 + sigmas[-1] ** 2) / (SPREAD**2 + sigmas[0] ** 2))
    return float((solve(name, sigmas, start) - exact).abs().max())


@pytest.mark.parametrize("schedule", [exponential, karras])
@pytest.mark.parametrize(("name", "order"), [("Euler", 1), ("DPM++ 2M", 2)])
def test_order_of_convergence(name: str, order: int, schedule: Schedule) -> None:
    found = math.log2(error(name, schedule, 400) / error(name, schedule, 800))
    assert found == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_whole_way_ends_at_the_data(name: str, schedule: str) -> None:
    sigmas = sigmas_for(SAMPLERS[name], schedule, 100, SD1)
    start = torch.linspace(-3, 3, 7, dtype=torch.float64) * sigmas[0]
    exact = MEAN + (start - MEAN) * SPREAD / math.sqrt(SPREAD**2 + sigmas[0] ** 2)
    assert (solve(name, sigmas, start) - exact).abs().max() < 0.15


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M"])
def test_one_step_jumps_to_what_the_model_sees(name: str) -> None:
    x = torch.tensor([3.0, -2.0], dtype=torch.float64)
    assert torch.equal(solve(name, [10.0, 0.0], x), gaussian(x, 10.0))


def test_ancestral_step_is_the_posterior() -> None:
    """With x0 known, the step from sigma 2 to 1 draws from N(x0 + (x - x0) / 4, 3 / 4): Ho et al. 2020, equation 7."""
    x, ones = torch.tensor([2.0], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    solve_a = SAMPLERS["Euler a"].solve
    ahead = solve_a(lambda x, sigma: 0 * x + 1, x, [2.0, 1.0], lambda: ones, lambda i, x0: None)
    assert float(ahead) == pytest.approx(1 + (2 - 1) / 4 + math.sqrt(3 / 4))


def test_ancestral_marginals() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(40_000, generator=generator, dtype=torch.float64)
    sigmas = [*exponential(300, SD1).tolist(), 0.0]

    def noise() -> Tensor:
        return torch.randn(draw.shape, generator=generator, dtype=torch.float64)

    end = SAMPLERS["Euler a"].solve(gaussian, MEAN + draw * sigmas[0], sigmas, noise, lambda i, x0: None)
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(end.std()) == pytest.approx(SPREAD, rel=0.02)
    assert abs(float(torch.corrcoef(torch.stack([draw, end]))[0, 1])) < 0.1  # an ODE's would be 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_told_once(name: str) -> None:
    seen: list[tuple[int, float]] = []
    x = torch.full((2,), 3.0)
    SAMPLERS[name].solve(
        lambda x, s: x * 0 + s, x, [4.0, 2.0, 1.0, 0.0], lambda: x, lambda i, x0: seen.append((i, float(x0[0])))
    )
    assert seen == [(0, 4.0), (1, 2.0), (2, 1.0)]


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        ("Uniform", 3, [16, 4, 1]),
        ("Uniform", 5, [16, 8, 4, 2, 1]),
        ("Exponential", 3, [16, 4, 1]),
        ("SGM Uniform", 2, [16, 4]),
        ("SGM Uniform", 3, [16, 2 ** (8 / 3), 2 ** (4 / 3)]),
        ("Simple", 2, [16, 4]),
        ("Simple", 3, [16, 8, 2]),
        ("Karras", 2, [16, 1]),
        ("Karras", 3, [16, ((16 ** (1 / 7) + 1) / 2) ** 7, 1]),
    ],
)
def test_schedules(schedule: str, steps: int, expected: list[float]) -> None:
    assert sigmas_for(SAMPLERS["Euler"], schedule, steps, POWERS) == pytest.approx([*expected, 0])


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_schedules_fall_from_the_top(schedule: str, steps: int) -> None:
    sigmas = sigmas_for(SAMPLERS["DPM++ 2M"], schedule, steps, SD1)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(14.6146, abs=1e-4)  # what k-diffusion prints for this model
    assert all(later < earlier for earlier, later in zip(sigmas, sigmas[1:], strict=False))
    assert sigmas[-1] == 0


def test_automatic_is_the_samplers_own() -> None:
    for name, own in (("DPM++ 2M", "Karras"), ("Euler", "Uniform"), ("Euler a", "Uniform")):
        assert sigmas_for(SAMPLERS[name], "Automatic", 9, SD1) == sigmas_for(SAMPLERS[name], own, 9, SD1)


def test_unknown_names_are_told_the_choices() -> None:
    with pytest.raises(UnknownChoice, match="Choose one of: DPM\\+\\+ 2M, Euler a, Euler"):
        sampler_named("Eular")
    with pytest.raises(UnknownChoice, match="Choose one of: Automatic, Uniform, Karras"):
        sigmas_for(SAMPLERS["Euler"], "karas", 5, SD1)


def test_levels_go_both_ways() -> None:
    assert (SD1.low, SD1.high) == pytest.approx((0.029167, 14.61464), rel=1e-4)
    for step in (0, 0.25, 500, 998.5, 999):
        assert SD1.step(SD1.sigma(step)) == pytest.approx(step, abs=1e-9)
    assert SD1.sigma(10.5) == pytest.approx(math.sqrt(SD1.sigmas[10] * SD1.sigmas[11]))
    assert SD1.step(1e9) == 999
    with pytest.raises(BadModel, match="'sigmoid' is not known"):
        NoiseLevels.of_config({"beta_schedule": "sigmoid"})


@pytest.mark.parametrize(
    "config",
    [
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 500},
        {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
)
def test_levels_are_those_of_diffusers(config: dict[str, Any]) -> None:
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(**config).alphas_cumprod.double().numpy()
    assert NoiseLevels.of_config(config).sigmas == pytest.approx(np.sqrt((1 - theirs) / theirs), rel=2e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [6, 20])
@pytest.mark.parametrize(("name", "schedule"), [("Euler", "Karras"), ("Euler", "Uniform"), ("DPM++ 2M", "Karras")])
def test_solvers_are_those_of_diffusers(name: str, schedule: str, steps: int, prediction: str) -> None:
    """Their schedulers, as they set them up for A1111's names, walk the same way from the same noise."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    kind = EulerDiscreteScheduler if name == "Euler" else DPMSolverMultistepScheduler
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        use_karras_sigmas=schedule == "Karras",
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(steps)
    sigmas = sigmas_for(SAMPLERS[name], schedule, steps, SD1)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    variance_exploding = name == "Euler"
    theirs = noise * sigmas[0] / (1 if variance_exploding else math.sqrt(1 + sigmas[0] ** 2))
    for step, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        x = theirs if variance_exploding else theirs * math.sqrt(1 + sigma**2)
        theirs = scheduler.step(as_predicted(prediction, x, wavy(x, sigma), sigma), step, theirs).prev_sample
    assert torch.allclose(solve(name, sigmas, noise * sigmas[0], wavy), theirs, atol=5e-3)


def wavy(x: Tensor, sigma: float) -> Tensor:
    """A denoiser that is not linear, as a network's is not."""
    return torch.tanh(x) / (1 + sigma) + 0.1 * torch.sin(3 * x / (1 + sigma))


def as_predicted(prediction: str, x: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """What a network would have said for this x0."""
    noise = (x - x0) / sigma
    return noise if prediction == "epsilon" else (noise - sigma * x0) / math.sqrt(1 + sigma**2)


def test_noise_belongs_to_the_image() -> None:
    together = ImageNoise((4, 8, 8), [7, 8, 9], torch.device("cpu"))
    alone = [ImageNoise((4, 8, 8), [seed], torch.device("cpu")) for seed in (7, 8, 9)]
    draws = []
    for _ in range(3):
        draws.append(together())
        assert torch.equal(draws[-1], torch.cat([noise() for noise in alone]))
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0][0], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(7)))
