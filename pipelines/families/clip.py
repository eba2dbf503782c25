"""Prompts for CLIP: of any length, in chunks of 75 tokens that are encoded apart and joined, as A1111 does."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pipelines.errors import BadModel
from pipelines.families.base import Reading
from pipelines.families.embeddings import spoken
from pipelines.loading.parts import Part
from pipelines.prompt import Span
from pipelines.prompt.chunks import Cut, Token, Word, chunked, lexicon
from pipelines.request import Emphasis
from pipelines.tokenizers.clip import Clip

OPEN_CLIP_PAD = 0
"""What open_clip fills a chunk up with, an exclamation mark; OpenAI's CLIP repeats the end token."""

AT_ONCE = 64
"""So many chunks are encoded as one batch: a prompt that changes at every step may have hundreds."""


class Layer(NamedTuple):
    """Whose output a family takes, counted from the last layer as clip skip does, from 1."""

    normed: bool = True
    """The final norm comes after it."""
    least: int = 1
    """The family never takes a later one."""
    left_out: int = 0
    """So many of the last layers are not even loaded."""

    def at(self, clip_skip: int, layers: int) -> int:
        """Of an encoder with this number of layers in memory."""
        return min(max(clip_skip, self.least, 1) - self.left_out, layers)


class Chunks(NamedTuple):
    """All chunks of the first prompt, then as many of the next."""

    rows: list[list[Token]]
    of_each: int
    reading: Reading
    notes: tuple[str, ...]


class ClipPrompts:
    """One tokenizer, and the encoders that read what it makes."""

    def __init__(self, tokenizer: Clip, device: torch.device, *encoders: Part) -> None:
        """Raises BadModel if the tokenizer has more words than the encoder knows, or much fewer."""
        configs = [cast(Any, encoder.module).config for encoder in encoders]
        vocabulary = int(configs[0].vocab_size)
        if not vocabulary // 2 <= len(tokenizer) <= vocabulary:
            raise BadModel("The model's tokenizer does not fit its text encoder. Download it again.")
        self.tokenizer, self._device = tokenizer, device
        self._widths = [int(config.hidden_size) for config in configs]
        self._room = int(configs[0].max_position_embeddings) - 2

    def chunks(self, prompts: Sequence[Sequence[Span]], reading: Reading) -> Chunks:
        cuts = [self._cut(spans, reading) for spans in prompts]
        most = max(len(cut.chunks) for cut in cuts)
        rows = [chunk for cut in cuts for chunk in [*cut.chunks, *[[]] * (most - len(cut.chunks))]]
        strange = dict.fromkeys(word for cut in cuts for word in cut.words if not word.vectors)
        return Chunks(rows, most, reading, tuple(_misfit(word, reading) for word in strange))

    def count(self, spans: Sequence[Span], reading: Reading) -> int:
        """How many chunks a prompt takes."""
        return len(self._cut(spans, reading).chunks)

    def read(self, part: Part, layer: Layer, chunks: Chunks, pad: int | None = None) -> tuple[Tensor, Tensor]:
        """Weighted features [chunks, tokens, width] in fp32, and the first output of the encoder, which is the whole
        prompt [chunks, width] if it projects. `pad` follows the end token; None: the end token again."""
        ids, weights = self._tensors(chunks.rows, pad)
        features, firsts = [], []
        for start in range(0, len(ids), AT_ONCE):
            these = slice(start, start + AT_ONCE)
            with spoken(part.module, chunks.rows[these], chunks.reading.embeddings):
                found, first = _layer(part.module, ids[these], layer, chunks.reading.clip_skip)
            features.append(found)
            firsts.append(first)
        return weighted(torch.cat(features).float(), weights, chunks.reading.emphasis), torch.cat(firsts)

    def _cut(self, spans: Sequence[Span], reading: Reading) -> Cut:
        words = [(each.word, each.tokens(self._widths)) for each in reading.embeddings]
        ids = self.tokenizer.ids
        return chunked(spans, ids, self.tokenizer.comma, self._room, lexicon(words, ids))

    def _tensors(self, rows: Sequence[Sequence[Token]], pad: int | None) -> tuple[Tensor, Tensor]:
        begin, end = self.tokenizer.begin, self.tokenizer.end
        filler = end if pad is None else pad
        ids = [[begin, *(token.id for token in row), end, *[filler] * (self._room - len(row))] for row in rows]
        weights = [[1.0, *(token.weight for token in row), *[1.0] * (self._room + 1 - len(row))] for row in rows]
        return torch.tensor(ids, device=self._device), torch.tensor(weights, device=self._device)


def _layer(encoder: Any, ids: Tensor, layer: Layer, clip_skip: int) -> tuple[Tensor, Tensor]:
    back = layer.at(clip_skip, int(encoder.config.num_hidden_layers))
    if back == 1 and layer.normed:
        output = encoder(ids)
        return output.last_hidden_state, output[0]
    output = encoder(ids, output_hidden_states=True)
    features = output.hidden_states[-back]
    if layer.normed:
        features = getattr(encoder, "text_model", encoder).final_layer_norm(features)
    return features, output[0]


def _misfit(word: Word, reading: Reading) -> str:
    embedding = next(each for each in reading.embeddings if each.word == word.name)
    widths = " and ".join(map(str, embedding.vectors))
    return f"{embedding.file} is an embedding for another model (its vectors have {widths} numbers): it is text here."


def weighted(features: Tensor, weights: Tensor, emphasis: Emphasis = "Original") -> Tensor:
    """Token features times their weights; with A1111's "Original" brought back to the mean that they had."""
    if bool((weights == 1).all()):
        return features
    scaled = features * weights[..., None]
    if emphasis == "No norm":
        return scaled
    before, after = features.mean((1, 2), keepdim=True), scaled.mean((1, 2), keepdim=True)
    # A mean near 0 says nothing: a quotient of rounding errors. SD 1.5 has 0.1 of the spread, small models 0.001.
    telling = torch.minimum(before.abs(), after.abs()) > 0.01 * features.std((1, 2), keepdim=True)
    return scaled * torch.where(telling, before / after, 1)
