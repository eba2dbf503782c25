"""What the front of a model file says, and what is said about files that are none. Nothing in a file is ever run."""

import json
import os
import pickle  # noqa: TID251 - to write what must not be run
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.errors import BadModel
from pipelines.library.headers import read_header
from pipelines.library.headers.header import TensorInfo
from tests.sparse import SD1, VAE4, save, save_gguf, save_header

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_safetensors_give_names_shapes_sizes_and_metadata(tmp_path: Path) -> None:
    found = read_header(save(tmp_path / "a.safetensors", SD1, author="me"))
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == SD1
    assert found.tensors["model.diffusion_model.out.2.weight"] == TensorInfo((4, 320, 3, 3), "F16", 23040)
    assert found.metadata == {"author": "me"}


@pytest.mark.parametrize("length", [0, 3, 8, 100, 2000, -1])
def test_a_cut_off_safetensors_file_is_told(length: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", VAE4)
    os.truncate(path, length if length >= 0 else path.stat().st_size - 1)
    with pytest.raises(BadModel, match=r"cut off|empty"):
        read_header(path)


def one(**entry: object) -> bytes:
    return json.dumps({"a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8], **entry}}).encode()


@pytest.mark.parametrize(
    "text",
    [
        one(data_offsets=[-8, 0]),
        one(data_offsets=[8, 0]),
        one(data_offsets=[0, 9]),
        one(data_offsets=[0]),
        one(data_offsets="x"),
        one(shape=[-2, -2]),
        one(shape=[2.0, 2]),
        one(shape=[True, 4]),
        one(shape="22"),
        one(shape=[2**70, 2**70]),
        one(dtype="F17"),
        one(dtype=[]),
        b'{"a":1}',
        b'{"a":{}}',
        b"{not json",
        b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}',
        b"{" * 5000,
    ],
)
def test_a_damaged_header_is_one_sentence(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="damaged"):
        read_header(save_header(tmp_path / "a.safetensors", text, 8))


def test_what_follows_the_last_tensor_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="8 bytes follow"):
        read_header(save_header(tmp_path / "a.safetensors", one(), 16))


def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((10**8 + 1).to_bytes(8, "little") + b"{")
    os.truncate(path, 2 * 10**8)
    with pytest.raises(BadModel, match="100,000,001"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b'{"error": "not found"}' * 9, "JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git lfs pull"),
        (b"PK\x03\x04" + b"\0" * 60, "zip archive"),
        (pickle.dumps({"a": 1}, protocol=2), "a pickle"),
        (b"GGUF" + b"\0" * 60, "GGUF file"),
        (b"\0" * 4096, "zeros"),
        (os.urandom(8)[:7] + b"\x01garbage" * 20, "no safetensors file"),
    ],
)
def test_something_else_with_the_name_of_safetensors_is_told(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(BadModel, match=words):
        read_header(tmp_path / "a.safetensors")


def test_safetensors_with_the_name_of_a_pickle_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"suffix \.safetensors"):
        read_header(save(tmp_path / "a.ckpt", VAE4))


def test_gguf_shapes_are_the_right_way_round(tmp_path: Path) -> None:
    found = read_header(save_gguf(tmp_path / "a.gguf", {"img_in.weight": (3072, 256)}, "flux"))
    assert found.tensors == {"img_in.weight": TensorInfo((3072, 256), "Q4_K", 3072 * 144)}
    assert found.metadata == {"general.architecture": "flux", "tokenizer.tokens": "2 entries"}


def test_gguf_is_read_as_the_reference_writes_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "flux")
    writer.add_tensor("a.weight", torch.zeros(4, 64).numpy())
    writer.add_array("sizes", [1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(tmp_path / "a.gguf").tensors == {"a.weight": TensorInfo((4, 64), "F32", 1024)}


@pytest.mark.parametrize("length", [10, 60, 150])
def test_a_cut_off_gguf_file_is_told(length: int, tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "a.gguf", {"img_in.weight": (3072, 256)}, "flux")
    os.truncate(path, length)
    with pytest.raises(BadModel, match="cut off"):
        read_header(path)


def test_a_gguf_file_with_absurd_counts_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + b"\0" * 99)
    with pytest.raises(BadModel, match="damaged"):
        read_header(tmp_path / "a.gguf")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("modern", [True, False])
def test_torch_files_are_read_without_torch(suffix: str, modern: bool, tmp_path: Path) -> None:
    weights = {
        "model.a": torch.zeros(3, 4, dtype=torch.float16),
        "model.b": torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)),
        "model.c": torch.zeros((), dtype=torch.int64),
    }
    path = tmp_path / f"a{suffix}"
    torch.save({"state_dict": weights, "epoch": 3, "name": "x"}, path, _use_new_zipfile_serialization=modern)
    found = read_header(path)
    assert found.tensors == {
        "model.a": TensorInfo((3, 4), "F16", 24),
        "model.b": TensorInfo((2,), "BF16", 4),
        "model.c": TensorInfo((), "I64", 8),
    }
    assert found.metadata["name"] == "x"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("way", ["torch", "legacy", "pickle", "pickle 0", "pickle 5", "hidden"])
def test_a_program_in_a_pickle_never_runs_and_is_named(suffix: str, way: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"a{suffix}"
    content = {"state_dict": {"a": torch.zeros(2), "b": Payload(marker)}}
    if way in ("torch", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=way == "torch")
    elif way == "hidden":  # in an archive, beside honest weights
        torch.save({"a": torch.zeros(2)}, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("zzz/data.pkl", pickle.dumps(Payload(marker)))
        assert list(read_header(path).tensors) == ["a"]
    else:
        protocol = int(way[-1]) if way[-1].isdigit() else 2
        path.write_bytes(pickle.dumps(Payload(marker), protocol))
    if way != "hidden":
        with pytest.raises(BadModel, match=r"asks to run (posix|nt)\.system"):
            read_header(path)
    assert not marker.exists()


EVIL = (
    b"cos\nsystem\n(S'true'\ntR.",
    b"(S'true'\nios\nsystem\n.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    b"\x80\x02ctorch\nload\nX\x01\x00\x00\x001\x85R.",
    b"\x80\x02c__builtin__\ngetattr\n.",
)


@pytest.mark.parametrize("program", EVIL)
def test_no_way_to_ask_for_a_function_is_overlooked(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(BadModel, match=r"asks to run [\w.]+, which weights never need"):
        read_header(path)


@pytest.mark.parametrize(
    "program", [b"", b"\x80\x02", b"\x80\x02}", b"\x80\x02R.", b"\x80\x02h\x05.", b"\x80\x02(t", b"\xff"]
)
def test_a_damaged_pickle_is_one_sentence(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(BadModel, match="damaged"):
        read_header(path)


def test_a_pickle_that_repeats_itself_endlessly_is_not_followed(tmp_path: Path) -> None:
    """Lists of lists of the same list: 2 ** 60 ways through a hundred bytes."""
    program = b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60)) + b"."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(BadModel, match="no tensors"):
        read_header(tmp_path / "a.pt")


@pytest.mark.parametrize("modern", [True, False])
def test_a_cut_off_torch_file_is_told(modern: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=modern)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadModel, match="cut off"):
        read_header(path)


def test_a_zip_archive_of_something_else_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(BadModel, match="unpack it"):
        read_header(tmp_path / "a.pt")
