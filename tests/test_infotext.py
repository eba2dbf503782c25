"""The text in a picture: what we write A1111's tools read, and what they wrote we read."""

from pathlib import Path

import pytest

from pipelines import infotext
from pipelines.errors import PipelineError
from pipelines.request import GenerationRequest
from pipelines.types import ModelInfo

MODEL = ModelInfo(name="tiny", family="sd1", path=Path(), size_bytes=1, width=64, height=64, sha256="ab" * 32)
REQUEST = GenerationRequest(prompt="a cat", model="tiny", width=64, height=72, seed=7, steps=9, cfg_scale=6.5)


def test_the_order_and_the_words_are_those_of_a1111() -> None:
    text = infotext.dump(REQUEST.model_copy(update={"negative_prompt": "dog"}), 2, MODEL, "1.0")
    assert text == (
        "a cat\nNegative prompt: dog\nSteps: 9, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 6.5, Seed: 9,"
        " Size: 64x72, Model hash: ababababab, Model: tiny, Version: Inkstone 1.0"
    )


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"prompt": "a, b: c", "negative_prompt": "one\ntwo"},
        {"prompt": ""},
        {"prompt": "line one\nline two"},
        {"model": 'x, "y": z'},
        {"prompt": "猫，水墨画", "model": "模型"},
    ],
)
def test_round_trip(update: dict[str, str]) -> None:
    request = REQUEST.model_copy(update=update)
    model = MODEL.model_copy(update={"name": request.model})
    assert infotext.load(infotext.dump(request, 0, model, "1.0")) == request


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "found"),
    [
        ("a cat\nSteps: 20, Sampler: Euler", "a cat\nSteps: 20, Sampler: Euler", "", {}),  # two pairs are prompt text
        (
            "a\nNegative prompt: b\nc\nSteps: 1, Seed: 2, Size: 8x8",
            "a",
            "b\nc",
            {"Steps": "1", "Seed": "2", "Size": "8x8"},
        ),
        (
            'a\nSteps: 1, Seed: 2, Lora hashes: "x: 1, y: 2"',
            "a",
            "",
            {"Steps": "1", "Seed": "2", "Lora hashes": "x: 1, y: 2"},
        ),
        ("a\r\nSteps: 1, Seed: 2, Size: 8x8\r\n", "a", "", {"Steps": "1", "Seed": "2", "Size": "8x8"}),
        ("", "", "", {}),
    ],
)
def test_pairs(text: str, prompt: str, negative: str, found: dict[str, str]) -> None:
    assert infotext.pairs(text) == (prompt, negative, found)


def test_values_that_do_not_fit_are_named() -> None:
    with pytest.raises(PipelineError, match="do not fit"):
        infotext.load("a\nSteps: many, Seed: 2, Size: 8x8")
