"""The tokenizers that are part of the program give the numbers that the models were trained with."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipelines.errors import BadModel
from pipelines.tokenizers import bundled
from pipelines.tokenizers.clip import BEGIN, END, clip, letters, tokenizer_of
from pipelines.tokenizers.clip import bundled as bundled_clip


@pytest.fixture(scope="module")
def t5() -> Tokenizer:
    return bundled.t5()


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return bundled.qwen()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [3, 9, 1202, 13, 3, 9, 1712, 1]),
        ("Hello world", [8774, 296, 1]),
        ("translate English to German: The house is wonderful.", [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1]),
        ("", [1]),
    ],
)
def test_t5_knows_its_numbers(t5: Tokenizer, text: str, ids: list[int]) -> None:
    assert t5.encode(text).ids == ids


def test_t5_has_every_piece(t5: Tokenizer) -> None:
    assert t5.get_vocab_size() == 32_100
    assert t5.token_to_id("<pad>") == bundled.T5_PAD
    assert t5.token_to_id("</s>") == 1


def test_t5_folds_letters_that_look_the_same(t5: Tokenizer) -> None:
    assert t5.encode("ﬁne  café").ids == t5.encode("fine café").ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello", [9707]),
        ("Hello world", [9707, 1879]),
        ("<|im_start|>user\n", [151_644, 872, 198]),
        ("<|im_end|>\n<|im_start|>assistant\n", [151_645, 198, 151_644, 77_091, 198]),
        ("<think>\n\n</think>\n\n", [151_667, 271, 151_668, 271]),
    ],
)
def test_qwen_knows_its_numbers(qwen: Tokenizer, text: str, ids: list[int]) -> None:
    assert qwen.encode(text).ids == ids


def test_qwen_has_every_token(qwen: Tokenizer) -> None:
    assert qwen.get_vocab_size() == 151_669
    assert qwen.token_to_id("<|endoftext|>") == bundled.QWEN_PAD


@pytest.mark.parametrize("text", ["一只猫在雨中", "naïve café, 12:30!", "a\n\n  b\t c", "🐱 and 🐶", "don't WE'LL"])
def test_qwen_gives_the_text_back(qwen: Tokenizer, text: str) -> None:
    assert qwen.decode(qwen.encode(text).ids) == text


def test_qwen_is_the_one_of_transformers(qwen: Tokenizer) -> None:
    """Built from the same vocabulary by their class, it cuts everything the same way."""
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    merges = [tuple(pair) for pair in _merges()]
    tokens = [*letters(), *("".join(pair) for pair in merges)]
    theirs = Qwen2Tokenizer({token: i for i, token in enumerate(tokens)} | {"<|endoftext|>": len(tokens)}, merges)
    for text in ("It's 12,345 o'clock: ÀÉ ﬁ", " two  spaces\n\n\nand lines ", "数字 123 と 文字", "x" * 50):
        assert qwen.encode(text).ids == theirs(text).input_ids


def _merges() -> list[list[str]]:
    return [line.split(" ") for line in bundled._read("qwen_merges.txt.xz").split("\n")]


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    return CLIPTokenizer(dict(bundled_clip()[0]), list(bundled_clip()[1]), model_max_length=77)


@given(
    st.text() | st.sampled_from(["It's a  cat,dog!\n2024", "<|endoftext|> x", "İstanbul Å é", "🐱日本", "don't we'll"])
)
def test_clip_is_the_one_of_transformers(theirs: Any, text: str) -> None:
    assert clip().ids(text) == theirs(text, add_special_tokens=False, verbose=False).input_ids


def test_a_folder_brings_its_own_clip(theirs: Any, tmp_path: Path) -> None:
    """As transformers 5 writes it, and as older ones did."""
    theirs.save_pretrained(tmp_path / "new" / "tokenizer")
    assert tokenizer_of(tmp_path / "new") is clip(), "it is the same one"
    vocabulary = {token: number for number, token in enumerate(["a", "a</w>", "b</w>", "ab</w>", BEGIN, END])}
    old = tmp_path / "old" / "tokenizer"
    old.mkdir(parents=True)
    (old / "vocab.json").write_text(json.dumps(vocabulary))
    (old / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (old / "added_tokens.json").write_text(json.dumps({"<cat>": 6}))
    own = tokenizer_of(tmp_path / "old")
    assert (own.ids("ab a <cat> b"), own.begin, own.end, own.comma, len(own)) == ([3, 1, 6, 2], 4, 5, None, 7)


@pytest.mark.parametrize("broken", ["merges", "vocabulary", "nothing", "no begin"])
def test_a_broken_tokenizer_is_named(broken: str, tmp_path: Path) -> None:
    folder = tmp_path / "model" / "tokenizer"
    folder.mkdir(parents=True)
    if broken != "nothing":
        words = {"a": 0, "b</w>": 1} if broken == "no begin" else {"a": 0, BEGIN: 1, END: 2}
        (folder / "vocab.json").write_text("[1]" if broken == "vocabulary" else json.dumps(words))
        (folder / "merges.txt").write_text("a b\n" if broken == "merges" else "")
    with pytest.raises(BadModel, match="model/tokenizer is broken"):
        tokenizer_of(tmp_path / "model")
