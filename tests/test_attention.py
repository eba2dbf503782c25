"""The attention that was chosen is the one that runs, and computes the same."""

import logging
import sys
from typing import Any

import pytest
import torch
from torch import nn

from pipelines import attention
from pipelines.attention import BACKENDS, HEAD_DIMS, Choice, availability, choose, why_not
from pipelines.errors import UnknownChoice
from pipelines.processors import Processor, apply, used_by
from tests.networks import NETWORKS, numbers, part, run

CPU = torch.device("cpu")


def same(query: Any, key: Any, value: Any, mask: Any) -> bool:
    return torch.allclose(
        attention.sliced(query, key, value, mask), attention.sdpa(query, key, value, mask), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("chunk", [1, 10_000, 2**28])
def test_slices_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch, dim: int, chunk: int) -> None:
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk)
    query, context = numbers(2, 3, 50, dim), numbers(2, 3, 7, dim)
    assert same(query, query, query, None)
    assert same(query, context, context, None)
    assert same(query, context, context, numbers(2, 1, 1, 7))
    assert same(query, context, context, numbers(2, 3, 50, 7))


def test_slices_hold_no_more_scores_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK_BYTES", 2 * 50 * 4 * 10)  # ten queries
    sizes: list[int] = []
    real = torch.Tensor.softmax

    def watched(scores: torch.Tensor, dim: int) -> torch.Tensor:
        sizes.append(scores.numel())
        return real(scores, dim)

    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    query = numbers(1, 2, 50, 8)
    attention.sliced(query, query, query, None)
    assert sizes == [2 * 10 * 50] * 5


@pytest.mark.parametrize("kind", ["unet", "vae"])
@pytest.mark.parametrize("name", ["sdpa", "sliced"])
def test_our_processor_computes_as_diffusers_does(kind: str, name: str) -> None:
    found = part(kind)
    expected = run(found, kind)
    layers = [layer for layer in found.module.modules() if hasattr(layer, "set_processor")]
    assert layers
    for layer in layers:
        layer.set_processor(Processor(name))  # type: ignore[operator]
    assert used_by(found.module) == name
    assert torch.allclose(run(found, kind), expected, atol=1e-5)


def test_a_mask_reaches_the_backend() -> None:
    found = part("unet")
    module: Any = found.module
    given = (numbers(1, 4, 8, 8), torch.tensor([7]), numbers(1, 5, 32))
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    with torch.inference_mode():
        expected = module(*given, encoder_attention_mask=mask)[0]
        apply(module, Choice("sliced"))
        assert torch.allclose(module(*given, encoder_attention_mask=mask)[0], expected, atol=1e-5)
        assert not torch.allclose(module(*given)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_backend_is_seen_in_the_processors_and_can_be_changed_back(kind: str) -> None:
    found = part(kind)
    expected = run(found, kind)
    before = used_by(found.module)
    apply(found.module, Choice("sliced"))
    after = used_by(found.module)
    assert after == ("sliced" if kind in ("unet", "vae", "sd3") else before)
    apply(found.module, Choice("sdpa"))
    assert used_by(found.module) == before
    assert torch.equal(run(found, kind), expected)


def test_diffusers_own_switch_does_nothing_on_unets() -> None:
    """Why there is a processor of ours. Should this fail one day, ours may go."""
    module: Any = part("unet").module
    module.set_attention_backend("native")
    assert not any(getattr(p, "_attention_backend", None) for p in module.attn_processors.values())


def test_transformers_are_told_by_name() -> None:
    module: nn.Module = part("flux").module
    apply(module, Choice("sdpa"))
    assert used_by(module) == "sdpa"
    asked = [layer.processor for layer in module.modules() if hasattr(layer, "processor")]
    for processor in asked:
        processor._attention_backend = "xformers"  # type: ignore[union-attr]
    assert used_by(module) == "xformers"
    apply(module, Choice("sdpa"))
    assert used_by(module) == "sdpa"


def test_a_network_that_does_not_obey_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = part("unet").module
    monkeypatch.setattr("diffusers.models.attention_processor.Attention.set_processor", lambda *args: None)
    with pytest.raises(RuntimeError, match="does not use sliced attention"):
        apply(module, Choice("sliced"))


def test_choices(caplog: pytest.LogCaptureFixture) -> None:
    assert choose("auto", CPU) == choose("sdpa", CPU) == Choice("sdpa")
    assert choose("sliced", CPU) == Choice("sliced")
    with caplog.at_level(logging.WARNING):
        found = choose("xformers", CPU)
    assert found.name == "sdpa"
    assert found.reason == (
        "xformers attention cannot be used (needs an NVIDIA card, and this runs on CPU). SDPA is used instead."
    )
    assert found.reason in caplog.text
    assert "xformers" not in sys.modules  # it prints six lines when it is imported
    with pytest.raises(UnknownChoice, match=r"Choose one of: auto, sdpa, xformers, flash, sage, sliced\."):
        choose("fast", CPU)


def test_a_backend_that_fails_a_real_call_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.13 with xformers 0.0.35 on an RTX 5070 Ti: it loads, and has no operator for the card."""

    def broken(*args: Any) -> torch.Tensor:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nmore lines")

    def wrong(query: torch.Tensor, *args: Any) -> torch.Tensor:
        return query * 0

    for attend, reason in ((broken, "No operator found"), (wrong, "its result is wrong")):
        why_not.cache_clear()
        monkeypatch.setitem(BACKENDS, "sliced", attention.Backend(attend, "sliced"))
        found = choose("sliced", CPU)
        assert found.name == "sdpa"
        assert "a call with heads of 40 failed" in found.reason
        assert reason in found.reason
        assert "\n" not in found.reason
    why_not.cache_clear()


def test_every_backend_says_whether_it_is_there() -> None:
    there = availability(CPU)
    assert list(there) == list(BACKENDS)
    assert (there["sdpa"], there["sliced"]) == ("", "")
    assert "NVIDIA" in there["flash"]
    assert "not installed" in availability(torch.device("cuda:0"))["sage"]
