"""What a model family must be able to do: the seam between our sampling loop and diffusers' modules."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import PIL.Image
import torch
from torch import Tensor

from pipelines.prompt import Reader, Span
from pipelines.request import Emphasis
from pipelines.samplers import NoiseLevels

if TYPE_CHECKING:
    from pipelines.families.embeddings import Embedding
    from pipelines.loading.parts import Part


@dataclass(frozen=True)
class Cond:
    """What the denoiser is told, one row a prompt: token features, and pooled ones where the family has them."""

    tokens: Tensor
    pooled: Tensor | None = None
    away: tuple[bool, ...] = ()
    """Which rows say what to stay away from; empty: none of them."""
    blind: tuple[bool, ...] = ()
    """Which rows do not see the picture that the network sees beside the latents; empty: all of them do."""
    perturbed: tuple[bool, ...] = ()
    """Which rows are for a network that is made worse: see `guidance/pag.py`; empty: none of them."""
    notes: tuple[str, ...] = ()
    """What of the prompts could not be read."""

    ROWS: ClassVar[tuple[str, ...]] = ("tokens", "pooled", "away", "blind", "perturbed")
    """The fields that have an entry for each row."""

    def take(self, rows: Sequence[int]) -> Self:
        """These rows, in this order; a row may come more than once."""
        taken: dict[str, Any] = {}
        for name in self.ROWS:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                taken[name] = value[list(rows)]
            elif value:
                taken[name] = tuple(value[row] for row in rows)
        return replace(self, **taken)

    def repeated(self, count: int) -> Self:
        """Each row `count` times, one after another: a, a, b, b."""
        return self.take([row for row in range(len(self.tokens)) for _ in range(count)])

    def sided(self, towards: int) -> Self:
        """The first so many rows are drawn towards, the others stayed away from."""
        return replace(self, away=tuple(row >= towards for row in range(len(self.tokens))))


@dataclass(frozen=True)
class Reading:
    """How prompts are read."""

    clip_skip: int = 0
    """CLIP's layers to stop before, from 1; 0: as the family does."""
    emphasis: Emphasis = "Original"
    embeddings: tuple["Embedding", ...] = ()
    """Textual inversions that the prompts may name."""


PLAIN = Reading()


@dataclass(frozen=True)
class Call:
    """One call of the network that draws, before it is made."""

    x: Tensor
    """[rows, channels, height, width], scaled as the network is shown it, without channels beside the latent."""
    step: Tensor
    """[rows], as the network counts."""
    sigma: float
    cond: Cond
    """As many rows."""
    told: Mapping[str, Any]
    """What the network takes beside latents and step, by its own argument names."""
    guests: int = 0
    """So many rows at the end are of other pictures: they are seen by the ones before, and thrown away then."""
    beside: Tensor | None = None
    """What the network sees beside the latents, as `LoadedModel.beside` gives it. None: what stands for no picture."""

    def with_told(self, more: Mapping[str, Any]) -> Self:
        return replace(self, told={**self.told, **more})


Aside = Callable[[Call], Call]
"""Sees every call of a network first, and may tell the network more."""


class Asides:
    """Of one model, in the order in which they came."""

    def __init__(self) -> None:
        self.call: Call | None = None
        """The one that is being made: what hooks inside of the network want to know about."""
        self._all: list[Aside] = []

    @contextmanager
    def joined(self, aside: Aside) -> Generator[None, None, None]:
        self._all.append(aside)
        try:
            yield
        finally:
            self._all.remove(aside)

    @contextmanager
    def heard(self, call: Call) -> Generator[Call, None, None]:
        """The call with all that they have to say, for as long as the network is at it."""
        before = self.call
        for aside in tuple(self._all):
            call = aside(call)
        self.call = call
        try:
            yield call
        finally:
            self.call = before


class LoadedModel(Protocol):
    device: torch.device
    levels: NoiseLevels
    vae: torch.nn.Module
    reader: Reader
    parts: Mapping[str, "Part"]
    """The networks by diffusers' names; `placement.py` decides where their weights lie."""
    asides: Asides

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        """One row for each prompt, all of the same length."""
        ...

    def chunks_of(self, spans: Sequence[Span], reading: Reading = PLAIN) -> int:
        """Only prompts that take the same number of chunks are encoded to the same length, whatever is beside them;
        1 where that goes for all."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]: ...

    def predict(self, x: Tensor, sigma: float, cond: Cond) -> Tensor:
        """The clean latents x0 that the model sees in x at noise level sigma, in fp32; as many rows as `cond` has."""
        ...

    def to_latent(self, pixels: Tensor) -> Tensor:
        """[n, 3, height, width] from 0 to 1 -> [n, channels, height / 8, width / 8], without the encoder's noise."""
        ...

    def beside(self, picture: Tensor, mask: Tensor, hidden: float = 1.0) -> Tensor | None:
        """What a network for inpainting, or one that edits, sees beside the latents: [1, channels, height, width]; None
        for all others. Picture [1, 3, height, width] and mask [1, 1, height, width] from 0 to 1, in pixels; 1 is
        painted. `hidden`: how much of what lies under the mask it does not see."""
        ...

    def decode(self, latent: Tensor) -> PIL.Image.Image:
        """The picture of one latent [channels, height, width]."""
        ...


def covered(picture: Tensor, mask: Tensor, hidden: float = 1.0) -> Tensor:
    """Grey under the mask: what models for inpainting see of a picture."""
    return torch.lerp(picture, torch.full_like(picture, 0.5), mask * hidden)
