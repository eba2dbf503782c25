"""T2I adapters: what a small network sees in a picture is added on the U-Net's way down. Mou et al. 2023.

It looks at the picture once, before the first step, and is not needed any more then.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pipelines.control.units import Speaker, Told, Unit, mismatch, spread
from pipelines.errors import PipelineError
from pipelines.families.base import Call
from pipelines.loading.recipes.t2i import T2I
from pipelines.scene import Scene

SOFT = (0.25, 0.62, 0.825, 1.0)
"""A1111's weights of the levels where the prompt is to count more."""


@contextmanager
def t2i_adapter(scene: Scene, unit: Unit) -> Generator[Speaker, None, None]:
    """Raises PipelineError where it does not fit the checkpoint, or the size of the picture."""
    unet: Any = scene.model.parts["unet"].module.config
    with scene.kit.network("t2i_adapter", T2I, unit.info) as part:
        network: Any = part.module
        channels = tuple(network.config.channels)
        wide = channels if len(channels) == len(unet.block_out_channels) else (*channels, channels[-1])
        xl = network.config.adapter_type == "full_adapter_xl"
        if xl != (unet.addition_embed_type == "text_time") or wide[: len(unet.block_out_channels)] != tuple(
            unet.block_out_channels
        ):
            raise mismatch(unit.info)
        factor = network.config.downscale_factor
        if scene.stage.width % factor or scene.stage.height % factor:
            raise PipelineError(
                f"{unit.info.name} takes pictures whose sides are multiples of {factor}. Change width or height."
            )
        pixels = unit.hint.pixels.clamp(min=0)
        seen = pixels.mean(1, keepdim=True) if network.config.in_channels == 1 else pixels
        features = network(seen.to(scene.device, part.dtype))
    yield T2IAdapter(unit, features)


class T2IAdapter:
    def __init__(self, unit: Unit, features: list[Tensor]) -> None:
        self.unit = unit
        scales = SOFT[-len(features) :] if unit.soft else (1.0,) * len(features)
        self._features = [each * (scale * unit.control.weight) for each, scale in zip(features, scales, strict=True)]

    def told(self, call: Call) -> Told:
        rows = self.unit.rows(call)
        if not rows:
            return {}
        said = [each.expand(len(rows), -1, -1, -1) for each in self._features]
        return {"down_intrablock_additional_residuals": [spread(each, rows, len(call.x)) for each in said]}
