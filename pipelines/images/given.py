"""What a pass starts from and what it leaves alone, as latents. A picture is encoded when it is first asked for."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import PIL.Image
import torch
from torch import Tensor

from pipelines.families.base import LoadedModel
from pipelines.images.canvas import Canvas, latent_mask
from pipelines.images.resize import resize_latents, to_pixels
from pipelines.request import Start

Made = Tensor | Sequence[PIL.Image.Image]
"""What a pass has made: latents [images, channels, height, width], or pictures."""


class Given:
    def __init__(
        self,
        model: LoadedModel,
        start: Start | None = None,
        canvas: Canvas | None = None,
        before: Made | None = None,
    ) -> None:
        """All of the pass's size. `before`: what it goes on from; None: the canvas."""
        self.start, self.canvas, self.before = start, canvas, before
        self._model = model

    def begun(self, noise: Tensor, sigma: float) -> Tensor:
        """Where the steps begin, for noise of unit variance in the shape of the latents."""
        latents = self.latents
        if self.mask is not None and self.start is not None and self.before is None:
            latents = CONTENTS[self.start.masked_content](latents, self.mask, noise)
        if self.start is not None and self.before is None:
            noise = noise * self.start.noise_multiplier
        return self._model.levels.noised(latents, noise, sigma)

    def untouched(self, images: int) -> Made:
        """What a pass without a step gives back."""
        return [self._canvas.picture] * images if self.before is None else self.before

    @cached_property
    def latents(self) -> Tensor:
        """[images or 1, channels, height, width]: to these noise is added."""
        if isinstance(self.before, Tensor):
            return self.before
        if self.before is not None:  # one by one, as a single image would be
            return torch.cat([self._encoded(picture) for picture in self.before])
        canvas = self._canvas
        if canvas.source is not None:
            _, *size = self._model.latent_shape(*canvas.picture.size)
            return resize_latents(self._encoded(canvas.source), (size[0], size[1]), cover=False)
        return self._encoded(canvas.picture)

    @cached_property
    def original(self) -> Tensor:
        """[1, channels, height, width]: of what was there."""
        canvas = self._canvas
        same = self.before is None and canvas.picture is canvas.original
        return self.latents if same else self._encoded(canvas.original)

    @cached_property
    def mask(self) -> Tensor | None:
        """[1, 1, height, width], 1 is painted; None: everything."""
        if self.canvas is None or self.canvas.mask is None:
            return None
        _, height, width = self._model.latent_shape(*self.canvas.mask.size)
        soft = self.start is not None and self.start.soft is not None
        found = torch.from_numpy(latent_mask(self.canvas.mask, width, height, soft))
        return found[None, None].to(self._model.device)

    def _encoded(self, picture: PIL.Image.Image) -> Tensor:
        return self._model.to_latent(to_pixels(picture))

    @property
    def _canvas(self) -> Canvas:
        if self.canvas is None:
            raise ValueError("a pass that goes on from another one has no picture")
        return self.canvas


Content = Callable[[Tensor, Tensor, Tensor], Tensor]

CONTENTS: Mapping[str, Content] = {
    "original": lambda latents, mask, noise: latents,
    "fill": lambda latents, mask, noise: latents,
    "latent noise": lambda latents, mask, noise: torch.lerp(latents, noise, mask),
    "latent nothing": lambda latents, mask, noise: latents * (1 - mask),
}
"""What lies under the mask before the first step: (latents, mask, noise) -> latents. 'fill' was done to the picture."""
