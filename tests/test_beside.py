"""Networks beside a checkpoint's: kept as long as there is room, on the device only while they are needed."""

from pathlib import Path

import pytest
import torch

from pipelines.errors import BadModel, ModelNotFound
from pipelines.loading.beside import Networks, beside
from pipelines.loading.recipes.controlnet import CONTROLNET
from pipelines.memory.planner import Level, Plan
from tests.checkpoints import TINY, control_shapes, save

CPU = torch.device("cpu")
HOST = Plan(host=True)
SIZE = 10**9


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("nets")
    return [save(folder / f"{i}.safetensors", control_shapes(TINY["sd1"].unet), i) for i in range(2)]


def test_a_network_is_loaded_once_as_long_as_there_is_room(files: list[Path]) -> None:
    networks = Networks(CPU, SIZE)
    with networks.use("controlnet", CONTROLNET, files[0], torch.float32, HOST) as first:
        pass
    with networks.use("controlnet", CONTROLNET, files[0], torch.float32, HOST) as again:
        assert again is first
    with networks.use("controlnet", CONTROLNET, files[0], torch.bfloat16, HOST) as other:
        assert other.dtype == next(other.module.parameters()).dtype == torch.bfloat16
    assert len(networks) == 2


def test_what_is_in_use_stays_and_the_rest_makes_room(files: list[Path]) -> None:
    networks = Networks(CPU, 0)
    with networks.use("controlnet", CONTROLNET, files[0], torch.float32, HOST) as first:
        with networks.use("controlnet", CONTROLNET, files[1], torch.float32, HOST) as second:
            assert len(networks) == 2
        with networks.use("controlnet", CONTROLNET, files[1], torch.bfloat16, HOST):
            assert len(networks) == 2
        assert next(second.module.parameters()).device.type == "meta"
        assert next(first.module.parameters()).device == CPU


@pytest.mark.parametrize("level", [Level.OFFLOAD, Level.FULL])
def test_it_lies_on_the_device_as_long_as_it_is_needed(files: list[Path], level: Level) -> None:
    """With everything there it stays for the job, so that the next picture finds it."""
    networks, plan = Networks(CPU, SIZE), Plan(level=level)
    with networks.use("controlnet", CONTROLNET, files[0], torch.float32, HOST) as part:
        home = [parameter.data_ptr() for parameter in part.module.parameters()]
    networks.leave()
    with networks.use("controlnet", CONTROLNET, files[0], torch.float32, plan):
        assert networks.bytes_on_device > 0
    assert bool(networks.bytes_on_device) == (level == Level.FULL)
    networks.leave()
    assert networks.bytes_on_device == 0
    assert [parameter.data_ptr() for parameter in part.module.parameters()] == home


def test_where_the_checkpoint_streams_it_streams_too() -> None:
    assert beside(Plan(level=Level.STREAM, streamed=("unet",)), "controlnet").streamed == ("controlnet",)
    assert beside(Plan(level=Level.OFFLOAD), "controlnet").level == Level.FULL


def test_files_that_are_none_are_said(files: list[Path], tmp_path: Path) -> None:
    networks = Networks(CPU, SIZE)
    save(tmp_path / "odd.safetensors", {"a.weight": (3, 3)})
    with (
        pytest.raises(BadModel, match=r"The ControlNet in odd\.safetensors"),
        networks.use("controlnet", CONTROLNET, tmp_path / "odd.safetensors", torch.float32, HOST),
    ):
        pass
    with (
        pytest.raises(ModelNotFound, match="gone"),
        networks.use("controlnet", CONTROLNET, tmp_path / "gone.safetensors", torch.float32, HOST),
    ):
        pass
