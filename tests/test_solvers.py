"""Solvers against exact solutions: their order, what fresh noise does, their forms for flows, what they are told."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines import choices
from pipelines.errors import PipelineError
from pipelines.samplers import SAMPLERS, SOLVERS, ImageNoise, Sigmas, Walk, adaptive
from pipelines.samplers.adams import extrapolation
from pipelines.samplers.adaptive import orders_for
from pipelines.samplers.restart import rounds
from pipelines.samplers.walk import Step
from tests.walking import MEAN, SD1, SPREAD, Axes, Gaussian, NoNoise, gaussian, nothing, solve

FRESH = ("Restart", "LCM", "TCD")
"""Draw noise whatever eta is."""
BY_CALLS = ("DPM fast", "DPM adaptive")
"""Choose their own levels."""
ODE = [name for name in SAMPLERS if name not in (*FRESH, *BY_CALLS)]
ANCESTRAL = [name for name, sampler in SAMPLERS.items() if sampler.row.eta is not None and name in ODE]
BY_RATIO = [name for name in ODE if name not in ("Heun", "LMS", "PLMS", "IPNDM")]
"""Their steps are the same in noise / signal; the others step in sigma."""


def even_in_log(steps: int, high: float, low: float) -> list[float]:
    return np.exp(np.linspace(math.log(high), math.log(low), steps + 1)).tolist()  # type: ignore[no-any-return]


def curved(steps: int, high: float, low: float) -> list[float]:
    return (np.linspace(high ** (1 / 7), low ** (1 / 7), steps + 1) ** 7).tolist()  # type: ignore[no-any-return]


def even(steps: int, high: float, low: float) -> list[float]:
    return np.linspace(high, low, steps + 1).tolist()  # type: ignore[no-any-return]


class Arrived(Exception):
    """With what the model is given at the level that was waited for."""


def arrival(name: str, sigmas: Sequence[float], x: Tensor, denoise: Gaussian, **options: Any) -> Tensor:
    """x at the last of these levels, from where the walk goes on: ends are often of a lower order."""
    low = sigmas[-1]
    further = [low * (1 - n / 10) for n in range(1, 11)]

    def watched(x: Tensor, sigma: float) -> Tensor:
        if sigma <= low * (1 + 1e-12):
            raise Arrived(x)
        return denoise(x, sigma)

    with pytest.raises(Arrived) as arrived:
        solve(name, Sigmas([*sigmas, *further], denoise.flow), x, watched, **options)
    found: Tensor = arrived.value.args[0]
    return found


Levels = Callable[[int, float, float], list[float]]


def order(name: str, levels: Levels, high: float, low: float, flow: bool = False) -> float:
    """From 200 to 400 steps: log2 of how much nearer the result is to the exact one."""
    errors = []
    model = Gaussian(flow=flow)
    for steps in (200, 400):
        sigmas = levels(steps, high, low)
        start = torch.tensor([1.0, -2.0], dtype=torch.float64) * sigmas[0]
        exact = model.exact(start, sigmas[0], sigmas[-1])
        errors.append(float((arrival(name, sigmas, start, model, eta=0.0) - exact).abs().max()))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("name", ODE)
def test_order_of_convergence(name: str) -> None:
    """From far above, so that the lower orders with which multistep methods begin do not count."""
    levels = curved if name == "DEIS" else even_in_log
    assert order(name, levels, 1000.0, 0.1) == pytest.approx(SAMPLERS[name].row.order, abs=0.15)


@pytest.mark.parametrize("name", ["PLMS", "IPNDM"])
def test_steps_that_are_taken_for_even_have_their_order_where_they_are(name: str) -> None:
    assert order(name, even, 14.0, 1.0) == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize(
    ("name", "expected"), [("Heun", 2), ("DPM2", 2), ("LMS", 4), ("Euler", 1), ("DPM++ 2M", 2), ("UniPC", 4)]
)
def test_order_of_convergence_in_flows(name: str, expected: int) -> None:
    def levels(steps: int, high: float, low: float) -> list[float]:
        return [ratio / (1 + ratio) for ratio in even_in_log(steps, 1000.0, 0.1)]

    assert order(name, levels, 0, 0, flow=True) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", BY_RATIO)
def test_flows_are_walked_as_diffusion_is(name: str, eta: float) -> None:
    """x / signal has the noise level sigma / signal: what is exact for the one is exact for the other."""
    if name not in ANCESTRAL and eta:
        pytest.skip("takes no eta")
    ratios = curved(12, 8.0, 0.1)
    flow = Sigmas([*(ratio / (1 + ratio) for ratio in ratios), 0.0], flow=True)
    draw = torch.Generator()
    start = torch.randn(2, 3, 4, dtype=torch.float64, generator=draw.manual_seed(1)) * 8

    class Draws:
        def __call__(self) -> Tensor:
            return torch.randn(2, 3, 4, dtype=torch.float64, generator=draw)

        def between(self, sigma: float, following: float) -> Tensor:
            return self()

    draw.manual_seed(2)
    one = solve(name, [*ratios, 0.0], start, gaussian, Draws(), eta=eta)
    draw.manual_seed(2)
    other = solve(name, flow, start * (1 - flow[0]), Gaussian(flow=True), Draws(), eta=eta)
    assert torch.allclose(one, other, atol=1e-9)


def variance_error(name: str, steps: int, flow: bool, eta: float) -> float:
    """Of a walk with fresh noise, exactly: how far the variance is from what pictures have at that noise level."""
    model = Gaussian(0.0, flow)
    ratios = even_in_log(steps, 30.0, 0.1)
    sigmas = [ratio / (1 + ratio) for ratio in ratios] if flow else ratios

    def walked(axes: Axes) -> Tensor:
        start = torch.eye(axes.size, dtype=torch.float64)[0] * model.spread(sigmas[0])
        return arrival(name, sigmas, start, model, eta=eta, noise=axes)

    first = Axes(3 * steps)
    walked(first)
    places = sorted(first.asked, reverse=True)
    weights = walked(Axes(len(places) + 2, places=places) if places else Axes(first.used + 1))
    return abs(float(weights.square().sum()) - model.spread(sigmas[-1]) ** 2)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ANCESTRAL)
def test_fresh_noise_keeps_the_variance(name: str, eta: float) -> None:
    few, many = (variance_error(name, steps, False, eta) for steps in (40, 80))
    assert math.log2(few / many) == pytest.approx(min(2, SAMPLERS[name].row.order), abs=0.2)
    assert many < (0.06 if SAMPLERS[name].row.order == 1 else 0.002)


def marginals(name: str, levels: Sequence[float], flow: bool = False, **options: Any) -> Tensor:
    model = Gaussian(flow=flow)
    noise = ImageNoise((1, 150, 150), [1], torch.device("cpu"), span=(levels[-2], levels[0]))
    start = noise() * model.spread(levels[0]) + model.signal(levels[0]) * MEAN
    return solve(name, Sigmas(levels, flow), start, model, noise, **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pictures_come_out_as_they_are_spread(name: str) -> None:
    """Few-step samplers are for models that answer with a picture, not with the mean of all possible ones."""
    if name in ("LCM", "TCD"):
        pytest.skip("see below")
    end = marginals(name, [*curved(60, 14.6, 0.03), 0.0])
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(end.std()) == pytest.approx(SPREAD, rel=0.06)


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.row.flow and name != "LCM"])
def test_from_pure_noise_to_pictures_of_a_flow(name: str) -> None:
    end = marginals(name, even(80, 1.0, 0.0), flow=True)
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(end.std()) == pytest.approx(SPREAD, rel=0.06)


@pytest.mark.parametrize("name", ["LCM", "TCD"])
def test_few_steps_stand_where_their_noise_level_says(name: str) -> None:
    """With a model that knows the picture, x is that picture and noise of the level's strength."""
    picture = torch.full((1, 1, 100, 100), 0.5)
    for flow in (False, True) if SAMPLERS[name].row.flow else (False,):
        levels = [0.9, 0.6, 0.3, 0.0] if flow else [9.0, 4.0, 1.0, 0.0]
        noise = ImageNoise((1, 100, 100), [1], torch.device("cpu"))

        def knows(x: Tensor, sigma: float, flow: bool = flow) -> Tensor:
            left = x - picture * (1 - sigma if flow else 1)
            assert float(left.std()) == pytest.approx(sigma, rel=0.03)
            return picture

        start = noise() * levels[0] + picture * (1 - levels[0] if flow else 1)
        assert torch.equal(solve(name, Sigmas(levels, flow), start, knows, noise), picture)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_jumps_to_what_the_model_sees(name: str) -> None:
    x = torch.tensor([3.0, -2.0], dtype=torch.float64)
    assert torch.allclose(solve(name, [10.0, 0.0], x), gaussian(x, 10.0))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 3, 7, 25, 40])
def test_every_step_is_told(name: str, steps: int) -> None:
    """In order, each once, with what the model saw; DPM adaptive tells how far it has come."""
    seen: list[int] = []
    noise = ImageNoise((1, 4, 4), [1], torch.device("cpu"), span=(0.03, 14.6))
    solve(
        name,
        [*curved(steps - 1, 14.6, 0.03), 0.0],
        noise() * 14.6,
        noise=noise,
        on_step=lambda index, x0: seen.append(index),
    )
    if name == "DPM adaptive":
        assert seen == sorted(seen)
        assert (seen[0], seen[-1]) == (0, steps - 1)
    else:
        assert seen == list(range(steps))


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_k_of_a_batch_is_the_single_image_of_seed_plus_k(name: str) -> None:
    def drawn(seeds: Sequence[int]) -> Tensor:
        noise = ImageNoise((2, 8, 8), seeds, torch.device("cpu"), span=(0.03, 14.6))
        return solve(name, [*curved(24, 14.6, 0.03), 0.0], noise() * 14.6, noise=noise)

    alone = [drawn([seed]) for seed in (5, 6, 7, 8)]
    assert torch.equal(alone[0], drawn([5]))
    if not SAMPLERS[name].row.alone:
        batch = drawn([5, 6, 7, 8])
        assert torch.equal(batch, drawn([5, 6, 7, 8]))
        assert torch.allclose(batch, torch.cat(alone), atol=1e-5)


def test_ancestral_step_is_the_posterior() -> None:
    """With x0 known, the step from sigma 2 to 1 draws from N(x0 + (x - x0) / 4, 3 / 4): Ho et al. 2020, equation 7."""
    x = torch.tensor([2.0], dtype=torch.float64)
    ones = type("Ones", (NoNoise,), {"__call__": lambda self: torch.ones(1, dtype=torch.float64)})()
    for name in ("Euler a", "DDIM"):
        ahead = solve(name, [2.0, 1.0], x, lambda x, sigma: 0 * x + 1, ones, eta=1.0)
        assert float(ahead) == pytest.approx(1 + (2 - 1) / 4 + math.sqrt(3 / 4))
        ahead = solve(name, [2.0, 1.0], x, lambda x, sigma: 0 * x + 1, ones, eta=1.0, s_noise=0.5)
        assert float(ahead) == pytest.approx(1 + (2 - 1) / 4 + math.sqrt(3 / 4) / 2)


@pytest.mark.parametrize("name", ANCESTRAL)
def test_without_fresh_noise_they_are_their_ode(name: str) -> None:
    """The names stand for one function, or for one formula."""
    same = {
        "Euler a": "Euler",
        "DDIM": "Euler",
        "DDIM CFG++": "Euler",
        "DPM2 a": "DPM2",
        "DPM++ 2M SDE": "DPM++ 2M",
        "DPM++ SDE": "DPM++ 2S a",
    }
    sigmas = [*curved(9, 14.6, 0.03), 0.0]
    start = torch.linspace(-30, 30, 7, dtype=torch.float64)
    found = solve(name, sigmas, start, eta=0.0)
    assert torch.allclose(found, solve(same.get(name, name), sigmas, start, eta=0.0))
    assert torch.allclose(found, gaussian.exact(start, 14.6, 0.0), atol=0.6)


def test_churn_goes_up_before_it_goes_down() -> None:
    """Karras et al. 2022, algorithm 2: by a factor of 1 + min(churn / steps, sqrt 2 - 1), within the levels given."""
    for flow in (False, True):
        levels = [0.9, 0.6, 0.3, 0.0] if flow else [9.0, 4.0, 1.0, 0.0]
        noise = ImageNoise((1, 100, 100), [1], torch.device("cpu"))
        asked: list[float] = []

        def knows(x: Tensor, sigma: float, asked: list[float] = asked) -> Tensor:
            asked.append(sigma)
            assert float(x.std()) == pytest.approx(sigma, rel=0.03)
            return torch.zeros_like(x)

        options = {"s_churn": 0.6, "s_tmin": levels[2] * 1.1, "s_tmax": 0.0 if flow else 8.0}
        solve("Euler", Sigmas(levels, flow), noise() * levels[0], knows, noise, **options)
        assert asked == pytest.approx([1.0, 0.72, 0.3] if flow else [9.0, 4.8, 1.0])


def test_an_option_of_the_noise_counts_where_it_should() -> None:
    sampler = SAMPLERS["Euler"]
    walk = Walk(Sigmas([2.0, 0.0]), NoNoise(), nothing)
    assert sampler.solve(gaussian, torch.zeros(1), walk) == gaussian(torch.zeros(1), 2.0)


def test_cfg_plus_plus_goes_back_with_the_noise_of_no_prompt() -> None:
    """Chung et al. 2024, algorithm 1, one step from sigma 2 to 1: x0 of guidance, noise from the other x0."""
    x = torch.tensor([3.0])
    walk = Walk(Sigmas([2.0, 1.0]), NoNoise(), nothing, unguided=lambda: torch.tensor([-1.0]))
    found = SAMPLERS["DDIM CFG++"].solve(lambda x, sigma: torch.tensor([0.5]), x, walk)
    assert found.tolist() == [0.5 + (3 - -1) / 2 * 1]


def test_restart_walks_the_middle_again() -> None:
    for steps, again in ((19, 0), (20, 1), (35, 1), (36, 2), (60, 2)):
        for flow in (False, True):
            sigmas = [*curved(steps - 1, 0.94 if flow else 14.6, 0.03), 0.0]
            walked = list(rounds(sigmas, flow))
            assert len(walked) == steps
            assert walked[0][0] == pytest.approx(sigmas[0])
            assert walked[-1][1] == 0
            assert all(low < high for high, low in walked)
            climbs = [later[0] for one, later in zip(walked, walked[1:], strict=False) if later[0] > one[1]]
            assert len(climbs) == again
            repeated = [index for index, step in enumerate(walked) if index and step[0] > walked[index - 1][1]]
            each = 9 if steps < 36 else steps // 4
            assert all(walked[start + each - 1][1] == pytest.approx(walked[start - 1][1]) for start in repeated)
            assert all(0.5 < climb < 0.8 if flow else 1.2 < climb < 2.8 for climb in climbs)
    near_the_end = [*even(24, 0.09, 0.03), 0.0]
    assert list(rounds(near_the_end, False)) == list(pairwise(near_the_end))


def test_dpm_fast_asks_as_often_as_there_are_steps() -> None:
    """And is of third order: the same calls in steps of one are far worse."""
    for calls in range(1, 12):
        assert sum(orders_for(calls)) == calls
    asked: list[float] = []

    def counted(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return gaussian(x, sigma)

    start = torch.linspace(-20, 20, 5, dtype=torch.float64)
    sigmas = [*even_in_log(23, 14.6, 0.03), 0.0]
    fast = solve("DPM fast", sigmas, start, counted, eta=0.0)
    assert len(asked) == 24
    exact = gaussian.exact(start, 14.6, 0.0)
    assert (fast - exact).abs().max() < 0.02 * (solve("Euler", sigmas, start) - exact).abs().max()


def test_dpm_adaptive_keeps_the_error_small() -> None:
    start = torch.linspace(-20, 20, 5, dtype=torch.float64)
    asked: list[float] = []

    def counted(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return gaussian(x, sigma)

    found = solve("DPM adaptive", [14.6, 0.03, 0.0], start, counted, eta=0.0)
    assert (found - gaussian.exact(start, 14.6, 0.0)).abs().max() < 0.05
    assert len(asked) < 80


@pytest.mark.parametrize("order", adaptive.SOLVERS)
def test_the_steps_of_dpm_solver_have_their_order(order: int) -> None:
    """Over one step of half the length, the error is smaller by 2 to the power of one more."""
    start = torch.tensor([3.0, -5.0], dtype=torch.float64)
    errors = []
    for h in (0.1, 0.05):
        step = Step(1.5, 1.5 * math.exp(-h))
        found = adaptive.SOLVERS[order](adaptive.Asked(gaussian, step, start, gaussian(start, 1.5)))
        errors.append(float((found - gaussian.exact(start, 1.5, step.following)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.2)


def test_dpm_adaptive_says_when_numbers_are_invalid() -> None:
    with pytest.raises(PipelineError, match="invalid numbers"):
        solve("DPM adaptive", [14.6, 0.03, 0.0], torch.ones(2), lambda x, sigma: x * math.nan, eta=0.0)


def test_weights_of_polynomials() -> None:
    """A parabola through three points is integrated exactly; with even steps they are those of Adams and Bashforth."""
    weights = extrapolation([2.0, 1.0, -1.0], 2.0, 5.0)
    assert sum(w * (3 * p**2 - p) for w, p in zip(weights, [2.0, 1.0, -1.0], strict=True)) == pytest.approx(
        (5**3 - 5**2 / 2) - (2**3 - 2**2 / 2)
    )
    assert extrapolation([3.0, 2.0, 1.0, 0.0], 3.0, 4.0) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])


def test_the_tables_agree() -> None:
    assert set(SOLVERS) == set(choices.SAMPLERS)
    assert {name: sampler.row for name, sampler in SAMPLERS.items()} == dict(choices.SAMPLERS)
    assert SD1.high > 14
