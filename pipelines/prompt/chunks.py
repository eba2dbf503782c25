"""How a prompt becomes chunks of tokens for CLIP: as A1111 cuts it, and the counter counts it. Without torch.

A chunk takes 75 tokens. If the next one does not fit, what stands behind the last comma moves on with it, unless that
comma is too far back. BREAK ends a chunk wherever it is. The vectors of an embedding stay together.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pipelines.prompt.attention import Span

BACKTRACK = 20
"""So many tokens from the end, at most, the comma may be behind which a chunk is cut: A1111's default."""

Ids = Callable[[str], Sequence[int]]
"""The tokens of a text, without begin and end."""


class Word(NamedTuple):
    """A sequence of tokens that stands for an embedding."""

    ids: tuple[int, ...]
    name: str
    vectors: int
    """0: it does not fit the model, and stays a word."""


class Token(NamedTuple):
    id: int
    weight: float
    vector: tuple[str, int] | None = None
    """Instead of the token: this embedding, its vector number so and so."""


Lexicon = Mapping[int, Sequence[Word]]
"""By their first token, the longest words first."""


class Cut(NamedTuple):
    chunks: list[list[Token]]
    """At least one."""
    words: tuple[Word, ...]
    """All embeddings that were named, each once, those too that do not fit."""


def lexicon(embeddings: Iterable[tuple[str, int]], ids: Ids) -> Lexicon:
    """Of names and numbers of vectors."""
    found: dict[int, list[Word]] = {}
    for name, vectors in embeddings:
        if tokens := tuple(ids(name)):
            found.setdefault(tokens[0], []).append(Word(tokens, name, vectors))
    return {first: sorted(words, key=lambda word: -len(word.ids)) for first, words in found.items()}


def chunked(spans: Iterable[Span], ids: Ids, comma: int | None, room: int, known: Lexicon) -> Cut:
    """`comma`: its token; `room`: tokens of a chunk."""
    cutter = _Cutter(room)
    words: dict[Word, None] = {}
    for span in spans:
        if span.breaks:
            cutter.flush()
            continue
        for tokens, word in _read(ids(span.text), span.weight, known):
            if word:
                words[word] = None
            cutter.add(tokens, is_comma=tokens[0].id == comma and tokens[0].vector is None)
    return Cut(cutter.done(), tuple(words))


def _read(tokens: Sequence[int], weight: float, known: Lexicon) -> Iterator[tuple[list[Token], Word | None]]:
    """What must stay together, piece by piece, and the embedding that it is."""
    place = 0
    while place < len(tokens):
        word = next(
            (w for w in known.get(tokens[place], ()) if tuple(tokens[place : place + len(w.ids)]) == w.ids), None
        )
        if word and word.vectors:
            yield [Token(0, weight, (word.name, number)) for number in range(word.vectors)], word
            place += len(word.ids)
        else:
            yield [Token(tokens[place], weight)], word
            place += 1


class _Cutter:
    def __init__(self, room: int) -> None:
        self._room = room
        self._chunks: list[list[Token]] = []
        self._open: list[Token] = []
        self._comma: int | None = None
        """How many tokens there are up to the last comma of the open chunk."""

    def add(self, tokens: list[Token], is_comma: bool) -> None:
        if len(self._open) + len(tokens) > self._room:
            self._turn_over(is_comma)
        for start in range(0, len(tokens), self._room):  # only an embedding of very many vectors is cut itself
            if len(self._open) + min(len(tokens), self._room) > self._room:
                self.flush()
            self._open += tokens[start : start + self._room]
        if is_comma:
            self._comma = len(self._open)

    def flush(self) -> None:
        self._chunks.append(self._open)
        self._open, self._comma = [], None

    def done(self) -> list[list[Token]]:
        if self._open or not self._chunks:
            self.flush()
        return self._chunks

    def _turn_over(self, is_comma: bool) -> None:
        """The chunk is full. It is cut behind its last comma, unless a comma follows: that would be alone."""
        full = len(self._open) == self._room
        near = self._comma is not None and len(self._open) - self._comma < BACKTRACK
        tail: list[Token] = []
        if full and near and not is_comma and self._comma is not None:
            self._open, tail = self._open[: self._comma], self._open[self._comma :]
        self.flush()
        self._open = tail
