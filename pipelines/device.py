"""What this machine computes on, and in which number format."""

import torch

from pipelines.errors import PipelineError


def choose_device(wish: str) -> torch.device:
    """From "auto", "cpu", "cuda", "cuda:1" or "mps"; "auto" takes the fastest that is there."""
    there = devices()
    if wish == "auto":
        return torch.device(there[0])
    name = "cuda:0" if wish == "cuda" else wish
    if name not in there:
        raise PipelineError(f"The device {wish!r} is not there. Choose one of: auto, {', '.join(there)}.")
    return torch.device(name)


def devices() -> list[str]:
    """The devices of this machine, the fastest first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def device_name(device: torch.device) -> str:
    """For people: "CPU", or what the maker calls the card."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def choose_dtype(device: torch.device) -> torch.dtype:
    """Half precision where it is fast and the modules are known to bear it."""
    return torch.float16 if device.type == "cuda" else torch.float32
