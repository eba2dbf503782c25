"""The loaded models: get one by its description, keep the last few, let go of the one used longest ago."""

import gc
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch

from pipelines.device import device_name
from pipelines.engine import OnStatus
from pipelines.errors import BadModel
from pipelines.families import FAMILIES, Load
from pipelines.families.base import LoadedModel
from pipelines.types import ModelInfo, WorkerState, WorkerStatus


class ModelManager:
    def __init__(self, device: torch.device, keep: int = 1, families: Mapping[str, Load] = FAMILIES) -> None:
        self.device = device
        self.families = families
        self._keep = max(1, keep)
        self._loaded: OrderedDict[tuple[str, Path], LoadedModel] = OrderedDict()

    def get(self, info: ModelInfo, report: OnStatus) -> LoadedModel:
        """The model, loaded if need be; `report` hears of a load before and after it."""
        key = (info.family, info.path)
        if key not in self._loaded:
            report(WorkerStatus(state=WorkerState.LOADING, detail=info.name))
            try:
                self._loaded[key] = self._load(info)
            finally:
                report(WorkerStatus(state=WorkerState.READY, detail=device_name(self.device)))
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _load(self, info: ModelInfo) -> LoadedModel:
        if info.family not in self.families:
            known = ", ".join(self.families)
            raise BadModel(f"{info.name} is a model of the family {info.family}. These can be run so far: {known}.")
        while len(self._loaded) >= self._keep:
            self._loaded.popitem(last=False)
        self.free()
        return self.families[info.family](info.path, self.device)

    def free(self) -> None:
        """Give memory that nothing uses any more back to the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
