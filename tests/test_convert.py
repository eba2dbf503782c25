"""Convert to safetensors: the same numbers, once, and never over another file."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.errors import BadModel, PipelineError
from pipelines.loading.convert import to_safetensors


@pytest.fixture
def pickle(tmp_path: Path) -> Path:
    shared = torch.arange(12.0)
    weights = {
        "half": torch.randn(3, 4).half(),
        "brain": torch.randn(5).bfloat16(),
        "eight": torch.randn(2, 2).to(torch.float8_e4m3fn),
        "whole": shared,
        "part of it": shared[4:8],
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "again": shared,
        "number": torch.tensor(3),
        "nothing": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
    }
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "dream.ckpt")
    return tmp_path / "dream.ckpt"


def test_the_numbers_stay_the_same(pickle: Path) -> None:
    before = torch.load(pickle, weights_only=True)["state_dict"]  # noqa: TID251 -- what it is compared with
    heard: list[float] = []
    target = to_safetensors(pickle, heard.append)
    assert target == pickle.with_suffix(".safetensors")
    found = load_file(target)
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].float(), tensor.float())
    assert pickle.exists()
    assert heard == sorted(heard)
    assert heard[-1] == 1
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt", "converted_from": "dream.ckpt"}


def test_another_file_is_never_replaced(pickle: Path) -> None:
    target = pickle.with_suffix(".safetensors")
    target.write_text("mine")
    with pytest.raises(PipelineError, match=r"a dream\.safetensors already"):
        to_safetensors(pickle)
    assert target.read_text() == "mine"


def test_a_conversion_that_ends_early_leaves_nothing(pickle: Path) -> None:
    def stop(fraction: float) -> None:
        if fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_safetensors(pickle, stop)
    assert list(pickle.parent.iterdir()) == [pickle]


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(PipelineError, match="is no pickle"):
        to_safetensors(tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "odd.ckpt")
    with pytest.raises(BadModel, match=r"complex64, which safetensors does not know"):
        to_safetensors(tmp_path / "odd.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadModel, match="damaged"):
        to_safetensors(tmp_path / "cut.ckpt")
