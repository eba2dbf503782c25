"""The VAE in tiles looks like the VAE as a whole, and gets through where memory or the number format is short."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.decoding import VAEWork, starts, tiled
from pipelines.loading.parts import Part
from tests.networks import numbers, part

CPU = torch.device("cpu")
STARTER = Path(__file__).parent.parent / "models" / "starter" / "vae"


@pytest.fixture(scope="module")
def starter() -> Part:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    module = AutoencoderKL.from_pretrained(STARTER, local_files_only=True).eval().requires_grad_(False)
    return Part("vae", module, torch.float32, "starter", 0)


def scene(side: int) -> Tensor:
    """[1, 3, side, side] from -1 to 1: soft shapes with edges in them."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    disc = ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.3).float()
    return torch.stack([torch.sin(5 * x + y), disc * 2 - 1, (x * y).clamp(-1, 1)])[None]


def psnr(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(4 / float((a - b).square().mean()))


@torch.inference_mode()
def decode(found: Part, latent: Tensor, work: VAEWork | None = None) -> Tensor:
    module: Any = found.module
    with (work or VAEWork(found, CPU)).in_charge():
        pixels: Tensor = module.decode(latent, return_dict=False)[0]
        return pixels


@torch.inference_mode()
def encode(found: Part, pixels: Tensor, work: VAEWork) -> Tensor:
    module: Any = found.module
    with work.in_charge():
        latent: Tensor = module.encode(pixels).latent_dist.mode()
        return latent


@pytest.mark.slow
def test_tiles_show_no_seams_at_1024_pixels(starter: Part) -> None:
    in_tiles_as_a_whole(starter, 1024, 64)


def test_tiles_show_no_seams(starter: Part) -> None:
    in_tiles_as_a_whole(starter, 512, 32)


def in_tiles_as_a_whole(starter: Part, side: int, tile: int) -> None:
    with torch.inference_mode():
        latent = starter.module.encode(scene(side)).latent_dist.mode()  # type: ignore[operator]
    whole = decode(starter, latent)
    heard: list[tuple[int, int]] = []
    work = VAEWork(starter, CPU, tile=tile)
    work.on_tile = lambda done, total: heard.append((done, total))
    in_tiles = decode(starter, latent, work)
    assert in_tiles.shape == whole.shape == (1, 3, side, side)
    assert psnr(in_tiles, whole) >= 35
    assert not any(layer._forward_hooks for layer in starter.module.modules())
    total = len(starts(side // 8, tile, 16 * tile / 64)) ** 2
    assert heard == [(done, total) for done in range(total + 1)]


def test_pictures_are_encoded_in_tiles(starter: Part) -> None:
    pixels = scene(512)
    whole = encode(starter, pixels, VAEWork(starter, CPU))
    in_tiles = encode(starter, pixels, VAEWork(starter, CPU, tile=32))
    assert in_tiles.shape == whole.shape == (1, 4, 64, 64)
    assert (in_tiles - whole).norm() / whole.norm() < 0.1


@pytest.mark.parametrize(("height", "width"), [(40, 40), (33, 90), (64, 20), (100, 65)])
def test_tiles_cover_every_place(height: int, width: int) -> None:
    x = numbers(1, 2, height, width)

    def larger(piece: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(piece, scale_factor=2, mode="nearest")

    assert torch.allclose(tiled(larger, x, 32, 8, lambda done, total: None), larger(x), atol=1e-5)


def test_tiles_of_latents_with_a_time_axis() -> None:
    x = numbers(1, 2, 1, 40, 50)
    assert torch.allclose(tiled(lambda piece: piece * 3, x, 32, 8, lambda done, total: None), x * 3, atol=1e-5)


@pytest.mark.parametrize("length", [65, 80, 96, 128, 129, 500])
def test_neighbours_overlap_and_the_last_tile_ends_with_the_picture(length: int) -> None:
    found = starts(length, 64, 16)
    assert found[0] == 0
    assert found[-1] == length - 64
    assert all(64 - (after - before) >= 16 for before, after in zip(found, found[1:], strict=False))
    assert starts(64, 64, 16) == starts(20, 64, 16) == [0]


class ShortOfMemory:
    """Stands in for a decoder that takes tiles up to a size only."""

    def __init__(self, real: Callable[..., Any], side: int, error: Exception) -> None:
        self.real, self.side, self.error = real, side, error

    def __call__(self, latent: Tensor, *args: Any, **kwargs: Any) -> Any:
        if max(latent.shape[-2:]) > self.side:
            raise self.error
        return self.real(latent, *args, **kwargs)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize(("side", "tile"), [(64, 64), (40, 32)])
def test_out_of_memory_ends_in_tiles(monkeypatch: pytest.MonkeyPatch, error: Exception, side: int, tile: int) -> None:
    found = part("vae")
    notes: list[str] = []
    module: Any = found.module
    latent = numbers(1, 4, 80, 80)
    monkeypatch.setattr(type(module), "decode", ShortOfMemory(module.decode, side, error))
    work = VAEWork(found, CPU, note=notes.append)
    assert decode(found, latent, work).shape == (1, 3, 160, 160)
    assert work.tile == tile
    assert f"tiles of {tile * 8} pixels" in notes[-1]


def test_errors_that_tiles_do_not_help_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = part("vae")
    for side, error in ((0, torch.OutOfMemoryError("still")), (0, RuntimeError("a bug"))):
        monkeypatch.setattr(type(found.module), "decode", ShortOfMemory(lambda: None, side, error))
        with pytest.raises(type(error), match=str(error)):
            decode(found, numbers(1, 4, 80, 80))


def overflowing() -> Part:
    """A VAE with numbers beyond half precision on the way, as SDXL's has."""
    found = part("vae", dtype=torch.float16)
    module: Any = found.module
    module.decoder.conv_in.weight *= 5e5
    module.decoder.conv_norm_out.weight.zero_()
    return found


def test_invalid_numbers_are_decoded_again_in_a_wider_format() -> None:
    from pipelines.memory.placement import apply
    from pipelines.memory.planner import Plan

    found = overflowing()
    notes: list[str] = []
    latent = numbers(1, 4, 8, 8)
    residency = apply({"vae": found}, Plan(host=True), CPU)
    work = VAEWork(found, CPU, recast=residency.recast, note=notes.append)
    pixels = decode(found, latent.half(), work)
    assert bool(pixels.isfinite().all())
    assert (found.dtype, pixels.dtype) == (torch.float32, torch.float32)
    assert len(notes) == 1
    assert "NaN" in notes[0]
    assert "float32" in notes[0]
    decode(found, latent, work)
    assert len(notes) == 1  # the model goes on in it
    residency.undo()


def test_invalid_latents_are_no_fault_of_the_vae() -> None:
    found = part("vae", dtype=torch.bfloat16)
    notes: list[str] = []
    pixels = decode(found, torch.full((1, 4, 8, 8), torch.nan), VAEWork(found, CPU, note=notes.append))
    assert not bool(pixels.isfinite().any())
    assert (notes, found.dtype) == ([], torch.bfloat16)


def test_a_stop_is_obeyed_between_tiles_and_the_module_is_itself_again() -> None:
    found = part("vae")
    work = VAEWork(found, CPU, tile=32)

    class Stop(Exception): ...

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    work.on_tile = stop
    with pytest.raises(Stop):
        decode(found, numbers(1, 4, 80, 80), work)
    assert not {"decode", "encode"} & set(found.module.__dict__)
