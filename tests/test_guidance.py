"""Variants of guidance: their formulas, what they do to a picture, and that nothing is left of them afterwards."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.conditioning import Told
from pipelines.families.base import Cond
from pipelines.families.sd1 import SD1
from pipelines.families.sdxl import SDXL
from pipelines.features import denoiser
from pipelines.guidance import guided
from pipelines.guidance.merging import merge_of
from pipelines.kit import SoloKit
from pipelines.memory.fitting import Fitted
from pipelines.memory.planner import Plan
from pipelines.passes import Pass
from pipelines.processors import attentions
from pipelines.prompt import Term, Wording
from pipelines.request import GenerationRequest, Guidance
from pipelines.samplers import Sigmas
from pipelines.scene import Scene
from pipelines.stages import extent, stages
from tests.checkpoints import save_checkpoint
from tests.drawing import draw
from tests.test_dit import made

CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    "rescale": {"rescale": 0.7},
    "interval": {"start": 0.2, "end": 0.8},
    "ngms": {"min_sigma": 15.0},
    "apg": {"apg": 1.0, "apg_norm": 2.0},
    "pag": {"pag": 3.0},
    "freeu": {"freeu": (1.5, 1.6, 0.9, 0.2)},
    "merging": {"token_merging": 0.5},
}


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> SD1:
    return SD1.load(save_checkpoint(tmp_path_factory.mktemp("sd1") / "dream.safetensors"), CPU)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> SDXL:
    return SDXL.load(save_checkpoint(tmp_path_factory.mktemp("xl") / "dream.safetensors", "sdxl"), CPU)


def request(guidance: dict[str, Any] | None = None, **fields: Any) -> GenerationRequest:
    """Of a model that may be any; of 128 pixels: with half of that, the middle of the network is a single place."""
    asked: dict[str, Any] = {"prompt": "a cat", "seed": 5, "width": 128, "height": 128, "steps": 5}
    return GenerationRequest(**{**asked, "sampler": "Euler", **fields}, guidance=Guidance(**(guidance or {})))


# Formulas


class Pictures:
    """A model that sees, with prompt number k, the k-th of these, for the perturbed rows those behind them."""

    def __init__(self, views: Sequence[Tensor], perturbed: Sequence[Tensor] = ()) -> None:
        self.views, self.perturbed = views, perturbed
        self.parts = {"unet": None}
        self.asked: list[int] = []

    def predict(self, x: Tensor, sigma: float, cond: Cond) -> Tensor:
        self.asked.append(len(x))
        marked = cond.perturbed or (False,) * len(x)
        texts = cond.tokens.flatten().tolist()
        return torch.stack(
            [
                (self.perturbed if mark else self.views)[int(text)][row % 2]
                for row, (text, mark) in enumerate(zip(texts, marked, strict=True))
            ]
        )


def numbers(seed: int) -> Tensor:
    """Two images."""
    return torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def scene_of(model: Any, guidance: dict[str, Any], scale: float = 5.0, **more: Any) -> Scene:
    """Of two images; the texts: 0 to be drawn towards, 1 to be stayed away from, 2 beside 0 where there are weights."""
    weights, sigmas = more.get("weights", (1.0,)), more.get("sigmas", Sigmas([2.0, 1.0, 0.0]))
    steps = len(sigmas) - 1
    towards = tuple(Term((2 * i,) * steps, weight) for i, weight in enumerate(weights))
    told = Told(Cond(torch.arange(3.0)[:, None]), Wording(("", "", ""), towards, (1,) * steps))
    asked = request(guidance, cfg_scale=scale, batch_size=2)
    return Scene(asked, stages(asked)[0], SoloKit(model), model, told, range(2), sigmas)


X, SEEN, AWAY, MORE, WORSE, OTHER = (numbers(seed) for seed in range(6))


def test_rescaled_guidance_has_the_spread_of_the_prompt() -> None:
    """Of velocities: the formula of diffusers, which takes what a model that predicts v gives."""
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    sigma = 1.3
    alpha, beta = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)

    def velocity(x0: Tensor) -> Tensor:
        return alpha * (X - x0) / sigma - beta * x0

    found = guided(scene_of(Pictures([SEEN, AWAY]), {"rescale": 0.7}))(X, sigma)
    plain = AWAY + 5 * (SEEN - AWAY)
    expected = rescale_noise_cfg(velocity(plain), velocity(SEEN), 0.7)
    assert torch.allclose(velocity(found), expected, atol=1e-4)


def test_rescaled_velocities_of_flow_models() -> None:
    sigma, sigmas = 0.6, Sigmas([0.9, 0.6, 0.0], flow=True)
    found = guided(scene_of(Pictures([SEEN, AWAY]), {"rescale": 1.0}, sigmas=sigmas))(X, sigma)
    velocity, own = (X - found) / sigma, (X - SEEN) / sigma
    assert torch.allclose(velocity.std((1, 2, 3)), own.std((1, 2, 3)), atol=1e-5)
    plain = (X - (AWAY + 5 * (SEEN - AWAY))) / sigma
    assert torch.allclose(velocity / velocity.std((1, 2, 3), keepdim=True), plain / plain.std((1, 2, 3), keepdim=True))


@pytest.mark.parametrize("momentum", [0.0, -0.5])
@pytest.mark.parametrize("norm", [0.0, 2.0])
def test_projected_guidance(momentum: float, norm: float) -> None:
    """As diffusers' guider, over two steps: the second one has the memory of the first."""
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    memory = MomentumBuffer(momentum)
    model = Pictures([SEEN, AWAY])
    denoise = guided(scene_of(model, {"apg": 0.8, "apg_norm": norm, "apg_momentum": momentum}))
    for sigma, views in ((2.0, (SEEN, AWAY)), (1.0, (MORE, OTHER))):
        model.views = views
        expected = normalized_guidance(*views, 4.0, memory, 0.2, norm, use_original_formulation=True)
        assert torch.allclose(denoise(X, sigma), expected, atol=1e-5)


def test_projected_guidance_without_anything_left_out_is_plain() -> None:
    plain, changed = (
        guided(scene_of(Pictures([SEEN, AWAY]), asked))(X, 1.0)
        for asked in ({}, {"apg": 1e-9, "apg_norm": 0.0, "apg_momentum": 0.0})
    )
    assert torch.allclose(plain, changed, atol=1e-5)


def test_away_from_the_perturbed_network() -> None:
    """With guidance, without it, and with several prompts, whose perturbed views count as they do."""
    model = Pictures([SEEN, AWAY, MORE], [WORSE, AWAY, OTHER])
    found = guided(scene_of(model, {"pag": 3.0}))(X, 1.0)
    assert torch.allclose(found, AWAY + 5 * (SEEN - AWAY) + 3 * (SEEN - WORSE), atol=1e-5)
    both = guided(scene_of(model, {"pag": 3.0}, weights=(1.0, 0.5)))(X, 1.0)
    pull = (SEEN - AWAY) + 0.5 * (MORE - AWAY)
    worse = (SEEN - WORSE) + 0.5 * (MORE - OTHER)
    assert torch.allclose(both, AWAY + 5 * pull + 3 * worse, atol=1e-4)
    assert model.asked == [6, 10]


def test_the_interval() -> None:
    """One pass outside of it; but what prompts say together is asked about where their weights do not add up to 1."""
    sigmas = Sigmas([float(10 - i) for i in range(10)] + [0.0])
    model = Pictures([SEEN, AWAY, MORE], [WORSE, AWAY, OTHER])
    scene = scene_of(model, {"start": 0.2, "end": 0.7, "pag": 1.0, "rescale": 0.5}, sigmas=sigmas)
    denoise = guided(scene)
    seen = []
    for sigma in sigmas[:-1]:
        found = denoise(X, sigma)
        seen.append(model.asked[-1] // 2)
        assert torch.equal(found, SEEN) == (seen[-1] == 1)
        assert (scene.seen.unguided is None) == (seen[-1] == 1)
    assert seen == [1, 1, 1, 3, 3, 3, 3, 1, 1, 1]
    both = guided(scene_of(model, {"start": 0.2}, sigmas=sigmas, weights=(1.0, 1.0)))
    assert torch.allclose(both(X, 10.0), AWAY + (SEEN - AWAY) + (MORE - AWAY), atol=1e-5)


def test_every_other_step_below_a_level() -> None:
    sigmas = Sigmas([float(10 - i) for i in range(10)] + [0.0])
    model = Pictures([SEEN, AWAY])
    denoise = guided(scene_of(model, {"min_sigma": 5.5}, sigmas=sigmas))
    for sigma in sigmas[:-1]:
        denoise(X, sigma)
    assert [rows // 2 for rows in model.asked] == [2, 2, 2, 2, 2, 1, 2, 1, 2, 1]


# Inside of the network


def test_merged_places() -> None:
    """Of a picture of four colours, a quarter of the places says all: merged and unmerged it is what it was."""
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    picture = colours[[0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]][None]
    merge = merge_of(picture, 4, 4, 0.75)
    together = merge.together(picture)
    assert together.shape == (1, 4, 3)
    assert torch.allclose(merge.apart(together), picture)
    small = merge_of(picture, 4, 4, 0.25).together(picture)
    assert small.shape == (1, 12, 3)


def test_merging_takes_the_mean_of_those_most_alike() -> None:
    """Written out, place by place, for two rows of 5 x 3 places, of which a line and a column are in no square."""
    x = torch.randn(2, 15, 4, generator=torch.Generator().manual_seed(3))
    merge, stays = merge_of(x, 5, 3, 0.4), [0, 6]
    for row in range(2):
        near = {
            place: max((float(torch.cosine_similarity(x[row, place], x[row, other], 0)), other) for other in stays)
            for place in range(15)
            if place not in stays
        }
        gone = sorted(near, key=lambda place: -near[place][0])[:6]
        expected = x[row].clone()
        for other in stays:
            group = [other, *(place for place in gone if near[place][1] == other)]
            expected[group] = x[row, group].mean(0)
        assert torch.allclose(merge.apart(merge.together(x))[row], expected, atol=1e-6)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_tokens_are_merged_in_the_finest_level_alone(family: str, sd1: SD1, sdxl: SDXL) -> None:
    model: Any = sd1 if family == "sd1" else sdxl
    seen: dict[str, int] = {}

    def see(name: str, module: Any, args: tuple[Tensor]) -> None:
        seen[name] = args[0].shape[1]

    layers = [(name, layer) for name, layer in attentions(model.unet) if name.endswith("attn1")]
    hooks = [layer.to_q.register_forward_pre_hook(partial(see, name)) for name, layer in layers]
    sizes: list[dict[str, int]] = []
    for share in (0.0, 0.5):
        draw(model, request({"token_merging": share}, steps=1))
        sizes.append(dict(seen))
    for hook in hooks:
        hook.remove()
    before, after = sizes
    most = max(before.values())
    assert after == {name: size // 2 if size == most else size for name, size in before.items()}


@torch.inference_mode()
def test_the_middle_of_the_network_is_perturbed_for_the_marked_rows_alone(sd1: SD1) -> None:
    """As diffusers' processor does it, put into the middle by hand."""
    from diffusers.models.attention_processor import PAGCFGIdentitySelfAttnProcessor2_0

    scene = scene_with(sd1, request({"pag": 1.0}, cfg_scale=7))
    cond = scene.told.at(0, 1)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)).repeat(3, 1, 1, 1)
    rows = cond.take([1, 0, 0])  # diffusers' order: away, towards, perturbed
    middle = [layer for name, layer in attentions(sd1.unet) if name.startswith("mid_block") and name.endswith("attn1")]
    before = [layer.processor for layer in middle]
    for layer in middle:
        layer.set_processor(PAGCFGIdentitySelfAttnProcessor2_0())
    expected = sd1.predict(x, 3.0, rows)
    for layer, processor in zip(middle, before, strict=True):
        layer.set_processor(processor)
    with denoiser(scene):
        found = sd1.predict(x, 3.0, replace(rows, perturbed=(False, False, True)))
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[1], found[2], atol=1e-4)


def scene_with(model: Any, asked: GenerationRequest) -> Scene:
    one = Pass(asked, stages(asked)[0], SoloKit(model), range(asked.units))
    with one.staged(one.legs[0]) as scene:
        return scene


# Pictures


@torch.inference_mode()
def latents(model: Any, asked: GenerationRequest) -> Tensor:
    """Of the pictures; with random weights, their pixels say little."""
    one = Pass(asked, stages(asked)[0], SoloKit(model), range(asked.units))
    with one.walked(one.legs[0], lambda index, x0: None) as (_, made):
        assert isinstance(made, Tensor)
        return made


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_shows_and_leaves_nothing_behind(sd1: SD1, name: str) -> None:
    """And a picture in a batch is the picture alone."""
    plain = latents(sd1, request())
    before = [layer.processor for _, layer in attentions(sd1.unet)]
    asked = request(VARIANTS[name], batch_size=2)
    both, alone = latents(sd1, asked), latents(sd1, request(VARIANTS[name], seed=6))
    assert (plain - both[:1]).abs().max() > 0.01
    assert torch.allclose(both[1:], alone, atol=1e-3)
    with pytest.raises(RuntimeError), denoiser(scene_with(sd1, asked)):
        raise RuntimeError
    assert [layer.processor for _, layer in attentions(sd1.unet)] == before
    assert torch.equal(latents(sd1, request()), plain)


def test_all_at_once(sd1: SD1) -> None:
    everything = {key: value for variant in VARIANTS.values() for key, value in variant.items()}
    found = latents(sd1, request(everything, prompt="a cat AND a dog:0.5", sampler="DPM++ 2M"))
    assert found.isfinite().all()


@pytest.mark.parametrize("prompt", ["a cat", "a cat AND a dog:0.5 AND rain:-0.3"])
@pytest.mark.parametrize("images", [1, 2])
def test_in_pieces_it_is_the_same(sd1: SD1, prompt: str, images: int) -> None:
    """At most so many rows at once as there are images, however many prompts."""
    asked = request({"pag": 2.0}, prompt=prompt, batch_size=images, cfg_scale=6)
    _, _, batch, with_guidance, prompts = extent(asked)
    rows: list[int] = []
    hook = sd1.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    found = []
    x = torch.randn(images, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    for split in (False, True):
        work: Any = None
        model: Any = Fitted(sd1, Plan(host=True, split_cfg=split, rows=batch), work)
        with torch.inference_mode(), denoiser(scene_with(model, asked)) as denoise:
            found.append(denoise(x, 0.3))
    hook.remove()
    whole = batch * (prompts + with_guidance)
    assert rows == [whole, *[images] * (prompts + with_guidance)]
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_what_works_inside_of_a_unet_is_said_of_other_networks() -> None:
    kit = SoloKit(made("flux"))
    asked = request({"pag": 3.0, "freeu": (1, 1, 1, 1), "token_merging": 0.5}, cfg_scale=1, steps=2)
    plain = draw(kit, request(cfg_scale=1, steps=2))[0]
    assert draw(kit, asked)[0].tobytes() == plain.tobytes()
    assert len(kit.notes) == 3
    assert all("U-Net" in note for note in kit.notes)
