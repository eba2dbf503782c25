"""Number formats that are fast and right on each kind of device, and errors told apart."""

import json
from pathlib import Path

import psutil
import pytest
import torch

from pipelines import device
from pipelines.device import (
    FULL,
    Dtypes,
    choose_device,
    choose_dtypes,
    free_bytes,
    is_device_fault,
    is_out_of_memory,
    of_card,
    read_facts,
    wider,
    write_facts,
)
from pipelines.errors import PipelineError

CPU = torch.device("cpu")
BF16 = Dtypes(torch.bfloat16, torch.bfloat16, torch.bfloat16)
FP16 = Dtypes(torch.float16, torch.float16, torch.float32)


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(PipelineError, match=r"'cuda:99' is not there. Choose one of: auto, .*cpu"):
        choose_device("cuda:99")
    with pytest.raises(PipelineError, match="'toaster' is not there"):
        choose_device("toaster")


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", (8, 9), BF16),
        ("NVIDIA GeForce RTX 3060", (8, 6), BF16),
        ("NVIDIA GeForce RTX 5070 Ti", (12, 0), BF16),
        ("NVIDIA GeForce RTX 2060", (7, 5), FP16),
        ("Tesla T4", (7, 5), FP16),
        ("NVIDIA GeForce GTX 1660 SUPER", (7, 5), FULL),  # draws black pictures in fp16
        ("NVIDIA GeForce GTX 1080 Ti", (6, 1), FP16),
        ("NVIDIA GeForce GTX 970", (5, 2), FULL),
    ],
)
def test_formats_of_cards(name: str, capability: tuple[int, int], expected: Dtypes) -> None:
    assert of_card(name, capability) == expected


@pytest.mark.parametrize(("speed", "expected"), [(2.0, BF16), (1.0, FULL), (0.1, FULL)])
def test_a_cpu_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: float, expected: Dtypes
) -> None:
    probes: list[torch.dtype] = []

    def seconds(dtype: torch.dtype) -> float:
        probes.append(dtype)
        return speed if dtype == torch.float32 else 1.0

    monkeypatch.setattr(device, "_seconds", seconds)
    monkeypatch.setattr(device, "cpu_name", lambda: "AMD EPYC avx2 avx512f avx512_bf16")
    assert choose_dtypes(CPU, "auto", tmp_path) == expected
    assert probes == [torch.float32, torch.bfloat16]
    assert choose_dtypes(CPU, "auto", tmp_path) == expected
    assert len(probes) == 2
    (key,) = json.loads((tmp_path / "device.json").read_text())
    assert torch.__version__ in key


def test_a_cpu_without_bf16_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_seconds", lambda dtype: pytest.fail("it was measured"))
    monkeypatch.setattr(device, "cpu_name", lambda: "Intel Core i5 avx2")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert choose_dtypes(CPU, "auto", tmp_path) == FULL
    assert device.may_have_bf16("Neoverse-V1 bf16")


def test_the_probe_runs_here() -> None:
    assert 0.01 < device._seconds(torch.float32) / device._seconds(torch.bfloat16) < 100


@pytest.mark.parametrize("wish", ["float32", "bfloat16", "float16"])
def test_a_wish_is_obeyed_everywhere(wish: str) -> None:
    asked = getattr(torch, wish)
    for kind in ("cpu", "cuda:0", "mps"):
        assert choose_dtypes(torch.device(kind), wish) == Dtypes(asked, asked, asked)


def test_macs_decode_in_full_precision() -> None:
    assert choose_dtypes(torch.device("mps")) == FP16


def test_wider_formats() -> None:
    assert wider(torch.float16, CPU) == torch.float32
    assert wider(torch.bfloat16, CPU) == torch.float32
    assert wider(torch.float32, CPU) is None


def test_free_memory_of_a_cpu_is_what_the_system_has() -> None:
    assert 0 < free_bytes(CPU) <= psutil.virtual_memory().total
    assert free_bytes(CPU, cap_gb=1) == pytest.approx(free_bytes(CPU), rel=0.2)


def test_out_of_memory_is_known_in_all_its_forms() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    for error in (caught.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        assert is_out_of_memory(error)
        assert not is_device_fault(error)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_faults_of_the_device_are_no_bugs() -> None:
    for text in (
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "cudaErrorIllegalAddress",
    ):
        assert is_device_fault(RuntimeError(text))
    assert is_device_fault(torch.AcceleratorError("CUDA error: unspecified launch failure"))
    assert not is_device_fault(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_device_fault(ValueError("CUDA error"))


def test_facts_are_kept_and_a_broken_file_is_no_harm(tmp_path: Path) -> None:
    write_facts(tmp_path / "new", "facts.json", {"a": 1})
    assert read_facts(tmp_path / "new", "facts.json") == {"a": 1}
    for text in ("", "{", "[1]", "\x00"):
        (tmp_path / "facts.json").write_text(text)
        assert read_facts(tmp_path, "facts.json") == {}
    assert read_facts(None, "facts.json") == {}
    write_facts(None, "facts.json", {"a": 1})
