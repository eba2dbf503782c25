"""What units say to the network that draws, added up; and what all of them share: when, how much, to which rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pipelines.control.hints import Hint
from pipelines.control.preprocessors import Module
from pipelines.errors import ModelNotFound, PipelineError
from pipelines.families.base import Call
from pipelines.request import Control
from pipelines.scene import Kit, Scene
from pipelines.types import Kind, ModelInfo

KINDS = (Kind.CONTROLNET, Kind.T2I_ADAPTER, Kind.IP_ADAPTER)
"""What a unit may name."""

FALLING = 0.825
"""Each layer further from the middle counts by so much less, where the prompt is to count more: Zhang 2023."""
LAYERS = 13
"""Of SD 1's ControlNet: 12 and the middle."""

Told = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """A unit of the request and all that is known of it before the first step."""

    control: Control
    module: Module
    info: ModelInfo
    hint: Hint
    soft: bool
    """Its layers count less and less."""
    pooled: bool = False
    """Of the whole picture it tells one thing: ControlNets for shuffled pictures do so."""

    @property
    def spares_away(self) -> bool:
        """It says nothing to the side that is to be stayed away from."""
        return self.pooled or self.control.mode == "ControlNet is more important"

    def wanted(self, share: float) -> bool:
        return self.control.start <= share < self.control.end

    def scales(self, layers: int) -> list[float]:
        falling = [FALLING ** max(0, LAYERS - 1 - i) for i in range(layers)] if self.soft else [1.0] * layers
        return [scale * self.control.weight for scale in falling]

    def rows(self, call: Call) -> list[int]:
        """Those that it speaks to."""
        count = len(call.x) - call.guests
        away = call.cond.away or (False,) * count
        return [row for row in range(count) if not (self.spares_away and away[row])]


class Speaker(Protocol):
    """A unit with its network."""

    unit: Unit

    def told(self, call: Call) -> Told:
        """What the network that draws is told more: tensors, or lists of them, with a row for each of the call's."""
        ...


class Speakers:
    """An aside: all units of a pass."""

    def __init__(self, scene: Scene, speakers: Sequence[Speaker]) -> None:
        self._scene, self._speakers = scene, speakers

    def __call__(self, call: Call) -> Call:
        share = self._scene.share(call.sigma)
        more: Told = {}
        for speaker in self._speakers:
            if speaker.unit.wanted(share):
                more = added(more, speaker.told(call))
        return call.with_told(more) if more else call


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> Told:
    """Under each name the sum; of lists, element by element."""
    found = dict(one)
    for name, value in other.items():
        if name not in found:
            found[name] = value
        elif isinstance(value, Tensor):
            found[name] = found[name] + value
        else:
            found[name] = [a + b for a, b in zip(found[name], value, strict=True)]
    return found


def picked(call: Call, rows: Sequence[int]) -> Call:
    """Some of its rows."""
    if len(rows) == len(call.x):
        return call
    index = list(rows)
    told = {name: _rows(value, index, len(call.x)) for name, value in call.told.items()}
    return Call(call.x[index], call.step[index], call.sigma, call.cond.take(index), told)


def spread(values: Tensor, rows: Sequence[int], count: int) -> Tensor:
    """Rows of `count`, with zeros where nothing is said."""
    if len(rows) == count:
        return values
    full = values.new_zeros(count, *values.shape[1:])
    full[list(rows)] = values
    return full


def _rows(value: Any, index: list[int], count: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _rows(each, index, count) for name, each in value.items()}
    return value[index] if isinstance(value, Tensor) and len(value) == count else value


def file_of(kit: Kit, name: str, kinds: Sequence[Kind] = KINDS) -> ModelInfo:
    """Raises ModelNotFound."""
    for kind in kinds:
        try:
            return kit.file(kind, name)
        except ModelNotFound:
            continue
    raise ModelNotFound(f"There is no ControlNet or adapter named {name!r}. Refresh the list of models.")


def mismatch(info: ModelInfo, detail: str = "") -> PipelineError:
    made_for = f" ({info.family})" if info.family else ""
    return PipelineError(
        f"{info.name} is made for another kind of checkpoint{made_for}{detail}. "
        "Choose a ControlNet for this one, or another checkpoint."
    )
