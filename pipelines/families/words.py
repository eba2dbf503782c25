"""From prompts to the numbers that text encoders of the flow families read, and weights on what comes out."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from pipelines.loading.parts import Part
from pipelines.prompt import Span

CLIP_TOKENS = 77
"""With begin and end."""


def text_of(spans: Sequence[Span]) -> str:
    return "".join(span.text for span in spans)


def weights_of(encoding: Encoding, spans: Sequence[Span]) -> list[float]:
    """Each token's weight is that of the span in which it ends (T5's begin with the space before a word); a token that
    was added has 1."""
    ends: list[tuple[int, float]] = []
    end = 0
    for span in spans:
        end += len(span.text)
        ends.append((end, span.weight))
    found = []
    for (start, stop), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        inside = [weight for end, weight in ends if stop <= end]
        found.append(inside[0] if inside and stop > start and not special else 1.0)
    return found


def padded(tokenizer: Tokenizer, spans: Sequence[Span], length: int, pad: int) -> tuple[list[int], list[float]]:
    """Ids and weights, `length` of each. What is too long is cut; the last token, the end of the text, stays."""
    encoding = tokenizer.encode(text_of(spans))
    ids, weights = list(encoding.ids), weights_of(encoding, spans)
    if len(ids) > length:
        ids, weights = [*ids[: length - 1], ids[-1]], [*weights[: length - 1], weights[-1]]
    missing = length - len(ids)
    return [*ids, *[pad] * missing], [*weights, *[1.0] * missing]


def t5_features(part: Part, prompts: Sequence[Sequence[Span]], length: int, device: torch.device) -> Tensor:
    """[prompts, length, width]. A token's weight multiplies its features; the padding is read too, as in training."""
    from pipelines.tokenizers.bundled import T5_PAD, t5

    rows = [padded(t5(), spans, length, T5_PAD) for spans in prompts]
    ids = torch.tensor([ids for ids, _ in rows], device=device)
    weights = torch.tensor([weights for _, weights in rows], device=device)
    features: Tensor = part.module(input_ids=ids)[0]
    return (features * weights[..., None]).to(part.dtype) if bool((weights != 1).any()) else features.to(part.dtype)


def clip_pooled(part: Part, prompts: Sequence[Sequence[Span]], device: torch.device) -> Tensor:
    """[prompts, width]: what CLIP makes of the whole text, of which it reads 75 tokens."""
    pooled: Tensor = part.module(input_ids=_clip_ids(prompts, None, device)[0]).pooler_output
    return pooled.to(part.dtype)


def clip_states(
    part: Part, prompts: Sequence[Sequence[Span]], device: torch.device, pad: int | None = None
) -> tuple[Tensor, Tensor]:
    """Features of 77 tokens from the last layer but one, times their weights, and the projected whole."""
    ids, weights = _clip_ids(prompts, pad, device)
    output = part.module(input_ids=ids, output_hidden_states=True)
    features = output.hidden_states[-2]
    weighted = features * weights[..., None] if bool((weights != 1).any()) else features
    return weighted.to(part.dtype), output.text_embeds.to(part.dtype)


def _clip_ids(prompts: Sequence[Sequence[Span]], pad: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    from pipelines.tokenizers.clip import clip

    tokenizer = clip()
    filler = tokenizer.eos_token_id if pad is None else pad
    rows = [padded(tokenizer.backend_tokenizer, spans, CLIP_TOKENS, filler) for spans in prompts]
    return (
        torch.tensor([ids for ids, _ in rows], device=device),
        torch.tensor([weights for _, weights in rows], device=device),
    )


def qwen_states(part: Part, text: str, length: int, device: torch.device, pad: bool = False) -> tuple[Any, int]:
    """The states of all layers, each [1, tokens, width], for a text that is cut at `length` or, with `pad`, filled up
    to it; and how many of its tokens are text. Weights have no place in what a chat model is told: they are not read.
    """
    from pipelines.tokenizers.bundled import QWEN_PAD, qwen

    ids = qwen().encode(text).ids[:length]
    count = len(ids)
    ids = [*ids, *[QWEN_PAD] * (length - count if pad else 0)]
    mask = torch.arange(len(ids), device=device)[None] < count
    module: Any = part.module
    output = module(input_ids=torch.tensor([ids], device=device), attention_mask=mask, output_hidden_states=True)
    return output.hidden_states, count
