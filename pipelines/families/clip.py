"""Prompts for CLIP: of any length, in chunks of 75 tokens that are encoded apart and joined, as A1111 does."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from pipelines.errors import BadModel
from pipelines.loading.parts import Part
from pipelines.loading.weights import first_line
from pipelines.prompt import Span
from pipelines.tokenizers.clip import clip

OPEN_CLIP_PAD = 0
"""What open_clip fills a chunk up with, an exclamation mark; OpenAI's CLIP repeats the end token."""

Token = tuple[int, float]
"""Its number, and the weight of the span that it is from."""


class Chunks(NamedTuple):
    """Rows of `room` + 2 tokens: all chunks of the first prompt, then as many of the next."""

    ids: Tensor
    weights: Tensor
    of_each: int
    """Chunks of a prompt."""


class ClipPrompts:
    """One tokenizer, and the rules by which its tokens become rows."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: Part) -> None:
        """Raises BadModel if the tokenizer has more words than the encoder knows, or much fewer."""
        config = cast(Any, encoder.module).config
        vocabulary = int(config.vocab_size)
        if not vocabulary // 2 <= len(tokenizer) <= vocabulary:
            raise BadModel("The model's tokenizer does not fit its text encoder. Download it again.")
        self.tokenizer = tokenizer
        self._room = int(config.max_position_embeddings) - 2

    def chunks(self, prompts: Sequence[Sequence[Span]], device: torch.device, pad: int | None = None) -> Chunks:
        """`pad` follows the end token; None: the end token again."""
        begin, end = (self.tokenizer.bos_token_id, 1.0), (self.tokenizer.eos_token_id, 1.0)
        filler = end if pad is None else (pad, 1.0)
        tokens = [self._tokens(spans) for spans in prompts]
        count = max(1, *(math.ceil(len(row) / self._room) for row in tokens))
        rows: list[list[Token]] = []
        for row in tokens:
            for start in range(0, count * self._room, self._room):
                chunk = row[start : start + self._room]
                rows.append([begin, *chunk, end, *[filler] * (self._room - len(chunk))])
        ids = torch.tensor([[token for token, _ in row] for row in rows], device=device)
        return Chunks(ids, torch.tensor([[weight for _, weight in row] for row in rows], device=device), count)

    def _tokens(self, spans: Sequence[Span]) -> list[Token]:
        return [
            (token, span.weight)
            for span in spans
            for token in self.tokenizer(span.text, add_special_tokens=False, verbose=False).input_ids
        ]


def tokenizer_of(path: Path, name: str = "tokenizer") -> CLIPTokenizer:
    """A folder in diffusers' layout brings its own, a single file none. Raises BadModel if that is broken."""
    if not path.is_dir():
        return clip()
    folder = path / name
    if not folder.is_dir():
        raise BadModel(f"The model {path.name} lacks its {name}. Download it again.")
    disable_progress_bar()  # of transformers: a worker has no terminal
    try:
        found: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise BadModel(f"{path.name}/{name} is broken ({first_line(error)}). Download the model again.") from error
    return found


def weighted(features: Tensor, weights: Tensor) -> Tensor:
    """Token features times their weights, brought back to the mean that they had: A1111's emphasis 'Original'."""
    if bool((weights == 1).all()):
        return features
    scaled = features * weights[..., None]
    before, after = features.mean((1, 2), keepdim=True), scaled.mean((1, 2), keepdim=True)
    # A mean near 0 says nothing: a quotient of rounding errors. SD 1.5 has 0.1 of the spread, small models 0.001.
    telling = torch.minimum(before.abs(), after.abs()) > 0.01 * features.std((1, 2), keepdim=True)
    return scaled * torch.where(telling, before / after, 1)
