"""Changes what a U-Net's attention layers do for as long as a pass takes: the one way for all features that do so.

    with attending(model, hook, attends_to_itself):
        ...                     # every call of those layers goes through `hook(ask, inner)`

A hook gets the question that a layer is asked and `inner`, which answers it as before; it may ask `inner` something
else, several times or not at all. Hooks stack: the one that came last is asked first. With none, a network is exactly
as it was, and so it is afterwards, whatever happened.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipelines.attention import BACKENDS, DEFAULT, Attend
from pipelines.families.base import Asides, Call, LoadedModel
from pipelines.processors import Processor, attentions


@dataclass(frozen=True)
class Ask:
    """One call of one attention layer."""

    name: str
    """Of the layer: down_blocks.1.attentions.0.transformer_blocks.0.attn2"""
    layer: Any
    """diffusers' Attention, with its projections; see `processors.heads_of` and `processors.merged`."""
    hidden: Tensor
    """[rows, places, width]"""
    context: Tensor | None
    """[rows, tokens, width] of what is attended to; None: the places themselves."""
    mask: Tensor | None
    call: Call
    """Of the network: `call.cond.away` says which rows are to be stayed away from, `call.guests` how many at the end
    are of other pictures."""
    attend: Attend
    """The backend that is in use here."""


Inner = Callable[[Ask], Tensor]
Hook = Callable[[Ask, Inner], Tensor]
Where = Callable[[str], bool]


def attends_to_itself(name: str) -> bool:
    return name.endswith(".attn1")


def attends_to_text(name: str) -> bool:
    return name.endswith(".attn2")


@contextmanager
def attending(model: LoadedModel, hook: Hook, where: Where) -> Generator[None, None, None]:
    """Of all attention layers of the U-Net whose names pass `where`. Does nothing for models without a U-Net."""
    part = model.parts.get("unet")
    layers = dict(attentions(part.module)) if part else {}
    hooked = [(layer, Hooked(name, layer.processor, hook, model.asides)) for name, layer in layers.items()]
    hooked = [(layer, processor) for layer, processor in hooked if where(processor.name)]
    try:
        for layer, processor in hooked:
            layer.set_processor(processor)
        yield
    finally:
        for layer, processor in hooked:
            _unhook(layer, processor)


class Hooked:
    """A processor around another one."""

    def __init__(self, name: str, before: Any, hook: Hook, asides: Asides) -> None:
        self.name, self.before = name, before
        self._hook, self._asides = hook, asides
        self._attend = _backend(before)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        def inner(ask: Ask) -> Tensor:
            answer: Tensor = self.before(
                ask.layer,
                ask.hidden,
                encoder_hidden_states=ask.context,
                attention_mask=ask.mask,
                temb=temb,
                **rest,
            )
            return answer

        call = self._asides.call
        if call is None:  # somebody calls the network by itself, and no pass is on its way
            answer: Tensor = self.before(
                attn, hidden_states, encoder_hidden_states, attention_mask=attention_mask, temb=temb, **rest
            )
            return answer
        ask = Ask(self.name, attn, hidden_states, encoder_hidden_states, attention_mask, call, self._attend)
        return self._hook(ask, inner)


def _backend(processor: Any) -> Attend:
    while isinstance(processor, Hooked):
        processor = processor.before
    return processor.attend if isinstance(processor, Processor) else BACKENDS[DEFAULT].attend


def _unhook(layer: Any, gone: Hooked) -> None:
    """Hooks may leave in another order than they came in."""
    if layer.processor is gone:
        layer.set_processor(gone.before)
        return
    processor = layer.processor
    while isinstance(processor, Hooked):
        if processor.before is gone:
            processor.before = gone.before
        processor = processor.before
