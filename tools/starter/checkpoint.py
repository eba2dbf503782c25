"""A training that can be continued: networks, their running average and Adam's moments in one safetensors file."""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.starter.schedule import Clock
from tools.starter.tokens import TokenTable


class Progress(BaseModel):
    """How far the training is; kept in the file's header."""

    model_config = ConfigDict(frozen=True)

    step: int = 0
    pictures: int = 0
    clock: Clock


def tensors_of(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.detach().cpu().clone() for name, value in values.items()}


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state by the place of the parameter: `3.exp_avg`."""
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {f"{place}.{name}": value for place, values in state.items() for name, value in values.items()}


def restore_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        place, moment = name.split(".", 1)
        state.setdefault(int(place), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def save_checkpoint(
    path: Path, progress: Progress, tokens: TokenTable, networks: dict[str, nn.Module], optimizer: Any
) -> None:
    """Replaces `path` only when the new file is whole."""
    tensors = {"tokens": torch.from_numpy(tokens.clip_ids), **tensors_of("adam", moments_of(optimizer))}
    for name, network in networks.items():
        tensors |= tensors_of(name, network.state_dict())
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    save_file(tensors, unfinished, metadata={"progress": progress.model_dump_json()})
    unfinished.replace(path)


class Checkpoint:
    """A checkpoint file, read part by part."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.progress = Progress.model_validate_json(file.metadata()["progress"])
            self._tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.tokens = TokenTable(self._tensors["tokens"].numpy())

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one network, or Adam's moments, by their own names."""
        start = prefix + "."
        return {name.removeprefix(start): value for name, value in self._tensors.items() if name.startswith(start)}
