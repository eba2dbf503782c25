"""One pass over one batch, as every feature sees it; and what a job may reach for while it is worked on."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import PIL.Image
import torch
from torch import Tensor

from pipelines.adapters.wardrobe import Wardrobe
from pipelines.conditioning import TextCache, Told
from pipelines.decoding import OnTile
from pipelines.families.base import LoadedModel
from pipelines.images.canvas import Canvas
from pipelines.images.given import Given
from pipelines.images.networks import PixelNetworks
from pipelines.loading.parts import Part, Recipe
from pipelines.request import GenerationRequest
from pipelines.samplers import Denoise, Sigmas
from pipelines.stages import Stage
from pipelines.types import Kind, ModelInfo

WrapDenoise = Callable[[Denoise, LoadedModel, GenerationRequest], Denoise | None]
"""How extensions take part: one function around another. None leaves the denoiser as it is. The inner function is
called at least once a step, with sigma as a plain number."""


class Kit(Protocol):
    """What a job may reach for."""

    texts: TextCache
    wardrobe: Wardrobe
    wrappers: Sequence[WrapDenoise]
    made: dict[Hashable, Any]
    """What features have made for this job and may need again, such as the edges in a picture."""
    on_tile: OnTile
    """Told of pieces of a picture that are done. What it raises ends the work."""

    @property
    def pixels(self) -> PixelNetworks:
        """Upscalers and face restorers."""
        ...

    def model(self, name: str = "") -> LoadedModel:
        """This checkpoint, fitted into memory; empty: the job's own. The one that was in use before goes out of use."""
        ...

    def file(self, kind: Kind, name: str) -> ModelInfo:
        """Another file that the request names. Raises ModelNotFound."""
        ...

    def network(self, name: str, recipe: Recipe, info: ModelInfo) -> AbstractContextManager[Part]:
        """A network beside the checkpoint in use, on the device until the end of the `with`. `name`: what kind it is,
        one of `checkpoint.WORDS`. Raises BadModel."""
        ...

    def files_of(self, kind: Kind) -> list[ModelInfo]:
        """All files of a kind that the request names."""
        ...

    def image(self, name: str) -> PIL.Image.Image:
        """A picture that the request holds. Raises PipelineError."""
        ...

    def note(self, text: str) -> None:
        """Something is done in another way than asked: what, why, what helps."""
        ...


@dataclass
class Seen:
    """What the model last saw without the prompt: x0, or None where it was not asked. Guidance writes it down."""

    unguided: Tensor | None = None


@dataclass(frozen=True)
class Scene:
    request: GenerationRequest
    stage: Stage
    kit: Kit
    model: LoadedModel
    told: Told
    units: range
    sigmas: Sigmas
    """The noise levels that are walked, down to 0."""
    given: Given | None = None
    """What the steps start from; None: pure noise."""
    seen: Seen = field(default_factory=Seen, compare=False)

    @property
    def seeds(self) -> list[int]:
        return [self.request.seed_of(unit) for unit in self.units]

    @property
    def variation_seeds(self) -> list[int]:
        return [self.request.variation_seed_of(unit) for unit in self.units]

    @property
    def canvas(self) -> Canvas | None:
        """The picture that the request starts from, at the size of this pass."""
        return self.given.canvas if self.given else None

    @property
    def device(self) -> torch.device:
        return self.model.device

    def step(self, sigma: float) -> int:
        """Counted from 0: the step within which the denoiser is asked at this level."""
        passed = sum(level >= sigma * (1 - 1e-6) for level in self.sigmas[:-1])
        return max(0, passed - 1)

    def share(self, sigma: float) -> float:
        """Of the steps that are done by then, from 0 to 1."""
        return self.step(sigma) / max(1, len(self.sigmas) - 1)


Feature = Callable[[Scene, Denoise], AbstractContextManager[Denoise]]
"""What a pass can have beyond prompt and steps. It changes networks on the way in and back on the way out, and gives
the denoiser that it was given or one around it. Does nothing where the request does not ask for it."""
