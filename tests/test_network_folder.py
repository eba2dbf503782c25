"""One network's folder holds several sets of weights: the list and the loader take the same one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.errors import BadModel
from pipelines.library.diffusers_folder import denoiser_of, identify
from pipelines.library.network_folder import weight_files
from pipelines.loading.weights import open_weights

STEM = "diffusion_pytorch_model"


def write(folder: Path, *names: str) -> None:
    """Each file holds one tensor, named like the file and as long as its place among the names."""
    for number, name in enumerate(names, 1):
        if name.endswith(".json"):
            kind = "safetensors" if "safetensors" in name else "bin"
            shards = [f"{name.partition('.')[0]}-{i}-of-2.{kind}" for i in (1, 2)]
            write(folder, *shards)
            (folder / name).write_text(json.dumps({"weight_map": {shard: shard for shard in shards}}))
        elif name.endswith(".safetensors"):
            save_file({name: torch.ones(number)}, folder / name)
        else:
            torch.save({name: torch.ones(number)}, folder / name)


CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "diffusers' own": ((f"{STEM}.safetensors", f"{STEM}.bin"), (f"{STEM}.safetensors",)),
    "transformers'": (("model.safetensors", "pytorch_model.bin"), ("model.safetensors",)),
    "a pickle": (("pytorch_model.bin",), ("pytorch_model.bin",)),
    "a pickle and half precision": ((f"{STEM}.bin", f"{STEM}.fp16.safetensors"), (f"{STEM}.fp16.safetensors",)),
    "half precision and full": (("model.fp16.safetensors", "model.safetensors"), ("model.safetensors",)),
    "three precisions": (
        tuple(f"{STEM}.{word}.safetensors" for word in ("bf16", "fp16", "fp32")),
        (f"{STEM}.fp32.safetensors",),
    ),
    "two stems": (("model.safetensors", f"{STEM}.safetensors"), (f"{STEM}.safetensors",)),
    "pieces": ((f"{STEM}.safetensors.index.json",), (f"{STEM}-1-of-2.safetensors", f"{STEM}-2-of-2.safetensors")),
    "pieces of half precision": (
        (f"{STEM}.safetensors.index.fp16.json",),
        (f"{STEM}-1-of-2.safetensors", f"{STEM}-2-of-2.safetensors"),
    ),
    "the other way to name them": (
        ("model.fp16.safetensors.index.json",),
        ("model-1-of-2.safetensors", "model-2-of-2.safetensors"),
    ),
    "pieces and the whole": (("model.safetensors.index.json", "model.safetensors"), ("model.safetensors",)),
    "pieces of a pickle": ((f"{STEM}.bin.index.json",), (f"{STEM}-1-of-2.bin", f"{STEM}-2-of-2.bin")),
    "pieces of both": (
        (f"{STEM}.bin.index.json", f"{STEM}.safetensors.index.json"),
        (f"{STEM}-1-of-2.safetensors", f"{STEM}-2-of-2.safetensors"),
    ),
}
"""What lies there, and what is taken."""


@pytest.mark.parametrize("case", CASES)
def test_the_list_and_the_loader_take_the_same_files(case: str, models: Path, tmp_path: Path) -> None:
    there, taken = CASES[case]
    folder = tmp_path / "model"
    shutil.copytree(models / "tiny", folder)
    unet = folder / "unet"
    (unet / f"{STEM}.safetensors").unlink()
    write(unet, *there)
    assert [file.name for file in weight_files(unet)] == list(taken)
    assert denoiser_of(folder) == weight_files(unet), "these are hashed"
    loaded = open_weights(unet)
    assert list(loaded) == list(taken)
    assert identify(folder).parts["unet"] == sum(tensor.nbytes for tensor in loaded.values())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_piece_that_is_missing_is_named(kind: str, tmp_path: Path) -> None:
    write(tmp_path, f"model.{kind}.index.json")
    (tmp_path / f"model-2-of-2.{kind}").unlink()
    with pytest.raises(BadModel, match=rf"not complete, model-2-of-2\.{kind} is missing"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/secret.bin", "..", ".", "a\\b.bin", ""])
def test_an_index_names_files_beside_it_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadModel, match="does not say in which files"):
        weight_files(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_damaged_index_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadModel, match=r"model\.safetensors\.index\.json"):
        weight_files(tmp_path)


def test_a_folder_without_weights_is_said(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(BadModel, match=r"no weights in .*unet"):
        weight_files(tmp_path / "unet")
