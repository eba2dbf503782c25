"""Upscalers: what a network makes of a picture, in one piece or many, and what is said where it cannot be run."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from pipelines import needs
from pipelines.errors import BadModel, ModelNotFound, OutOfMemory
from pipelines.images import networks
from pipelines.images.networks import PixelNetworks
from pipelines.images.resize import LATENT_MODES, to_pixels
from pipelines.images.upscale import FILTERS, upscaled
from pipelines.kit import SoloKit
from pipelines.library.reading import kind_of
from pipelines.types import Kind, ModelInfo
from tests.pixel_files import NETWORKS, SCALES, save_network
from tests.test_canvas import noise

CPU = torch.device("cpu")


class Kit(SoloKit):
    """Upscalers by name, and no checkpoint."""

    def __init__(self, *files: ModelInfo) -> None:
        self.notes, self._pixels = [], PixelNetworks(CPU)
        self.tiles: list[tuple[int, int]] = []
        self.on_tile = lambda done, total: self.tiles.append((done, total))
        self.files = {info.name: info for info in files}

    @property
    def pixels(self) -> PixelNetworks:
        return self._pixels

    def file(self, kind: Kind, name: str) -> ModelInfo:
        if kind != Kind.UPSCALER or name not in self.files:
            return super().file(kind, name)
        return self.files[name]


@pytest.fixture(scope="module", params=NETWORKS)
def info(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return save_network(tmp_path_factory.mktemp("upscalers"), request.param)


def enlarged(kit: Kit, info: ModelInfo, pixels: Tensor) -> Tensor:
    return kit.pixels.enlarged(info, pixels, kit.note, kit.on_tile)


def test_the_names_are_those_that_need_no_file() -> None:
    assert (*LATENT_MODES, *FILTERS) == needs.UPSCALERS


def test_a_network_makes_it_larger_and_its_file_is_known(info: ModelInfo) -> None:
    kit, pixels = Kit(info), to_pixels(noise(40, 24))
    found = enlarged(kit, info, pixels)
    scale = SCALES[info.variant]
    assert found.shape == (1, 3, 24 * scale, 40 * scale)
    assert 0 <= found.min() < found.max() <= 1
    assert kit.tiles == [(0, 1), (1, 1)]
    assert kind_of(info.path) == Kind.UPSCALER


def test_in_tiles_it_is_the_same(info: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    kit, pixels = Kit(info), to_pixels(noise(150, 90))
    whole = enlarged(kit, info, pixels)
    monkeypatch.setattr(networks, "TILES", (64,))
    pieces = enlarged(kit, info, pixels)
    assert kit.tiles[-1] == (6, 6)
    assert (pieces - whole).abs().max() < 0.05
    assert (pieces - whole).abs().mean() < 0.001


def test_memory_that_runs_out_makes_the_tiles_smaller(tmp_path: Path) -> None:
    info = save_network(tmp_path)
    kit, pixels = Kit(info), to_pixels(noise(150, 70))
    asked: list[int] = []

    def short(module: object, args: tuple[Tensor]) -> None:
        asked.append(args[0].shape[-1])
        if args[0].shape[-1] > 80:
            raise torch.OutOfMemoryError("no")

    kit.pixels.get(info).model.register_forward_pre_hook(short)
    assert enlarged(kit, info, pixels).shape == (1, 3, 280, 600)
    assert asked[:3] == [150, 128, 64]
    kit.pixels.get(info).model.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(OutOfMemory, match="Make the picture smaller"):
        enlarged(kit, info, pixels)


def test_the_size_is_the_one_that_is_asked_for(info: ModelInfo) -> None:
    kit, picture = Kit(info), noise(32, 24)
    for size in ((64, 48), (70, 50), (300, 40), (20, 20)):
        assert upscaled(kit, picture, info.name, *size).size == size
    assert upscaled(kit, picture, "Nearest", 64, 48).resize((32, 24), 0).tobytes() == picture.tobytes()
    assert upscaled(kit, picture, "Lanczos", 32, 24).tobytes() == picture.tobytes()
    with pytest.raises(ModelNotFound):
        upscaled(kit, picture, "4x-Missing", 64, 48)


def test_pickles_are_data_and_a_few_networks_stay(tmp_path: Path) -> None:
    kit = Kit()
    files = [save_network(tmp_path, kind, ".pth") for kind in NETWORKS]
    results = [enlarged(kit, info, to_pixels(noise(16, 16))) for info in files]
    same = enlarged(Kit(), save_network(tmp_path), to_pixels(noise(16, 16)))
    assert torch.equal(results[0], same)
    assert len(kit.pixels) == 2
    kit.pixels.clear()
    assert len(kit.pixels) == 0


def test_what_is_no_upscaler_is_said(tmp_path: Path) -> None:
    info = save_network(tmp_path)
    torch.save({"weights": {"a": torch.zeros(2)}, "b": torch.zeros(3)}, tmp_path / "odd.pth")
    odd = info.model_copy(update={"path": tmp_path / "odd.pth", "name": "odd.pth"})
    with pytest.raises(BadModel, match="kind that cannot be run"):
        PixelNetworks(CPU).get(odd)
    weights = NETWORKS["esrgan"]()
    torch.save(weights | {"conv_hr.weight": torch.zeros(3, 3)}, tmp_path / "bad.pth")
    with pytest.raises(BadModel, match="damaged"):
        PixelNetworks(CPU).get(info.model_copy(update={"path": tmp_path / "bad.pth", "name": "bad.pth"}))


def test_levels_come_back_exactly() -> None:
    picture = noise(16, 16)
    assert np.array_equal(np.asarray(picture), (to_pixels(picture)[0].permute(1, 2, 0) * 255).round().byte().numpy())
    assert to_pixels(PIL.Image.new("L", (4, 2), 255)).shape == (1, 1, 2, 4)
