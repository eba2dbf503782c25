"""Which folders are checkpoints, what they are called, and what is said about the others."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pipelines.errors import ModelNotFound
from pipelines.registry import CARD, WEIGHTS, Registry


def registry(*folders: Path) -> Registry:
    found = Registry(folders)
    found.scan()
    return found


def test_a_diffusers_folder_is_found_by_its_content(models: Path) -> None:
    (info,) = registry(models).all()
    assert (info.name, info.family, info.width, info.height) == ("tiny", "sd1", 64, 64)
    assert info.size_bytes > 100_000
    assert info.sha256 is None


def test_a_model_says_what_it_likes(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    assert registry(tmp_path).get("").cfg_scale == 7
    (tmp_path / "tiny" / CARD).write_text('{"cfg_scale": 4}')
    assert registry(tmp_path).get("").cfg_scale == 4
    (tmp_path / "tiny" / CARD).write_text('{"cfg_scale": "much"}')
    assert registry(tmp_path).all() == []
    assert CARD in caplog.text


@pytest.mark.parametrize("size", [None, 8])
def test_a_size_that_is_left_out_is_that_of_sd1(size: int | None, models: Path, tmp_path: Path) -> None:
    set_sample_size(models, tmp_path, size)
    assert registry(tmp_path).get("").width == (size or 64) * 8


@pytest.mark.parametrize("size", [[64, 64], 4, 9999, "x"])
def test_a_size_that_cannot_be_is_said(
    size: object, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_sample_size(models, tmp_path, size)
    assert registry(tmp_path).all() == []
    assert "picture size" in caplog.text


def set_sample_size(models: Path, folder: Path, size: object) -> None:
    shutil.copytree(models / "tiny", folder / "tiny")
    config = folder / "tiny" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": size}))


def test_hashes_outlive_the_process(models: Path, tmp_path: Path) -> None:
    first = Registry([models], tmp_path / "cache" / "hashes.json")
    first.scan()
    first.hash_all()
    second = Registry([models], tmp_path / "cache" / "hashes.json")
    second.scan()
    assert second.get("tiny").sha256
    assert second.get("tiny") == first.get("tiny")
    (tmp_path / "cache" / "hashes.json").write_text("[broken")
    Registry([models], tmp_path / "cache" / "hashes.json").scan()


def test_hashes_are_computed_once_and_kept_over_a_scan(models: Path) -> None:
    found = registry(models)
    found.hash_all()
    digest = hashlib.sha256((models / "tiny" / "unet" / WEIGHTS).read_bytes()).hexdigest()
    assert found.get("tiny").sha256 == digest
    found.scan()
    assert found.get("tiny").sha256 == digest


def test_an_empty_name_is_the_first_and_an_unknown_one_names_the_choices(models: Path, tmp_path: Path) -> None:
    assert registry(models).get("").name == "tiny"
    with pytest.raises(ModelNotFound, match="There are: tiny"):
        registry(models).get("nope")
    with pytest.raises(ModelNotFound, match="Put one there"):
        registry(tmp_path).get("")


def test_the_earlier_folder_wins_and_a1111s_folder_is_no_part_of_the_name(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tiny", tmp_path / "Stable-diffusion" / "sub" / "other")
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    found = registry(tmp_path, models)
    assert [info.name for info in found.all()] == ["sub/other", "tiny"]
    assert found.get("tiny").path.is_relative_to(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"_class_name": "FluxPipeline"})])
def test_what_cannot_be_run_is_skipped_and_said(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("unet", "vae"):
        (tmp_path / "odd" / part).mkdir(parents=True)
        (tmp_path / "odd" / part / "config.json").write_text("{}")
    (tmp_path / "odd" / "model_index.json").write_text(content)
    assert registry(tmp_path).all() == []
    assert "odd" in caplog.text
