"""How a prompt is cut for CLIP, and where embeddings stand in it. Without torch."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.library.embeddings import fitting, tensors_of, word_of
from pipelines.prompt import parse
from pipelines.prompt.chunks import Token, chunked, lexicon
from pipelines.prompt.embeddings import embeddings_named_in
from pipelines.tokenizers.clip import clip

ROOM = 75


def cut(text: str, *embeddings: tuple[str, int]) -> list[list[Token]]:
    words = clip()
    return chunked(parse(text), words.ids, words.comma, ROOM, lexicon(embeddings, words.ids)).chunks


def sizes(text: str, *embeddings: tuple[str, int]) -> list[int]:
    return [len(chunk) for chunk in cut(text, *embeddings)]


def cats(count: int) -> str:
    return "cat " * count


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("", [0]),
        (cats(75), [75]),
        (cats(76), [75, 1]),
        (f"{cats(70)}, {cats(10)}", [71, 10]),
        ("a BREAK b", [1, 1]),
        ("BREAK BREAK a", [0, 0, 1]),
        ("a BREAK", [1]),
        (f"{cats(75)} BREAK a", [75, 1]),
        ("(a BREAK b:1.5)", [1, 1]),
        # the comma is the 20th token from the end, then the 21st
        (f"{cats(55)}, {cats(20)}", [56, 20]),
        (f"{cats(54)}, {cats(21)}", [75, 1]),
        # a comma that closes a full chunk stays, one that opens the next stays alone there
        (f"{cats(74)}, {cats(3)}", [75, 3]),
        (f"{cats(70)}, {cats(4)}, cat", [75, 2]),
        (f"{cats(60)}, {cats(5)}, {cats(20)}", [67, 20]),
        # a chunk that was cut at a comma is not cut there again
        (f"{cats(70)}, {cats(79)}", [71, 75, 4]),
    ],
)
def test_chunks(text: str, lengths: list[int]) -> None:
    assert sizes(text) == lengths


def test_weights_go_with_their_words() -> None:
    chunks = cut("a (red:1.5) cat BREAK [dog]")
    assert [[token.weight for token in chunk] for chunk in chunks] == [[1, 1.5, 1], [1 / 1.1]]


def vectors(chunks: Sequence[Sequence[Token]]) -> list[list[tuple[str, int] | int]]:
    return [[token.vector or token.id for token in chunk] for chunk in chunks]


def test_an_embedding_stands_for_its_name() -> None:
    chunks = cut("a Easy-Negative, cat", ("easy-negative", 2))
    assert vectors(chunks) == [[320, ("easy-negative", 0), ("easy-negative", 1), 267, 2368]]
    assert vectors(cut("(my cat:1.2)", ("my cat", 1), ("my", 1))) == [[("my cat", 0)]], "the longest counts"
    assert vectors(cut("my (cat)", ("my cat", 1))) == [[607, 2368]], "but not over a change of weight"
    assert vectors(cut("a cat", ("cat", 0))) == [[320, 2368]], "what does not fit the model is a word"


@pytest.mark.parametrize(
    ("text", "count", "lengths"),
    [
        (f"{cats(70)} emb", 5, [75]),
        (f"{cats(71)} emb", 5, [71, 5]),
        (f"{cats(60)}, {cats(10)} emb", 5, [71, 5]),
        (f"{cats(60)}, {cats(14)} emb", 5, [61, 19]),
        (f"{cats(60)}, emb {cats(10)}", 10, [61, 20]),
        ("a emb b", 160, [1, 75, 75, 11]),
    ],
)
def test_embeddings_stay_whole(text: str, count: int, lengths: list[int]) -> None:
    assert sizes(text, ("emb", count)) == lengths


@given(st.text("ab, ()BREAK:1\n") | st.text(), st.integers(0, 80))
def test_no_token_is_lost(text: str, count: int) -> None:
    words = clip()
    chunks = cut(text, ("a", count))
    assert all(len(chunk) <= ROOM for chunk in chunks)
    plain = [token for span in parse(text) if not span.breaks for token in words.ids(span.text)]
    found = [token for chunk in chunks for token in chunk]
    kept = [token.id for token in found if token.vector is None]
    assert kept == [token for token in plain if token != words.ids("a")[0] or not count]
    assert [token.vector[1] for token in found if token.vector] == [*range(count)] * (len(plain) - len(kept))


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a cat, easynegative", ["x/EasyNegative.pt"]),
        ("a cat, (EASYNEGATIVE:1.2)", ["x/EasyNegative.pt"]),
        ("[cat:easynegative:0.9]", ["x/EasyNegative.pt"]),
        ("[cat:[dog:easynegative:1.5]:3]", ["x/EasyNegative.pt"]),
        ("a style (1)", []),
        (r"a style \(1\)", ["style (1).safetensors"]),
        ("easynegatives # easynegative", []),
        ("uneasynegative", []),
        ("emb", ["emb.bin"]),
        ("", []),
    ],
)
def test_embeddings_named_in_a_prompt(prompt: str, named: list[str]) -> None:
    names = ["x/EasyNegative.pt", "y/EasyNegative.safetensors", "style (1).safetensors", "emb.bin"]
    assert list(embeddings_named_in(["a dog", prompt], names)) == named


def test_headers_of_embeddings() -> None:
    assert tensors_of({"string_to_param.*": (3, 768), "string_to_token.*": ()}) == {768: "string_to_param.*"}
    assert tensors_of({"clip_g": (2, 1280), "clip_l": (2, 768)}) == {768: "clip_l", 1280: "clip_g"}
    assert tensors_of({"<cat>": (768,)}) == {768: "<cat>"}
    assert tensors_of({"emb_params": (4, 1024)}) == {1024: "emb_params"}
    assert tensors_of({"a": (2, 2), "b": (2, 2)}) == {}
    assert fitting({768: 3}, (768,)) == 3
    assert fitting({768: 3}, (768, 1280)) == 0
    assert fitting({768: 2, 1280: 3}, (768, 1280)) == 0
    assert word_of("a/b.c.pt") == "b.c"
