"""A worker whose device fails once: in the first denoising step, unless the marker file is there already."""

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from pipelines.families.base import LoadedModel
from pipelines.loading.manager import ModelManager
from pipelines.request import GenerationRequest
from pipelines.samplers import Denoise
from pipelines.session import Session


def boot(settings: Mapping[str, JsonValue]) -> Session:
    marker = Path(str(settings["marker"]))

    def wrap(denoise: Denoise, model: LoadedModel, request: GenerationRequest) -> Denoise:
        def inner(x: Tensor, sigma: float) -> Tensor:
            if not marker.exists():
                marker.touch()
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            return denoise(x, sigma)

        return inner

    device = torch.device("cpu")
    return Session(ModelManager(device), device, (wrap,))
