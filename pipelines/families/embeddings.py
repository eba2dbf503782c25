"""Textual inversions at work: vectors stand where the prompt names them. Nothing of an encoder is changed."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from pipelines.errors import BadModel
from pipelines.library.embeddings import count, fitting, tensors_of, word_of
from pipelines.loading.weights import open_weights
from pipelines.prompt.chunks import Token
from pipelines.types import ModelInfo


@dataclass(frozen=True)
class Embedding:
    """Two are the same if they come from the same content."""

    word: str
    key: str
    file: str = field(compare=False)
    vectors: Mapping[int, Tensor] = field(compare=False)
    """Width -> [vectors, width]."""

    def tokens(self, widths: Sequence[int]) -> int:
        """How many it takes for text encoders of these widths; 0: it does not fit them."""
        return fitting({width: count(tuple(tensor.shape)) for width, tensor in self.vectors.items()}, widths)


def load_embedding(info: ModelInfo) -> Embedding:
    """Raises BadModel and ModelNotFound."""
    tensors = open_weights(info.path)
    names = tensors_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if not names:
        raise BadModel(f"{info.name} holds no embedding that is known. Get it again, as .safetensors.")
    vectors = {width: tensors[name].detach().float().reshape(-1, width).clone() for width, name in names.items()}
    digest = xxhash.xxh3_128()
    for width, rows in sorted(vectors.items()):
        digest.update(f"{width} ".encode())
        digest.update(rows.numpy().data)
    return Embedding(word_of(info.name), digest.hexdigest(), info.name, vectors)


@contextmanager
def spoken(encoder: nn.Module, rows: Sequence[Sequence[Token]], known: Sequence[Embedding]) -> Generator[None]:
    """While the encoder reads these rows, vectors stand in the places that are theirs. `rows` begin behind the token
    that begins each."""
    vectors = {embedding.word: embedding.vectors for embedding in known}
    places = [(row, at + 1, t.vector) for row, tokens in enumerate(rows) for at, t in enumerate(tokens) if t.vector]
    if not places:
        yield
        return
    row_numbers, columns = [row for row, _, _ in places], [column for _, column, _ in places]

    def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        told = torch.stack([vectors[word][output.shape[-1]][number] for _, _, (word, number) in places])
        changed = output.clone()
        changed[row_numbers, columns] = told.to(changed)
        return changed

    words: Any = encoder
    handle = words.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
