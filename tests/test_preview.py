"""Previews: the fitted map shows colours, is kept, and costs little."""

import io
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from pipelines.families.sd1 import SD1
from pipelines.preview import PAUSE_SECONDS, Previews, colours, fingerprint, fit, swatches

CPU = torch.device("cpu")
STARTER = Path(__file__).parent.parent / "models" / "starter"


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, CPU)


def explained(model: SD1, pixels: torch.Tensor) -> float:
    """How much of the variance of colours the map explains (R squared)."""
    latent = model.to_latent(pixels)
    table = fit(model).float()
    found = torch.einsum("nchw,cr->nrhw", latent, table[:-1]) + table[-1][:, None, None]
    small = torch.nn.functional.interpolate(pixels, latent.shape[-2:], mode="area")
    rest = (found - small).square().sum()
    return 1 - float(rest / (small - small.mean((0, 2, 3), keepdim=True)).square().sum())


def test_the_map_of_a_linear_encoder_is_found() -> None:
    class Linear:
        """Four channels out of three colours: one of them says nothing new, and one next to nothing."""

        vae = torch.nn.Linear(1, 1)
        mix = torch.tensor([[1.0, 2, 0], [0, 1, -1], [3, 0, 1], [1e-4, 0, 0]])

        def to_latent(self, pixels: torch.Tensor) -> torch.Tensor:
            small = torch.nn.functional.avg_pool2d(pixels, 8)
            return torch.einsum("nchw,rc->nrhw", small, self.mix) - 0.7

    linear: Any = Linear()
    assert explained(linear, swatches()) > 0.999
    assert explained(linear, torch.rand(1, 3, 64, 64)) > 0.999


def test_the_map_is_never_worse_than_the_mean_colour(model: SD1) -> None:
    """A VAE with random weights keeps next to nothing of the colours."""
    assert explained(model, swatches()) > 0


@pytest.mark.skipif(not STARTER.exists(), reason="the starter model is not here")
def test_the_map_shows_colours_that_it_has_not_seen() -> None:
    model = SD1.load(STARTER, CPU)
    assert explained(model, swatches()) > 0.8
    pixels = torch.ones(1, 3, 128, 128)
    pixels[:, :, 32:96, 32:96] = torch.tensor([0.9, 0.2, 0.2])[:, None, None]
    assert explained(model, pixels) > 0.6
    seen = colours(model.to_latent(pixels)[0], fit(model).float())
    assert seen.size == (16, 16)
    red, green, blue = seen.resize((1, 1), PIL.Image.Resampling.BOX, (5, 5, 11, 11)).getpixel((0, 0))  # type: ignore[misc]
    assert red > 180
    assert max(green, blue) < 120


@pytest.mark.parametrize(
    ("size", "expected"),
    [((16, 16), (128, 128)), ((64, 64), (512, 512)), ((96, 64), (480, 320)), ((128, 64), (512, 256))],
)
def test_previews_are_small_pictures(model: SD1, size: tuple[int, int], expected: tuple[int, int]) -> None:
    data = Previews().jpeg(model, torch.randn(4, size[1], size[0]))
    assert data is not None
    picture = PIL.Image.open(io.BytesIO(data))
    assert picture.format == "JPEG"
    assert picture.size == expected


def test_previews_rest_between(model: SD1) -> None:
    previews = Previews()
    x0 = torch.randn(4, 8, 8)
    assert previews.jpeg(model, x0)
    assert previews.jpeg(model, x0) is None
    assert previews.jpeg(model, x0, must=True)
    assert PAUSE_SECONDS == 0.05


def test_invalid_numbers_do_no_harm(model: SD1) -> None:
    assert Previews().jpeg(model, torch.full((4, 8, 8), float("nan")))


def test_maps_are_kept(tiny: Path, tmp_path: Path) -> None:
    model = SD1.load(tiny, CPU)
    cache = tmp_path / "cache"
    first = Previews(cache).map_for(model)
    [file] = cache.iterdir()
    assert file.stem == fingerprint(model.vae)
    file.write_text(json.dumps((first * 2).tolist()))  # as a sign of where the next one comes from
    assert torch.allclose(Previews(cache).map_for(SD1.load(tiny, CPU)), first * 2)
    for spoilt in ("", "[1, 2]", "{}", "[[1e999, 0, 0]]"):
        file.write_text(spoilt)
        assert torch.equal(Previews(cache).map_for(model), first)
    assert torch.equal(Previews(file).map_for(model), first)  # a cache that cannot be written is no cache


def test_other_weights_have_another_map(tiny: Path) -> None:
    model = SD1.load(tiny, CPU)
    before = fingerprint(model.vae)
    model.vae.encoder.conv_in.weight.mul_(1.01)
    assert fingerprint(model.vae) != before
