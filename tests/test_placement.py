"""Weights come and go: the same pictures, no byte too many, and nothing left behind."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from pipelines.loading.parts import Part
from pipelines.memory import leaves
from pipelines.memory.leaves import choose_resident, leaves_of, size_of
from pipelines.memory.placement import Residency, apply
from pipelines.memory.planner import Level, Plan, Storage
from tests.networks import NETWORKS, part, run

CPU = torch.device("cpu")
STREAM = Plan(level=Level.STREAM)
EVERYTHING = tuple(dict.fromkeys(name for name, _, _ in NETWORKS.values()))


@pytest.fixture(autouse=True)
def everything_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks here are tiny."""
    monkeypatch.setattr(leaves, "SMALL_BYTES", 256)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


@contextmanager
def in_force(plan: Plan, *parts: Part, **deltas: leaves.Delta) -> Iterator[Residency]:
    """The plan applied; afterwards every parameter is the one that it was, and no hook is left."""
    before = [[(name, id(p), p.data_ptr()) for name, p in found.module.named_parameters()] for found in parts]
    buffers = [[id(b) for b in found.module.buffers()] for found in parts]
    kept = [[p.clone() for p in found.module.parameters()] for found in parts]
    residency = apply({found.name: found for found in parts}, plan, CPU, deltas)
    try:
        yield residency
    finally:
        residency.undo()
    assert before == [[(name, id(p), p.data_ptr()) for name, p in found.module.named_parameters()] for found in parts]
    assert buffers == [[id(b) for b in found.module.buffers()] for found in parts]
    for found, weights in zip(parts, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found.module.parameters(), weights, strict=True))
        assert hooks(found.module) == 0
        assert not any("unpacked" in module.__dict__ for module in found.module.modules())
    assert residency.resident_bytes == 0


@pytest.mark.parametrize("kind", NETWORKS)
def test_streamed_networks_compute_the_same(kind: str) -> None:
    found = part(kind)
    expected = run(found, kind)
    with in_force(Plan(level=Level.STREAM, streamed=(found.name,)), found) as residency:
        assert hooks(found.module) > 5
        for _ in range(3):
            assert torch.equal(run(found, kind), expected)
        assert residency.bytes_moved > found.size_bytes
    assert torch.equal(run(found, kind), expected)


@pytest.mark.parametrize("kind", NETWORKS)
def test_offloaded_networks_compute_the_same(kind: str) -> None:
    found = part(kind)
    expected = run(found, kind)
    with in_force(Plan(level=Level.OFFLOAD), found) as residency:
        assert list(residency.present) == []
        assert torch.equal(run(found, kind), expected)
        assert list(residency.present) == [found.name]
        assert torch.equal(run(found, kind), expected)
        assert residency.bytes_moved == residency.resident_bytes  # it came once, and whole


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_at_home_may_be_of_another_format(kind: str, level: Level) -> None:
    """Half precision in RAM, full precision in the computation: as if the file had been converted."""
    found, converted = part(kind, torch.float16), part(kind)
    for weight, half in zip(converted.module.parameters(), found.module.parameters(), strict=True):
        weight.copy_(half)
    for name, buffer in found.module.named_buffers():
        converted.module.get_buffer(name).copy_(buffer)
    expected = run(converted, kind)
    plan = Plan(level=level, streamed=(found.name,) if level == Level.STREAM else (), host=level == Level.FULL)
    with in_force(plan, found):
        assert torch.allclose(run(found, kind), expected, atol=1e-5)


def test_where_weights_are_at_home_nothing_is_done() -> None:
    found = part("unet")
    with in_force(Plan(host=True), found) as residency:
        assert hooks(found.module) == 0
        assert torch.equal(run(found, "unet"), run(part("unet"), "unet"))
        assert (residency.bytes_moved, residency.resident_bytes) == (0, 0)


PACKED: dict[Storage, float] = {"fp8": 0.08, "nf4": 0.2}
"""How far what a network says may be off, of weights that are drawn."""


@pytest.mark.parametrize("kind", ["unet", "flux", "sd3", "z_image"])
@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("storage", PACKED)
def test_weights_in_fewer_bits_give_nearly_the_same(kind: str, level: Level, storage: Storage) -> None:
    found = part(kind)
    expected = run(found, kind)
    with in_force(Plan(level=level, storage=storage), found) as residency:
        close = run(found, kind)
        assert not torch.equal(close, expected)
        error = (close - expected).norm() / expected.norm()
        assert error < PACKED[storage]
        assert torch.equal(run(found, kind), close)
        if level > Level.STREAM:
            size = size_of(found)
            assert residency.resident_bytes < 1.1 * size.stored(storage) + 2000
            if storage == "fp8":  # 4 bits take rows of whole blocks, which few of these small ones have
                assert size.fp8_bytes < 0.55 * size.size_bytes  # of 32 bits
    assert torch.equal(run(found, kind), expected)


def test_offload_never_has_two_networks_on_the_device() -> None:
    text, unet, vae = part("clip"), part("unet"), part("vae")
    seen: list[tuple[str, ...]] = []
    with in_force(Plan(level=Level.OFFLOAD), text, unet, vae) as residency:
        for found, kind in ((text, "clip"), (unet, "unet"), (unet, "unet"), (vae, "vae"), (unet, "unet")):
            run(found, kind)
            seen.append(residency.present)
            assert residency.resident_bytes <= size_of(found).size_bytes + 10_000  # buffers: tables of positions
        assert seen == [("text_encoder",), ("unet",), ("unet",), ("vae",), ("unet",)]
        residency.clear()
        assert residency.present == ()
        assert residency.resident_bytes == 0


def test_at_full_everything_is_there_from_the_start_and_no_hook() -> None:
    text, unet = part("clip"), part("unet")
    with in_force(Plan(level=Level.FULL), text, unet) as residency:
        assert residency.present == ("text_encoder", "unet")
        assert hooks(text.module) + hooks(unet.module) == 0
        assert residency.bytes_moved >= size_of(text).size_bytes + size_of(unet).size_bytes
        homes = {p.data_ptr() for p in part("unet").module.parameters()}
        assert not homes & {p.data_ptr() for p in unet.module.parameters()}


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 1])
def test_a_streamed_network_keeps_to_its_budget(share: float) -> None:
    found = part("unet")
    size = size_of(found)
    budget = int(size.size_bytes * share)
    with in_force(Plan(level=Level.STREAM, resident_bytes=budget), found) as residency:
        run(found, "unet")
        pinned = sum(leaf.size_bytes for leaf in leaves_of(found) if not leaf.streamable)
        assert residency.resident_bytes <= max(budget, pinned) + 2 * (size.leaf_bytes + 2048) + 1000
        start = residency.bytes_moved
        run(found, "unet")
        run(found, "unet")
        step = (residency.bytes_moved - start) / 2
        assert step <= 1.05 * (size.size_bytes - budget) + size.leaf_bytes
        assert (step == 0) == (share == 1)


def test_what_stays_is_chosen_for_the_fullest_budget() -> None:
    sizes = {"norm": 10, "a": 1000, "b": 800, "c": 300, "d": 300}
    assert choose_resident(sizes, 0) == set()
    assert choose_resident(sizes, 10) == {"norm"}
    assert choose_resident(sizes, 900) == {"norm", "b"}
    assert choose_resident(sizes, 1400) == {"norm", "a", "c"}
    assert choose_resident(sizes, 10_000) == set(sizes)


def plus_one(weight: Tensor) -> Tensor:
    return weight + 1


@pytest.mark.parametrize(
    "plan",
    [
        Plan(host=True),
        Plan(level=Level.FULL),
        Plan(level=Level.OFFLOAD),
        STREAM,
        Plan(level=Level.STREAM, resident_bytes=10**6),
    ],
)
def test_changes_to_weights_are_made_where_they_are_used(plan: Plan) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    found, changed = part("unet"), part("unet")
    changed.module.get_parameter(f"{name}.weight").add_(1)
    expected = run(changed, "unet")
    with in_force(plan, found, **{f"unet.{name}": plus_one}):
        assert torch.equal(run(found, "unet"), expected)
    assert not torch.equal(run(found, "unet"), expected)


def test_changes_to_weights_survive_8_bits() -> None:
    """A LoRA is added to what was unpacked: it is not rounded itself."""
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    found = part("unet")
    seen: list[Tensor] = []

    def delta(weight: Tensor) -> Tensor:
        seen.append(weight)
        return weight

    with in_force(Plan(level=Level.FULL, storage="fp8"), found, **{f"unet.{name}": delta}):
        run(found, "unet")
    home = found.module.get_submodule(name).weight
    assert isinstance(home, Tensor)
    assert seen[0].dtype == home.dtype
    assert (seen[0] - home).abs().max() < 0.04 * home.abs().max()


def test_tied_weights_come_once() -> None:
    found = part("t5")
    tied = found.module.get_parameter("shared.weight")
    assert tied.data_ptr() == found.module.get_parameter("encoder.embed_tokens.weight").data_ptr()
    with in_force(Plan(level=Level.OFFLOAD), found) as residency:
        run(found, "t5")
        assert residency.bytes_moved == residency.resident_bytes == found.size_bytes


def test_a_layer_that_fails_leaves_its_weights() -> None:
    found = part("unet")
    with in_force(STREAM, found), pytest.raises(RuntimeError), torch.inference_mode():
        found.module(torch.zeros(1, 5, 8, 8), torch.tensor([7]), torch.zeros(1, 5, 32))
    with in_force(STREAM, found):
        assert torch.equal(run(found, "unet"), run(part("unet"), "unet"))


def test_a_plan_that_cannot_be_put_into_force_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    text, unet = part("clip"), part("unet")

    def full(*args: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    homes = [p.data_ptr() for p in text.module.parameters()]
    count = iter(range(1000))
    real = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: full() if next(count) > 40 else real(*a, **k))
    with pytest.raises(torch.OutOfMemoryError):
        apply({"text_encoder": text, "unet": unet}, Plan(level=Level.FULL), CPU)
    monkeypatch.undo()
    assert [p.data_ptr() for p in text.module.parameters()] == homes
    assert hooks(unet.module) == 0


def test_a_network_can_change_its_format_in_place() -> None:
    """A VAE whose half precision overflows goes on in a wider one."""
    vae = part("vae", torch.float16, torch.float16)
    wide = part("vae")
    for weight, half in zip(wide.module.parameters(), vae.module.parameters(), strict=True):
        weight.copy_(half)
    with in_force(Plan(level=Level.OFFLOAD), vae) as residency:
        vae.dtype = torch.float32
        residency.recast(vae)
        assert torch.equal(run(vae, "vae"), run(wide, "vae"))
