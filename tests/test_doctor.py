"""The doctor's report: complete, readable in a terminal, and right about what cannot be used."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from pipelines import doctor
from pipelines.attention import BACKENDS
from pipelines.device import FULL
from pipelines.errors import PipelineError
from webui.config import Settings


def settings_in(folder: Path, **changes: object) -> Settings:
    return Settings.model_validate(
        {"data_dir": folder, "models_dir": folder / "models", "device": "cpu", "dtype": "float32", **changes}
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return doctor.main(settings_in(tmp_path_factory.mktemp("doctor")))


def test_it_tells_of_everything(report: str) -> None:
    for title in ("Machine", "Number formats", "Attention", "What fits", "What to do"):
        assert f"{title}\n" in report
    assert re.search(r"device +cpu: CPU\n", report)
    assert re.search(r"memory +\d+\.\d GB free of \d+\.\d GB\n", report)
    assert f"torch {torch.__version__.partition('+')[0]}" in report
    assert re.search(r"float32 +\d+\.\d{3} TFLOP/s", report)
    for backend in BACKENDS.values():
        assert re.search(rf"  {backend.label} +(\d+\.\d\d ms for 1024 tokens|no: )", report)
    for label, *_ in doctor.FAMILIES:
        assert re.search(rf"  {re.escape(label)} +\d+ x \d+ +\d+\.\d GB +\w+", report)


def test_it_can_be_read_in_a_terminal(report: str) -> None:
    assert max(map(len, report.splitlines())) <= 100
    assert "xformers            no: needs an NVIDIA card, and this runs on CPU" in report


def test_it_says_what_to_do(tmp_path: Path) -> None:
    device = torch.device("cpu")
    found = " ".join(doctor.advice(device, settings_in(tmp_path, attention="flash")))
    assert "no graphics card" in found
    assert "Attention is set to flash, which cannot be used (needs an NVIDIA card" in found


@pytest.mark.parametrize(
    ("gigabytes", "family", "words"),
    [
        (4, "sd1", "all of it on the card: the fastest"),
        (4, "sdxl", "layer by layer from RAM: slower"),
        (8, "flux", "layer by layer from RAM: slower, fp8 weights"),
        (0.3, "qwen_image", "does not fit"),
    ],
)
def test_what_fits_is_what_the_planner_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float, family: str, words: str
) -> None:
    """A card is only looked at by its free memory."""
    monkeypatch.setattr(doctor, "free_bytes", lambda device, cap=0: int(gigabytes * 2**30))
    monkeypatch.setattr(doctor, "choose_dtypes", lambda *args: FULL._replace(unet=torch.float16))
    found = doctor.planned(torch.device("cuda:0"), settings_in(tmp_path), family)
    assert doctor.how(found) == words or doctor.how(found).startswith(f"{words},")


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="'cuda:7' is not there"):
        doctor.main(settings_in(tmp_path, device="cuda:7"))


def test_a_driver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.driver() == "no NVIDIA driver is installed"
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    assert "does not answer" in doctor.driver()
