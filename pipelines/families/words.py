"""From prompts to the numbers that T5 and Qwen read, weights on what comes out, and what of a prompt is not read."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from pipelines.families.base import Reading
from pipelines.families.clip import weighted
from pipelines.loading.parts import Part
from pipelines.prompt import Reader, Span

CLIP_TOKENS = 75
SHOWN = 60
"""Letters of what was cut off that are shown at most."""


class Padded(NamedTuple):
    ids: list[int]
    weights: list[float]
    lost: str
    """The part of the text for which there was no room."""


class States(NamedTuple):
    layers: Any
    """The output of each, [1, tokens, width]."""
    lost: str


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
    found, place = [], 0
    for (start, stop), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        while place < len(ends) and ends[place][0] < stop:
            place += 1
        found.append(ends[place][1] if place < len(ends) and stop > start and not special else 1.0)
    return found


def padded(tokenizer: Tokenizer, spans: Sequence[Span], length: int, pad: int) -> Padded:
    """Ids and weights, `length` of each. What is too long is cut; the last token, the end of the text, stays."""
    text = text_of(spans)
    encoding = tokenizer.encode(text)
    ids, weights = list(encoding.ids), weights_of(encoding, spans)
    lost = ""
    if len(ids) > length:
        lost = text[encoding.offsets[length - 1][0] :]
        ids, weights = [*ids[: length - 1], ids[-1]], [*weights[: length - 1], weights[-1]]
    missing = length - len(ids)
    return Padded([*ids, *[pad] * missing], [*weights, *[1.0] * missing], lost)


def t5_features(
    part: Part, prompts: Sequence[Sequence[Span]], reader: Reader, device: torch.device, reading: Reading
) -> tuple[Tensor, tuple[str, ...]]:
    """[prompts, tokens, width], and notes. The padding is read too, as in training."""
    from pipelines.tokenizers.bundled import T5_PAD, t5

    rows = [padded(t5(), spans, reader.tokens, T5_PAD) for spans in prompts]
    ids = torch.tensor([row.ids for row in rows], device=device)
    weights = torch.tensor([row.weights for row in rows], device=device)
    features: Tensor = part.module(input_ids=ids)[0]
    if bool((weights != 1).any()):
        features = weighted(features.float(), weights, reading.emphasis)
    return features.to(part.dtype), cut_notes(reader, (row.lost for row in rows))


def clip_pooled(part: Part, prompts: Sequence[Sequence[Span]], device: torch.device) -> Tensor:
    """[prompts, width]: what CLIP makes of the whole text, of which it reads 75 tokens. Weights mean nothing there."""
    from pipelines.tokenizers.clip import clip

    tokens = [clip().ids(text_of(spans))[:CLIP_TOKENS] for spans in prompts]
    begin, end = clip().begin, clip().end
    ids = [[begin, *row, *[end] * (CLIP_TOKENS + 1 - len(row))] for row in tokens]
    pooled: Tensor = part.module(input_ids=torch.tensor(ids, device=device)).pooler_output
    return pooled.to(part.dtype)


def qwen_states(part: Part, text: str, length: int, device: torch.device, pad: bool = False) -> States:
    """The states of all layers, each [1, tokens, width], for a text that is cut at `length` or, with `pad`, filled up
    to it. Weights have no place in what a chat model is told: they are not read."""
    from pipelines.tokenizers.bundled import QWEN_PAD, qwen

    encoding = qwen().encode(text)
    ids = encoding.ids[:length]
    lost = text[encoding.offsets[length][0] :] if len(encoding.ids) > length else ""
    count = len(ids)
    ids = [*ids, *[QWEN_PAD] * (length - count if pad else 0)]
    mask = torch.arange(len(ids), device=device)[None] < count
    module: Any = part.module
    output = module(input_ids=torch.tensor([ids], device=device), attention_mask=mask, output_hidden_states=True)
    return States(output.hidden_states, lost)


def cut_notes(reader: Reader, lost: Iterable[str]) -> tuple[str, ...]:
    """`lost`: of each prompt."""
    texts = dict.fromkeys(" ".join(text.partition("<|im_end|>")[0].split()) for text in lost)
    shown = (text if len(text) <= SHOWN else f"{text[:SHOWN]}…" for text in texts if text)
    return tuple(f"{reader.name} reads {reader.tokens} tokens of a prompt. Not read: “{text}”" for text in shown)


def unread(reader: Reader, prompts: Sequence[Sequence[Span]], reading: Reading) -> tuple[str, ...]:
    """What these prompts have in them that is not for this reader."""
    notes = [f"{each.file} is an embedding for CLIP: {reader.name} reads it as text." for each in reading.embeddings]
    if not reader.weights and any(span.weight != 1 for spans in prompts for span in spans):
        notes.append(f"Weights in a prompt mean nothing to {reader.name}: the words count as if there were none.")
    return tuple(notes)
