"""Textures: what is rolled round gives the same picture, rolled round; and afterwards everything is as it was."""

import numpy as np
import pytest
import torch

from pipelines.decoding import VAEWork
from pipelines.families.sd1 import SD1
from pipelines.images.tiling import AXES, going_round
from pipelines.kit import SoloKit
from pipelines.memory.fitting import Fitted
from pipelines.memory.planner import Plan
from pipelines.prompt import read
from pipelines.request import GenerationRequest
from tests.checkpoints import save_checkpoint
from tests.drawing import draw
from tests.test_dit import made

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SD1:
    """As deep as the full one: three times half the size."""
    path = save_checkpoint(tmp_path_factory.mktemp("sd1") / "deep.safetensors", dtype=torch.float32)
    return SD1.load(path, CPU)


@pytest.mark.parametrize("axis", AXES)
@torch.inference_mode()
def test_rolling_in_is_rolling_out(model: SD1, axis: str) -> None:
    x, cond = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0)), model.encode([read("moss")])
    pixels = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    for number, dim in ((0, -1), (1, -2)):
        shift = 8  # the U-Net's coarsest layer holds 8 latents in one place
        with going_round(model.unet, AXES[axis]), going_round(model.vae, AXES[axis]):
            seen, rolled = model.predict(x, 2.0, cond), model.predict(x.roll(shift, dim), 2.0, cond)
            pictures = [model.vae.decode(each).sample for each in (x, x.roll(shift, dim))]
            latents = [model.to_latent(each) for each in (pixels, pixels.roll(8 * shift, dim))]
        errors = [
            (rolled - seen.roll(shift, dim)).abs().max() / seen.std(),
            (pictures[1] - pictures[0].roll(8 * shift, dim)).abs().max() / pictures[0].std(),
            (latents[1] - latents[0].roll(shift, dim)).abs().max() / latents[0].std(),
        ]
        assert all(error < 1e-3 for error in errors) if AXES[axis][number] else all(error > 0.01 for error in errors)


@torch.inference_mode()
def test_afterwards_everything_is_as_it_was(model: SD1) -> None:
    asked = GenerationRequest(prompt="moss", width=64, height=64, steps=2, seed=5)
    before = draw(model, asked)[0].tobytes()
    tiled = {axis: draw(model, asked.model_copy(update={"tiling": axis}))[0].tobytes() for axis in AXES}
    assert len({before, *tiled.values()}) == 4
    assert draw(model, asked)[0].tobytes() == before
    layers = [*model.unet.modules(), *model.vae.modules()]
    assert not any("_conv_forward" in vars(layer) for layer in layers)


@torch.inference_mode()
def test_a_vae_that_works_in_tiles_goes_round_too(model: SD1) -> None:
    x = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(0))
    for _ in range(60):  # smooth, round the edges as well
        x = sum((x.roll(step, dim) for dim in (-1, -2) for step in (-1, 1)), x) / 5
    seams = []
    for axes in ((True, True), (False, False)):
        work = VAEWork(model.parts["vae"], CPU, tile=32)
        fitted = Fitted(model, Plan(host=True), work)
        with work.in_charge(), fitted.wrapping(axes), going_round(model.vae, (True, True)):
            found = np.asarray(fitted.decode((x / x.std())[0])).astype(int)
        assert (found.shape, work.wrap) == ((320, 320, 3), (False, False))
        seams.append(float(np.abs(found[:, 0] - found[:, -1]).mean() / np.abs(found[:, 1:] - found[:, :-1]).mean()))
    assert seams[0] < 1.5 < 5 < seams[1]


def test_what_cannot_go_round_says_so() -> None:
    kit = SoloKit(made("flux"))
    asked = GenerationRequest(prompt="moss", width=64, height=64, steps=1, cfg_scale=1, sampler="Euler")
    plain = draw(kit, asked)[0]
    assert draw(kit, asked.model_copy(update={"tiling": "both"}))[0].tobytes() == plain.tobytes()
    assert "U-Nets only" in kit.notes[-1]
