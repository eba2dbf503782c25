"""On a CUDA device: streams and pinned memory give the same numbers as the plain way, within the memory planned."""

import pytest
import torch

from pipelines.attention import BACKENDS, why_not
from pipelines.device import free_bytes
from pipelines.loading.parts import Part
from pipelines.memory import leaves
from pipelines.memory.leaves import size_of
from pipelines.memory.placement import apply
from pipelines.memory.planner import Level, Plan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

WIDTH, LAYERS = 2048, 12


class Tower(torch.nn.Module):
    """Layers of 8 MB in half precision, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@pytest.fixture
def tower() -> Part:
    torch.manual_seed(0)
    module = Tower().half().eval().requires_grad_(False)
    return Part("unet", module, torch.float16, "tower", WIDTH * WIDTH * 2 * LAYERS)


@torch.inference_mode()
def run(part: Part) -> torch.Tensor:
    x = torch.ones(4, WIDTH, device="cuda", dtype=torch.float16)
    for _ in range(5):
        x = part.module(x)
    return x.cpu()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_streaming_is_exact_and_keeps_to_its_budget(tower: Part, share: float) -> None:
    device = torch.device("cuda")
    expected_plan = apply({"unet": tower}, Plan(level=Level.FULL), device)
    expected = run(tower)
    expected_plan.undo()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    budget = int(tower.size_bytes * share)
    residency = apply({"unet": tower}, Plan(level=Level.STREAM, resident_bytes=budget), device)
    for _ in range(3):
        assert torch.equal(run(tower), expected)
    peak = torch.cuda.max_memory_allocated() - base
    assert peak <= budget + 3 * size_of(tower).leaf_bytes + 2**23
    residency.undo()
    assert torch.cuda.memory_allocated() <= base
    assert all(weight.device.type == "cpu" for weight in tower.module.parameters())


@pytest.mark.parametrize("level", Level)
def test_eight_bits(tower: Part, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "SMALL_BYTES", 256)
    device = torch.device("cuda")
    plain = apply({"unet": tower}, Plan(level=Level.FULL), device)
    expected = run(tower).float()
    plain.undo()
    residency = apply({"unet": tower}, Plan(level=level, storage="fp8"), device)
    assert (run(tower).float() - expected).norm() < 0.1 * expected.norm()
    residency.undo()


def test_free_memory_counts_what_torch_keeps_and_the_users_limit() -> None:
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    before = free_bytes(device)
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert free_bytes(device) <= before - 2**27
    del held
    assert abs(free_bytes(device) - before) < 2**26
    assert free_bytes(device, cap_gb=1) <= 2**30


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_works_or_says_why_not(name: str) -> None:
    reason = why_not(name, torch.device("cuda:0"))
    assert name not in ("sdpa", "sliced") or reason == ""
    assert "\n" not in reason
