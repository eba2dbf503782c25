"""Schedules against numbers worked out by hand, and what holds for all of them."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from diffusers.schedulers.scheduling_utils import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import choices
from pipelines.errors import BadModel, PipelineError, UnknownChoice
from pipelines.request import Sampling
from pipelines.samplers import SAMPLERS, SCHEDULE_NAMES, SCHEDULES, FlowLevels, NoiseLevels, sampler_named, sigmas_for
from pipelines.samplers.flow import fixed
from pipelines.samplers.levels import ALIGNED_SD1, ALIGNED_SDXL
from tests.walking import SD1

POWERS = NoiseLevels(1 / (1 + 4.0 ** np.arange(5)))  # the noise levels 1, 2, 4, 8, 16
FLOW = FlowLevels(fixed(3.0))


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        ("Uniform", 3, [16, 4, 1]),
        ("Uniform", 5, [16, 8, 4, 2, 1]),
        ("Normal", 3, [16, 4, 1]),
        ("Exponential", 3, [16, 4, 1]),
        ("Polyexponential", 3, [16, 4, 1]),
        ("SGM Uniform", 2, [16, 4]),
        ("SGM Uniform", 3, [16, 2 ** (8 / 3), 2 ** (4 / 3)]),
        ("Simple", 2, [16, 4]),
        ("Simple", 3, [16, 8, 2]),
        ("DDIM", 2, [8, 2]),
        ("Turbo", 1, [16]),
        ("Turbo", 5, [16, 8, 4, 2, 1]),
        ("Beta", 2, [16, 4]),
        ("KL Optimal", 2, [16, math.tan((math.atan(16) + math.atan(1)) / 2)]),
        ("Karras", 2, [16, 1]),
        ("Karras", 3, [16, ((16 ** (1 / 7) + 1) / 2) ** 7, 1]),
    ],
)
def test_schedules(schedule: str, steps: int, expected: list[float]) -> None:
    assert sigmas_for(SAMPLERS["Euler"], schedule, steps, POWERS) == pytest.approx([*expected, 0])


def test_schedules_of_training_steps() -> None:
    """Of a thousand: DDIM as Stable Diffusion counts them, Turbo as SDXL Turbo does, Beta by the quantiles."""
    sigmas = SD1.sigmas
    visited = {name: sigmas_for(SAMPLERS["Euler"], name, 4, SD1)[:-1] for name in ("DDIM", "Turbo", "Beta")}
    assert visited["DDIM"] == pytest.approx([sigmas[step] for step in (751, 501, 251, 1)])
    assert visited["Turbo"] == pytest.approx([sigmas[step] for step in (999, 749, 499, 249)])
    steps = [SD1.step(sigma) / 999 for sigma in visited["Beta"]]
    assert steps[2] == pytest.approx(0.5)
    assert steps[1] + steps[3] == pytest.approx(1)  # Beta(0.6, 0.6) is the same from both ends
    assert steps[3] == pytest.approx(scipy.stats.beta.ppf(0.25, 0.6, 0.6))


def test_align_your_steps() -> None:
    """The published tables, between them even in log sigma."""
    theirs = (AysSchedules["StableDiffusionSigmas"], AysSchedules["StableDiffusionXLSigmas"])
    assert [*ALIGNED_SD1][:10] == theirs[0][:10]
    assert [*ALIGNED_SDXL][:10] == theirs[1][:10]
    assert sigmas_for(SAMPLERS["Euler"], "Align Your Steps", 11, SD1) == pytest.approx([*ALIGNED_SD1, 0])
    many = sigmas_for(SAMPLERS["Euler"], "Align Your Steps", 21, SD1)
    assert many[:-1:2] == pytest.approx(ALIGNED_SD1)
    assert many[1] == pytest.approx(math.sqrt(ALIGNED_SD1[0] * ALIGNED_SD1[1]))


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 150),
    st.sampled_from(SCHEDULE_NAMES),
    st.sampled_from(list(SAMPLERS)),
    st.sampled_from(["sd1", "zero snr", "flow"]),
    st.booleans(),
)
def test_every_schedule_falls_to_nothing(steps: int, schedule: str, name: str, model: str, discard: bool) -> None:
    zero = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    levels = {"sd1": SD1, "zero snr": NoiseLevels.of_config(zero), "flow": FLOW}[model]
    try:
        sigmas = sigmas_for(SAMPLERS[name], schedule, steps, levels, Sampling(discard_penultimate=discard))
    except PipelineError:
        assert model == "flow"
        assert not SAMPLERS[name].row.flow or schedule == "Align Your Steps"
        return
    assert len(sigmas) == steps + 1
    assert sigmas[0] <= levels.high * 1.0001
    assert sigmas[-1] == 0
    assert all(math.isfinite(sigma) for sigma in sigmas)
    assert all(later < earlier for earlier, later in zip(sigmas, sigmas[1:], strict=False))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_there_may_be_more_steps_than_training_steps(schedule: str) -> None:
    """A picture to start from, at a low strength with all its steps, is at the end of a very long schedule."""
    sigmas = sigmas_for(SAMPLERS["Euler"], schedule, 3000, SD1)
    assert len(sigmas) == 3001
    assert all(later < earlier for earlier, later in zip(sigmas, sigmas[1:], strict=False))


@pytest.mark.parametrize("steps", [1, 2, 20, 150])
def test_they_begin_at_the_top(steps: int) -> None:
    for schedule in {*SCHEDULES} - {"DDIM", "Align Your Steps"}:
        sigmas = sigmas_for(SAMPLERS["DPM++ 2M"], schedule, steps, SD1)
        assert sigmas[0] == pytest.approx(14.6146, abs=1e-4)  # what k-diffusion prints for this model


def test_ends_and_curve_can_be_chosen() -> None:
    def visited(schedule: str, **options: Any) -> list[float]:
        return sigmas_for(SAMPLERS["Euler"], schedule, 3, SD1, Sampling(**options))

    for schedule in ("Karras", "Exponential", "Polyexponential", "Normal"):
        low, high = 0.1, 10.0
        ends = visited(schedule, sigma_min=low, sigma_max=high)
        assert (ends[0], ends[2], ends[3]) == pytest.approx((high, low, 0))
    middle = ((14.61464 ** (1 / 3) + 0.029167 ** (1 / 3)) / 2) ** 3
    assert visited("Karras", rho=3.0)[1] == pytest.approx(middle, rel=1e-4)
    assert visited("Polyexponential", rho=2.0)[1] == pytest.approx(0.029167 * (14.61464 / 0.029167) ** 0.25, rel=1e-4)
    for row in choices.SCHEDULES[1:]:
        assert (visited(row.label, sigma_min=0.1, sigma_max=10.0) != visited(row.label)) == row.ends
        assert (visited(row.label, rho=3.0) != visited(row.label)) == (row.rho is not None)
    with pytest.raises(PipelineError, match="no room between the noise levels 10 and 2"):
        visited("Karras", sigma_min=10.0, sigma_max=2.0)
    with pytest.raises(PipelineError, match="at most 1"):
        sigmas_for(SAMPLERS["Euler"], "Karras", 3, FLOW, Sampling(sigma_max=14.6))


def test_the_penultimate_level_can_be_left_out() -> None:
    """Of one step more, so that the count stays; some samplers do by themselves."""
    whole = sigmas_for(SAMPLERS["Euler"], "Karras", 6, SD1)
    without = [*whole[:-2], 0.0]
    assert sigmas_for(SAMPLERS["Euler"], "Karras", 5, SD1, Sampling(discard_penultimate=True)) == without
    for name in ("DPM2", "DPM2 a", "DPM++ 3M SDE"):
        assert sigmas_for(SAMPLERS[name], "Karras", 5, SD1) == without
        assert len(sigmas_for(SAMPLERS[name], "Karras", 5, SD1, Sampling(discard_penultimate=False))) == 6


def test_automatic_is_the_samplers_own() -> None:
    for name, own in (("DPM++ 2M", "Karras"), ("Euler", "Uniform"), ("UniPC", "SGM Uniform"), ("DDIM", "DDIM")):
        assert sigmas_for(SAMPLERS[name], "Automatic", 9, SD1) == sigmas_for(SAMPLERS[name], own, 9, SD1)
    assert sigmas_for(SAMPLERS["DPM++ 2M"], "Automatic", 9, FLOW) == [*FLOW.own_schedule(9).tolist(), 0.0]


def test_unknown_names_are_told_the_choices() -> None:
    with pytest.raises(UnknownChoice, match="Choose one of: DPM\\+\\+ 2M, DPM\\+\\+ SDE"):
        sampler_named("Eular")
    with pytest.raises(UnknownChoice, match="Choose one of: Automatic, Uniform, Karras"):
        sigmas_for(SAMPLERS["Euler"], "karas", 5, SD1)


def test_what_has_no_form_for_flows_is_refused() -> None:
    for name, sampler in SAMPLERS.items():
        if not sampler.row.flow:
            with pytest.raises(PipelineError, match=f"{name} cannot draw with flow models.* Euler,"):
                sigmas_for(sampler, "Automatic", 5, FLOW)
    with pytest.raises(PipelineError, match=r"Align Your Steps is not for flow models.* Beta"):
        sigmas_for(SAMPLERS["Euler"], "align_your_steps", 5, FLOW)


def test_the_tables_agree() -> None:
    assert tuple(SCHEDULES) == SCHEDULE_NAMES[1:]
    assert {row.schedule for row in choices.SAMPLERS.values()} <= set(SCHEDULES)


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
