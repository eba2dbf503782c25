"""The tokenizers that are part of the program give the numbers that the models were trained with."""

import pytest
from tokenizers import Tokenizer

from pipelines.tokenizers import bundled
from pipelines.tokenizers.clip import letters


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
