"""Hooks around attention layers: asked in order, told what they need, and gone without a trace."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines.attention import Choice
from pipelines.control.attention_hooks import Ask, Hook, Inner, attending, attends_to_itself, attends_to_text
from pipelines.families.base import Call
from pipelines.families.sd1 import SD1
from pipelines.processors import apply, attentions
from pipelines.prompt import parse
from tests.networks import numbers

X = numbers(3, 4, 8, 8)


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, torch.device("cpu"))


def predicted(model: SD1) -> Tensor:
    cond = model.encode([parse("a cat"), parse("a dog"), parse("rain")]).sided(2)
    with torch.inference_mode():
        return model.predict(X, 3.0, cond)


def through(ask: Ask, inner: Inner) -> Tensor:
    return inner(ask)


@pytest.mark.parametrize("backend", ["sdpa", "sliced"])
def test_hooks_are_told_who_is_asked_and_leave_nothing_behind(model: SD1, backend: str) -> None:
    apply(model.unet, Choice(backend))
    before = [layer.processor for _, layer in attentions(model.unet)]
    plain, seen = predicted(model), []

    def first(ask: Ask, inner: Inner) -> Tensor:
        assert ask.context is None
        seen.append(ask.name)
        return inner(ask)

    def second(ask: Ask, inner: Inner) -> Tensor:
        assert ask.context is not None
        assert ask.call.cond.away == (False, False, True)
        assert ask.call.sigma == 3.0
        return inner(ask)

    with attending(model, first, attends_to_itself), attending(model, second, attends_to_text):
        assert torch.equal(predicted(model), plain)
    assert seen == [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
        "mid_block.attentions.0.transformer_blocks.0.attn1",
        *(f"up_blocks.0.attentions.{i}.transformer_blocks.0.attn1" for i in range(2)),
    ]
    assert [layer.processor for _, layer in attentions(model.unet)] == before
    assert torch.equal(predicted(model), plain)
    apply(model.unet, Choice("sdpa"))


def test_the_last_hook_is_asked_first_and_may_ask_something_else(model: SD1) -> None:
    order = []

    def named(name: str, factor: float) -> Hook:
        def hook(ask: Ask, inner: Inner) -> Tensor:
            order.append(name)
            return inner(ask) * factor

        return hook

    with attending(model, named("one", 0.5), attends_to_text):
        half = predicted(model)
        order.clear()
        with attending(model, named("two", 2.0), attends_to_text):
            doubled = predicted(model)
            assert order[:2] == ["two", "one"]
        assert torch.equal(predicted(model), half)
    assert torch.allclose(doubled, predicted(model), atol=1e-6)
    assert not torch.allclose(half, doubled, atol=1e-4)


def test_after_an_error_everything_is_as_before(model: SD1) -> None:
    before = [layer.processor for _, layer in attentions(model.unet)]
    plain = predicted(model)

    def broken(ask: Ask, inner: Inner) -> Tensor:
        raise ValueError("no")

    around = attending(model, through, attends_to_text), attending(model, broken, attends_to_itself)
    with pytest.raises(ValueError, match="no"), around[0], around[1]:
        predicted(model)
    assert [layer.processor for _, layer in attentions(model.unet)] == before
    assert model.asides.call is None
    assert torch.equal(predicted(model), plain)


def test_hooks_may_leave_in_any_order(model: SD1) -> None:
    before = [layer.processor for _, layer in attentions(model.unet)]
    one, two = attending(model, through, attends_to_text), attending(model, through, attends_to_text)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    plain = predicted(model)
    two.__exit__(None, None, None)
    assert [layer.processor for _, layer in attentions(model.unet)] == before
    assert torch.equal(predicted(model), plain)


def test_a_network_that_is_called_by_itself_is_not_hooked(model: SD1) -> None:
    def broken(ask: Ask, inner: Inner) -> Tensor:
        raise ValueError("no")

    with torch.inference_mode(), attending(model, broken, attends_to_text):
        model.unet(X, torch.tensor([1]), numbers(3, 5, 32))


def test_an_aside_may_add_rows_that_are_thrown_away(model: SD1) -> None:
    plain, calls = predicted(model), []

    def guest(call: Call) -> Call:
        assert model.asides.call is None
        calls.append(call)
        cond = call.cond.take([0, 1, 2, 0])
        told = {**call.told, **model.told(torch.cat([X, X[:1]]), cond)}
        return Call(torch.cat([call.x, X[:1]]), call.step[[0, 1, 2, 0]], call.sigma, cond, told, guests=1)

    with model.asides.joined(guest):
        found = predicted(model)
    assert found.shape == plain.shape
    assert torch.allclose(found, plain, atol=1e-5)
    assert len(calls) == 1
    assert torch.equal(predicted(model), plain)
