"""The loaded models: switched, shared, within a budget, and whole after whatever goes wrong."""

import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import BadModel, ModelNotFound, PipelineError
from pipelines.families.base import LoadedModel
from pipelines.loading.manager import LoadStopped, ModelManager, default_budget
from pipelines.loading.parts import Family, Part
from pipelines.loading.weights import open_weights
from pipelines.request import GenerationRequest
from pipelines.types import Interrupt, ModelInfo, WorkerState, WorkerStatus
from tests.checkpoints import save, save_checkpoint
from tests.drawing import draw
from tests.tiny import info

CPU = torch.device("cpu")
EVERYTHING = 2**40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a and b with other weights, and c: b's U-Net beside a's VAE and text encoder."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("manager")
    a, b = (load_file(save_checkpoint(folder / f"{name}.safetensors", seed=seed)) for seed, name in enumerate("ab"))
    save_file({name: (b if "diffusion_model" in name else a)[name] for name in a}, folder / "c.safetensors")
    return folder


def of(folder: Path, name: str, **options: Any) -> ModelInfo:
    return info(folder / f"{name}.safetensors", **options)


def quiet(status: WorkerStatus) -> None: ...


def picture(model: LoadedModel) -> np.ndarray[Any, Any]:
    request = GenerationRequest(prompt="a cat", width=64, height=64, steps=2, seed=1, sampler="Euler")
    return np.asarray(draw(model, request)[0])


def arenas() -> int:
    """Pieces of memory that hold weights, and are alive."""
    gc.collect()
    return sum(1 for it in gc.get_objects() if type(it) is Part and it.memory is not None)


@pytest.mark.parametrize("budget", [0, EVERYTHING])
def test_pictures_are_those_of_a_fresh_load(folder: Path, budget: int) -> None:
    fresh = {name: picture(ModelManager(CPU).get(of(folder, name), quiet)) for name in "abc"}
    assert not np.array_equal(fresh["a"], fresh["b"])
    manager = ModelManager(CPU, budget_bytes=budget)
    for name in "abaca":
        assert np.array_equal(picture(manager.get(of(folder, name), quiet)), fresh[name])


def test_a_model_that_is_there_is_not_loaded_again(folder: Path) -> None:
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    heard: list[WorkerStatus] = []
    first = manager.get(of(folder, "a"), quiet)
    manager.get(of(folder, "b"), quiet)
    assert manager.get(of(folder, "a"), heard.append) is first
    assert heard == []
    assert manager.loaded() == ("a.safetensors", "b.safetensors")


def test_what_checkpoints_have_in_common_is_held_once(folder: Path) -> None:
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    a, b, c = (manager.get(of(folder, name), quiet) for name in "abc")
    assert c.parts["vae"] is a.parts["vae"]
    assert c.parts["text_encoder"] is a.parts["text_encoder"]
    assert len({id(each.parts["unet"]) for each in (a, b, c)}) == 3
    assert a.parts["vae"] is not b.parts["vae"]


def test_what_is_shared_stays_when_one_of_its_owners_goes(folder: Path) -> None:
    fresh = picture(ModelManager(CPU).get(of(folder, "c"), quiet))
    manager = ModelManager(CPU, budget_bytes=0)
    vae = manager.get(of(folder, "a"), quiet).parts["vae"]
    model = manager.get(of(folder, "c"), quiet)
    assert manager.loaded() == ("c.safetensors",)
    assert model.parts["vae"] is vae
    assert np.array_equal(picture(model), fresh)


def test_the_budget_is_kept(folder: Path) -> None:
    """A model of these takes 25 MB in single precision: two fit."""
    size = sum(part.size_bytes for part in ModelManager(CPU).get(of(folder, "a"), quiet).parts.values())
    manager = ModelManager(CPU, budget_bytes=int(2.5 * size))
    for name, kept in (("a", "a"), ("b", "ba"), ("a", "ab"), ("c", "ca"), ("b", "bc")):
        manager.get(of(folder, name), quiet)
        assert manager.loaded() == tuple(f"{each}.safetensors" for each in kept)
    manager = ModelManager(CPU, budget_bytes=int(1.5 * size))
    for name in "aba":
        manager.get(of(folder, name), quiet)
        assert manager.loaded() == (f"{name}.safetensors",)
    assert default_budget() > 0


def test_memory_stays_flat(folder: Path) -> None:
    """Six switches: as many pieces of memory as after the first, and they are the very same ones."""
    before = arenas()
    manager = ModelManager(CPU, budget_bytes=0)
    places: set[int] = set()
    for turn in range(6):
        model = manager.get(of(folder, "ab"[turn % 2]), quiet)
        memory = model.parts["unet"].memory
        assert memory is not None
        places.add(memory.data_ptr())
        assert arenas() - before == 3
    assert len(places) == 1


def test_models_that_are_gone_leave_nothing_behind(folder: Path) -> None:
    manager = ModelManager(CPU, budget_bytes=0)
    module = weakref.ref(manager.get(of(folder, "a"), quiet).parts["unet"].module)
    manager.get(of(folder, "b"), quiet)
    manager.free()
    assert module() is None


def test_parts_are_told_before_they_lose_their_weights(folder: Path) -> None:
    told: list[tuple[str, bool]] = []

    def release(part: Part) -> None:
        told.append((part.name, next(part.module.parameters()).is_meta))

    manager = ModelManager(CPU, budget_bytes=0, release=release)
    manager.get(of(folder, "a"), quiet)
    manager.get(of(folder, "c"), quiet)
    assert told == [("unet", False)], "the others went on to c"


def test_a_model_in_use_stays_as_it_is(folder: Path) -> None:
    """While a picture is drawn, another thread brings the next checkpoint in."""
    fresh = picture(ModelManager(CPU).get(of(folder, "a"), quiet))
    manager = ModelManager(CPU, budget_bytes=0)
    with manager.use(of(folder, "a"), quiet) as model:
        thread = threading.Thread(target=manager.get, args=(of(folder, "b"), quiet))
        thread.start()
        while thread.is_alive():
            assert np.array_equal(picture(model), fresh)
        thread.join()
        assert manager.loaded() == ("b.safetensors", "a.safetensors")
        assert np.array_equal(picture(model), fresh)
    manager.get(of(folder, "c"), quiet)
    assert manager.loaded() == ("c.safetensors",), "now that nobody uses them, they made room"


def test_a_model_that_is_there_waits_for_no_load(folder: Path) -> None:
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    a = manager.get(of(folder, "a"), quiet)
    found: list[LoadedModel] = []

    def report(status: WorkerStatus) -> None:
        """Within the load of b."""
        thread = threading.Thread(target=lambda: found.append(manager.get(of(folder, "a"), quiet)))
        thread.start()
        thread.join(60)

    manager.get(of(folder, "b"), report)
    assert found[0] is a


def test_two_who_want_the_same_model_load_it_once(folder: Path) -> None:
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    found: list[LoadedModel] = []
    threads = [threading.Thread(target=lambda: found.append(manager.get(of(folder, "a"), quiet))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert found[0] is found[1] is found[2]


def test_progress_is_told(folder: Path) -> None:
    heard: list[WorkerStatus] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.loading.manager.REPORT_SECONDS", 0)
        ModelManager(CPU).get(of(folder, "a"), heard.append)
    *loading, last = heard
    assert {(status.state, status.detail) for status in loading} == {(WorkerState.LOADING, "a.safetensors")}
    fractions = [status.fraction for status in loading if status.fraction is not None]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)
    assert len(fractions) > 100
    assert (last.state, last.loaded) == (WorkerState.READY, ("a.safetensors",))


@pytest.mark.parametrize("budget", [0, EVERYTHING])
@pytest.mark.parametrize("when", [0, 1, 300, 900])
def test_a_load_can_be_cancelled(folder: Path, budget: int, when: int) -> None:
    """At its begin, while it is hashed, and in the middle of the weights."""
    manager = ModelManager(CPU, budget_bytes=budget)
    fresh = picture(manager.get(of(folder, "a"), quiet))
    asked: list[None] = []
    heard: list[WorkerStatus] = []

    def wish() -> Interrupt | None:
        asked.append(None)
        return Interrupt.STOP if len(asked) > when else None

    with pytest.raises(LoadStopped) as raised:
        manager.get(of(folder, "b"), heard.append, wish)
    assert raised.value.how == Interrupt.STOP
    assert heard[-1].state == WorkerState.READY
    assert "b.safetensors" not in manager.loaded()
    assert np.array_equal(picture(manager.get(of(folder, "a"), quiet)), fresh)
    manager.get(of(folder, "b"), quiet)


def test_who_waits_for_the_load_of_another_can_leave(folder: Path) -> None:
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    left: list[Interrupt] = []

    def wait() -> None:
        with pytest.raises(LoadStopped) as raised:
            manager.get(of(folder, "b"), quiet, lambda: Interrupt.SKIP)
        left.append(raised.value.how)

    def report(status: WorkerStatus) -> None:
        if not left:
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join(60)

    manager.get(of(folder, "a"), report)
    assert left == [Interrupt.SKIP]


def test_a_file_that_was_replaced_is_loaded_anew(folder: Path, tmp_path: Path) -> None:
    fresh = picture(ModelManager(CPU).get(of(folder, "b"), quiet))
    path = tmp_path / "model.safetensors"
    path.write_bytes((folder / "a.safetensors").read_bytes())
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    old = manager.get(info(path), quiet)
    (tmp_path / "new").write_bytes((folder / "b.safetensors").read_bytes())
    os.utime(tmp_path / "new", ns=(1, 1))
    (tmp_path / "new").replace(path)
    new = manager.get(info(path), quiet)
    assert new is not old
    assert np.array_equal(picture(new), fresh)
    assert manager.loaded() == ("model.safetensors",), "nobody can ask for the old one"


def test_networks_from_other_files(folder: Path, tmp_path: Path) -> None:
    """Another VAE is another model, with the same U-Net."""
    prefix = "first_stage_model."
    shapes = {n: tuple(t.shape) for n, t in open_weights(folder / "a.safetensors").items() if n.startswith(prefix)}
    vae = info(save(tmp_path / "vae.safetensors", shapes, seed=7))
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    own, other = (manager.get(of(folder, "a", companions=them), quiet) for them in ({}, {"vae": vae}))
    assert other.parts["unet"] is own.parts["unet"]
    assert other.parts["text_encoder"] is own.parts["text_encoder"]
    assert other.parts["vae"] is not own.parts["vae"]
    assert not np.array_equal(picture(own), picture(other))
    assert manager.get(of(folder, "a"), quiet) is own


def test_room_for_one_more(folder: Path) -> None:
    listed = of(folder, "b").model_copy(update={"dtype": "F16"})
    manager = ModelManager(CPU, budget_bytes=60_000_000)
    assert manager.room_for(listed)
    manager.get(of(folder, "a"), quiet)
    assert manager.room_for(listed), "12.6 MB in half precision, twice that in single"
    manager.get(of(folder, "b"), quiet)
    assert not manager.room_for(of(folder, "c").model_copy(update={"dtype": "F16"}))
    assert manager.room_for(of(folder, "a")), "it is there"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def drop_a_weight(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    save_file({name: tensors[name] for name in sorted(tensors)[1:]}, path)


FAULTS: dict[str, Callable[[Path], object]] = {
    "cut off": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not found"),
    "a gap": drop_a_weight,
    "gone": lambda path: path.unlink(),
    "another family": lambda path: save_checkpoint(path, "sdxl"),
    "for a depth map": lambda path: save_checkpoint(path, inputs=5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_files_do_no_harm(folder: Path, tmp_path: Path, fault: str) -> None:
    """One sentence, and the worker is as useful as before."""
    manager = ModelManager(CPU, budget_bytes=0)
    fresh = picture(manager.get(of(folder, "a"), quiet))
    path = tmp_path / "broken.safetensors"
    path.write_bytes((folder / "b.safetensors").read_bytes())
    listed = info(path)
    FAULTS[fault](path)
    heard: list[WorkerStatus] = []
    with pytest.raises((BadModel, ModelNotFound)) as raised:
        manager.get(listed, heard.append)
    text = str(raised.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 400
    assert [status.state for status in heard][-1:] in ([], [WorkerState.READY])
    assert np.array_equal(picture(manager.get(of(folder, "a"), quiet)), fresh)


def test_families_that_are_not_known(folder: Path) -> None:
    with pytest.raises(PipelineError, match=r"family sd9\. These can be run so far: sd1"):
        ModelManager(CPU).get(of(folder, "a", family="sd9"), quiet)


def test_every_family_can_be_looked_up() -> None:
    from pipelines.families import FAMILIES, VARIANTS

    for row in (*FAMILIES.values(), *VARIANTS.values()):
        assert isinstance(row(), Family)


def test_a_companion_that_is_gone_is_in_nobodys_way(folder: Path, tmp_path: Path) -> None:
    """The entry with it can never be asked for again, and must not keep its checkpoint from being loaded."""
    alone = tmp_path / "a.safetensors"
    alone.write_bytes((folder / "a.safetensors").read_bytes())
    vae = tmp_path / "vae.safetensors"
    vae.write_bytes((folder / "b.safetensors").read_bytes())
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    with_it = info(alone, companions={"vae": info(vae)})
    manager.get(with_it, quiet)
    vae.unlink()
    with pytest.raises(ModelNotFound, match=r"vae\.safetensors"):
        manager.get(with_it, quiet)
    assert manager.get(info(alone), quiet)


def test_a_job_goes_before_what_is_loaded_ahead(folder: Path) -> None:
    manager = ModelManager(CPU, budget_bytes=EVERYTHING)
    seen: list[bool] = []

    def wish() -> Interrupt | None:
        seen.append(manager.wanted)
        return None

    manager.get(of(folder, "a"), quiet, wish)
    assert not any(seen), "what is loaded ahead is not waited for"
    with manager.use(of(folder, "b"), quiet, wish):
        assert any(seen)
    assert not manager.wanted
