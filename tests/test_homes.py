"""Where weights lie in RAM: in memory that a card reads fast, or in their file where RAM is short."""

import gc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.loading.homes import Homes
from pipelines.loading.manager import ModelManager
from pipelines.loading.parts import Part
from pipelines.loading.pinned import Pins, pins_for
from pipelines.loading.weights import open_weights
from pipelines.memory.fitting import Fitter
from pipelines.session import Session
from pipelines.types import WorkerStatus
from tests.checkpoints import save_checkpoint
from tests.test_session import Worker, pictures
from tests.tiny import info

CPU, CARD = torch.device("cpu"), torch.device("cuda:0")


class Driver:
    """Counts what is locked, by place."""

    def __init__(self, limit: int = 2**40) -> None:
        self.locked: dict[int, int] = {}
        self.asked = 0
        self.limit = limit

    def lock(self, place: int, size_bytes: int) -> bool:
        self.asked += 1
        if sum(self.locked.values()) + size_bytes > self.limit:
            return False
        assert place not in self.locked
        self.locked[place] = size_bytes
        return True

    def unlock(self, place: int) -> None:
        del self.locked[place]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("homes")
    for seed, name in enumerate("ab"):
        save_checkpoint(folder / f"{name}.safetensors", seed=seed)
    return folder


@pytest.fixture(autouse=True)
def no_card_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading for one needs none but for its name."""
    monkeypatch.setattr("pipelines.loading.manager.device_name", str)


def parts(manager: ModelManager, folder: Path, name: str) -> dict[str, Part]:
    def quiet(status: WorkerStatus) -> None: ...

    return dict(manager.get(info(folder / f"{name}.safetensors"), quiet).parts)


def first_weight(folder: Path, name: str) -> torch.Tensor:
    return open_weights(folder / f"{name}.safetensors")["model.diffusion_model.input_blocks.0.0.weight"]


def test_what_comes_back_to_a_card_lies_in_locked_memory(folder: Path) -> None:
    driver = Driver()
    manager = ModelManager(CARD, budget_bytes=2**40, homes=Homes(Pins(driver)))
    places: dict[str, set[int]] = {}
    for name in "abab":
        found = parts(manager, folder, name)
        where = {part.memory.data_ptr() for part in found.values() if part.memory is not None}
        assert places.setdefault(name, where) == where
        assert where <= driver.locked.keys()
        weight = found["unet"].module.get_parameter("conv_in.weight")
        assert weight.dtype == torch.float16, "half of the bytes cross the bus, whatever it computes in"
        assert torch.equal(weight, first_weight(folder, name))
    assert len(driver.locked) == driver.asked == 6
    assert not places["a"] & places["b"]


def test_the_memory_of_a_model_that_made_room_is_locked_already(folder: Path) -> None:
    driver = Driver()
    one = sum(part.size_bytes for part in parts(ModelManager(CARD), folder, "a").values())
    manager = ModelManager(CARD, budget_bytes=int(1.5 * one), homes=Homes(Pins(driver)))
    for name in "ababa":
        found = parts(manager, folder, name)
        assert torch.equal(found["unet"].module.get_parameter("conv_in.weight"), first_weight(folder, name))
    assert len(driver.locked) == driver.asked == 3


def test_what_is_let_go_of_is_unlocked_with_its_last_view(folder: Path) -> None:
    driver = Driver()
    manager = ModelManager(CARD, budget_bytes=2**40, homes=Homes(Pins(driver)))
    view = next(parts(manager, folder, "a")["vae"].module.parameters())
    del manager
    gc.collect()
    assert len(driver.locked) == 1
    assert view.isfinite().all()
    del view
    gc.collect()
    assert driver.locked == {}


def test_where_locking_is_refused_weights_stay_in_their_file(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(limit=0)
    manager = ModelManager(CARD, budget_bytes=2**40, homes=Homes(Pins(driver)))
    for name in "ab":
        found = parts(manager, folder, name)
        assert all(part.memory is None for part in found.values())
        assert torch.equal(found["unet"].module.get_parameter("conv_in.weight"), first_weight(folder, name))
    assert driver.asked == 1
    assert caplog.text.count("cannot be locked") == 1


def test_no_more_is_locked_than_the_budget_says(folder: Path) -> None:
    driver = Driver()
    manager = ModelManager(CARD, budget_bytes=1000, homes=Homes(Pins(driver)))
    assert all(part.memory is None for part in parts(manager, folder, "a").values())
    assert driver.asked == 0
    assert pins_for(CPU) is None


def test_where_ram_is_short_layers_cast_their_own_and_the_picture_is_the_same(folder: Path) -> None:
    path = folder / "a.safetensors"
    usual = Worker(path)
    plain = np.asarray(pictures(usual.run())[0])
    loaded = parts(ModelManager(CPU), folder, "a")
    for share, copied in ((0.0, set()), (0.8, {"text_encoder", "vae"}), (2.0, {"text_encoder", "vae", "unet"})):
        free = int(share * sum(part.size_bytes for part in loaded.values()))
        fitter = Fitter(CPU)
        manager = ModelManager(CPU, release=fitter.release, homes=Homes(free_bytes=partial(int, free)))
        found = parts(manager, folder, "a")
        assert {name for name, part in found.items() if part.memory is not None} == copied
        assert sum(part.size_bytes for part in found.values()) <= sum(part.size_bytes for part in loaded.values())
        worker = Worker(path, Session(manager, CPU, fitter=fitter))
        for _ in range(2):
            assert np.array_equal(np.asarray(pictures(worker.run())[0]), plain)
