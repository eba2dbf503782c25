"""What a worker tells of itself when it greets: device, formats, backends, and the tables that fill drop-downs."""

from importlib.metadata import PackageNotFoundError, version

import torch

from pipelines import attention
from pipelines.device import device_name, memory_bytes
from pipelines.loading.manager import ModelManager
from pipelines.memory.fitting import Fitter
from pipelines.samplers import SAMPLERS, SCHEDULE_NAMES
from pipelines.types import Capabilities


def capabilities(models: ModelManager, device: torch.device, fitter: Fitter) -> Capabilities:
    dtypes = {kind: getattr(models.dtypes, kind) for kind in ("text_encoder", "unet", "vae")}
    why_not = attention.availability(device)
    if fitter.backend.reason:
        why_not[fitter.choices.attention] = fitter.backend.reason
    return Capabilities(
        device=str(device),
        device_name=device_name(device),
        memory_bytes=memory_bytes(device),
        samplers=tuple(SAMPLERS),
        schedules=SCHEDULE_NAMES,
        families=tuple(models.families),
        versions={name: found for name in ("torch", "diffusers", "transformers") if (found := _version(name))},
        dtypes={kind: str(dtype).removeprefix("torch.") for kind, dtype in dtypes.items()},
        placement=fitter.choices.wish.placement,
        storage=fitter.choices.wish.storage,
        attention=attention.BACKENDS[fitter.backend.name].label,
        attentions={attention.BACKENDS[name].label: reason for name, reason in why_not.items()},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
