"""Opening model files: mapped and not read, pickles as data alone, and a sentence for everything that is broken."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import BadModel, ModelNotFound
from pipelines.loading.weights import Pages, names_in, open_weights, stamp

A, B = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.float16)


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pt", ".pth", ".bin"])
def test_every_kind_of_file_gives_the_same_tensors(tmp_path: Path, suffix: str) -> None:
    found = open_weights(write(tmp_path / f"model{suffix}", {"a": A, "b": B}))
    assert found.keys() == {"a", "b"}
    assert torch.equal(found["a"], A)
    assert found["b"].dtype == torch.float16


def test_weights_are_found_below_what_trainers_write(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": A, "note": "text"}, "epoch": 3, "global_step": 7}, tmp_path / "model.ckpt")
    assert list(open_weights(tmp_path / "model.ckpt")) == ["a"]
    torch.save({"params_ema": {"a": A}}, tmp_path / "model.pth")
    assert list(open_weights(tmp_path / "model.pth")) == ["a"]


def test_pickles_from_before_torch_1_6(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": A}}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(open_weights(tmp_path / "old.ckpt")["a"], A)


def test_what_trainers_leave_in_a_pickle_is_dropped(tmp_path: Path) -> None:
    """Lightning names its classes, numpy its numbers: both are common in checkpoints of 2022."""
    import numpy as np

    torch.save({"state_dict": {"a": A}, "loss": np.float64(0.5), "array": np.arange(3)}, tmp_path / "model.ckpt")
    assert list(open_weights(tmp_path / "model.ckpt")) == ["a"]
    lightning = tmp_path / "lightning.ckpt"
    module = type(os)("pytorch_lightning.callbacks.model_checkpoint")
    checkpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = checkpoint  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(__import__("sys").modules, name, type(os)(name))
        patch.setitem(__import__("sys").modules, module.__name__, module)
        torch.save({"state_dict": {"a": A}, "callbacks": {checkpoint: {"best": 1}}}, lightning)
    assert list(open_weights(lightning)) == ["a"]


class Payload:
    """Runs a command when it is unpickled, as malicious checkpoints do."""

    def __init__(self, run: Callable[..., object], *arguments: object) -> None:
        self._call = run, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("modern", [True, False])
def test_a_program_in_a_pickle_never_runs(tmp_path: Path, suffix: str, modern: bool) -> None:
    witness = tmp_path / "witness"
    for number, payload in enumerate(
        (Payload(os.system, f"touch {witness}"), Payload(exec, f"open({str(witness)!r}, 'w')"), Payload(witness.touch))
    ):
        path = tmp_path / f"{number}{suffix}"
        torch.save({"state_dict": {"a": A, "b": payload}}, path, _use_new_zipfile_serialization=modern)
        with pytest.raises(BadModel, match=r"asks to run [\w.]+, which weights never need") as raised:
            open_weights(path)
        assert "nothing of it was run" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not witness.exists()


def test_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    """A file may be larger than the memory: here it is 64 GB of nothing."""
    head = json.dumps({"a": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}}).encode()
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 2**36)
    found = open_weights(tmp_path / "large.safetensors")
    assert found["a"].shape == (2**34,)
    assert float(found["a"][-1]) == 0


def test_pages_that_are_let_go_of_read_the_same_again(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": torch.arange(100_000.0), "b": torch.ones(3)})
    found, own = open_weights(path), torch.arange(100_000.0)
    pages = Pages([path])
    for tensor in (found["a"], found["a"][5_000:], found["b"], own):
        pages.let_go(tensor)
    assert torch.equal(found["a"], torch.arange(100_000.0))
    assert torch.equal(own, torch.arange(100_000.0)), "memory that is no file's is left alone"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cut off": (".safetensors", cut),
    "a pickle cut off": (".ckpt", cut),
    "empty": (".safetensors", lambda path: path.write_bytes(b"")),
    "an empty pickle": (".pt", lambda path: path.write_bytes(b"")),
    "text": (".safetensors", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1")),
    "text for a pickle": (".bin", lambda path: path.write_text("<html>not found</html>")),
    "an archive of something else": (".ckpt", lambda path: shutil.make_archive(str(path), "zip", path.parent, ".")),
    "a pickle without names": (".pth", lambda path: torch.save([A], path)),
    "a pickle of a number": (".pth", lambda path: torch.save(3, path)),
    "an unknown ending": (".txt", lambda path: path.write_text("x")),
    "a GGUF file of nonsense": (".gguf", lambda path: path.write_bytes(b"GGUF" + b"\xff" * 100)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_files_are_told_in_a_sentence(tmp_path: Path, fault: str) -> None:
    suffix, spoil = FAULTS[fault]
    path = tmp_path / f"model{suffix}"
    if suffix not in (".txt", ".gguf"):
        write(path, {"a": A, "b": torch.zeros(1000)})
    spoil(path)
    if fault.startswith("an archive"):
        Path(f"{path}.zip").rename(path)
    with pytest.raises(BadModel) as raised:
        open_weights(path)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_files_that_are_gone(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nothing at"):
        open_weights(tmp_path / "gone.safetensors")
    with pytest.raises(ModelNotFound, match="nothing at"):
        stamp(tmp_path / "gone.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadModel, match=r"no weights in .*empty"):
        open_weights(tmp_path / "empty")


def test_a_stamp_tells_that_a_file_was_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "model" / "model.safetensors", {"a": A})
    of_file, of_folder = stamp(path), stamp(path.parent)
    assert stamp(path) == of_file
    os.utime(path, ns=(1, 1))
    assert stamp(path) != of_file
    assert stamp(path.parent) != of_folder


def test_names_without_tensors(tmp_path: Path) -> None:
    assert names_in(write(tmp_path / "model.safetensors", {"a": A, "ztsnr": B})) == {"a", "ztsnr"}
    assert names_in(write(tmp_path / "model.ckpt", {"a": A})) == frozenset()
