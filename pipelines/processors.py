"""The attention layers of networks, told to use a backend of `attention.py`; and asked which one they use.

U-Nets, VAEs and SD 3 call PyTorch's own attention inside of their processors: they get processors of ours. The other
transformers ask diffusers' dispatcher, which takes a name.
"""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.attention import BACKENDS, DEFAULT, Choice

log = logging.getLogger(__name__)


class Processor:
    """The attention of a U-Net's or VAE's layer, around any backend. After diffusers' AttnProcessor2_0 (Apache-2.0)."""

    def __init__(self, name: str, before: Any = None) -> None:
        """`before`: the processor that this one stands in for."""
        self.name, self.before = name, before
        self.attend = BACKENDS[name].attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        shape = hidden_states.shape
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
            attention_mask = attention_mask.view(len(context), attn.heads, -1, attention_mask.shape[-1])
        query, key, value = heads_of(attn, hidden_states, context)
        result = merged(attn, self.attend(query, key, value, attention_mask).to(query.dtype))
        if len(shape) == 4:
            result = result.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            result = result + residual
        scaled: Tensor = result / attn.rescale_output_factor
        return scaled


class JointProcessor(Processor):
    """Of SD 3: picture and prompt attend to both. After diffusers' JointAttnProcessor2_0 (Apache-2.0)."""

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        own = heads_of(attn, hidden_states, hidden_states)
        if encoder_hidden_states is not None:
            layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            added = tuple((layer, encoder_hidden_states) for layer in layers)
            others = _normed(attn, added, (attn.norm_added_q, attn.norm_added_k))
            own = [torch.cat(pair, 2) for pair in zip(own, others, strict=True)]
        query, key, value = own
        result = self.attend(query, key, value, attention_mask).transpose(1, 2).flatten(2).to(query.dtype)
        picture, prompt = result[:, : hidden_states.shape[1]], result[:, hidden_states.shape[1] :]
        picture = attn.to_out[1](attn.to_out[0](picture))
        if encoder_hidden_states is None:
            alone: Tensor = picture
            return alone
        return picture, prompt if attn.context_pre_only else attn.to_add_out(prompt)


def heads_of(attn: Any, hidden_states: Tensor, context: Tensor) -> list[Tensor]:
    """Query, key and value of a layer, each [rows, heads, tokens, dim]."""
    inputs = (attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context)
    return _normed(attn, inputs, (attn.norm_q, attn.norm_k))


def merged(attn: Any, result: Tensor) -> Tensor:
    """What the heads found, as the layer gives it: [rows, tokens, width]."""
    out: Tensor = attn.to_out[1](attn.to_out[0](result.transpose(1, 2).flatten(2)))
    return out


def _normed(attn: Any, inputs: tuple[tuple[Any, Tensor], ...], norms: tuple[Any, Any]) -> list[Tensor]:
    heads = [_heads(layer(x), attn.heads) for layer, x in inputs]
    normed = [head if norm is None else norm(head) for head, norm in zip(heads, norms, strict=False)]
    return [*normed, heads[2]]


OURS: dict[str, type[Processor]] = {"AttnProcessor2_0": Processor, "JointAttnProcessor2_0": JointProcessor}
"""diffusers' processors that call PyTorch themselves -> ours, which call any backend."""


def _heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def apply(module: nn.Module, choice: Choice) -> None:
    """Make the network use this backend, or diffusers' own processors for the default. Does nothing twice.

    Raises RuntimeError if the network does not have it afterwards: diffusers has been silent about that before.
    """
    if used_by(module) in (choice.name, ""):
        return
    dispatched = BACKENDS[choice.name].dispatched
    layers = [layer for _, layer in attentions(module)]
    if any(hasattr(layer.processor, "_attention_backend") for layer in layers):
        if not dispatched:
            log.warning("%s attention is not for this kind of network: it uses SDPA.", BACKENDS[choice.name].label)
            return
        module.set_attention_backend(dispatched)  # type: ignore[operator]
    for layer in layers:
        processor = layer.processor
        if isinstance(processor, Processor) and choice.name == DEFAULT:
            layer.set_processor(processor.before)
        elif isinstance(processor, Processor) or type(processor).__name__ in OURS:
            before = processor.before if isinstance(processor, Processor) else processor
            layer.set_processor(OURS[type(before).__name__](choice.name, before))
    if used_by(module) != choice.name:
        raise RuntimeError(f"{type(module).__name__} does not use {choice.name} attention after it was told to.")


def used_by(module: nn.Module) -> str:
    """The backend that the network's processors use; empty if it has none that we could change."""
    names = set()
    for _, layer in attentions(module):
        processor: Any = layer.processor
        if isinstance(processor, Processor):
            names.add(processor.name)
        elif hasattr(processor, "_attention_backend"):
            names.add(_name_of(processor._attention_backend))
        elif type(processor).__name__ in OURS:
            names.add(DEFAULT)
    return names.pop() if len(names) == 1 else "mixed" if names else ""


def _name_of(dispatched: Any) -> str:
    value = getattr(dispatched, "value", dispatched)
    return next((name for name, row in BACKENDS.items() if value is not None and row.dispatched == value), DEFAULT)


def attentions(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attention layers of a network, with their names."""
    for name, layer in module.named_modules():
        if hasattr(layer, "processor") and hasattr(layer, "set_processor"):
            yield name, layer
