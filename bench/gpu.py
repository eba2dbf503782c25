"""Networks of full size with random weights under caps of a card's memory: `python -m bench.gpu [--device cuda]`.

For each model and cap: the plan, seconds a step, the peak, and bytes moved a step, which no fast bus can flatter; the
same by diffusers' own whole-network offload; then attention backends, fp8, repeated switches and a forced shortage.
`--device cpu --size tiny` runs every line of this where there is no card: its figures mean nothing.
"""

import argparse
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.activations import NETWORKS
from bench.rows import Row
from pipelines.attention import BACKENDS, why_not
from pipelines.device import free_bytes, is_out_of_memory, measured
from pipelines.loading.parts import Part
from pipelines.memory.leaves import size_of
from pipelines.memory.placement import Residency, apply
from pipelines.memory.planner import GIB, Level, Load, Plan, Room, Wish, degrade, plan

log = logging.getLogger("bench.gpu")

CAPS_GB = (4.0, 6.0, 8.0, 12.0, 0.0)
"""0: all of the card."""
Step = Callable[[nn.Module, torch.device, torch.dtype], Tensor]


def unet_step(side: int, width: int, pooled: int = 0) -> Step:
    def step(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        added = {"text_embeds": draw(2, pooled), "time_ids": draw(2, 6)} if pooled else None
        times = torch.full((2,), 500, device=device)
        latent = draw(2, 4, side // 8, side // 8)
        result: Tensor = network(latent, times, draw(2, 77, width), added_cond_kwargs=added, return_dict=False)[0]
        return result

    return step


def flux_step(side: int, channels: int, tokens: int, width: int, pooled: int) -> Step:
    def step(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        places = (side // 16) ** 2
        result: Tensor = network(
            hidden_states=draw(1, places, channels),
            encoder_hidden_states=draw(1, tokens, width),
            pooled_projections=draw(1, pooled),
            timestep=torch.full((1,), 0.5, device=device, dtype=dtype),
            guidance=torch.full((1,), 3.5, device=device, dtype=dtype),
            img_ids=torch.zeros(places, 3, device=device),
            txt_ids=torch.zeros(tokens, 3, device=device),
            return_dict=False,
        )[0]
        return result

    return step


@dataclass(frozen=True)
class Case:
    name: str
    family: str
    side: int
    network: str
    step: Step
    config: dict[str, Any]
    """Instead of the full size."""


TINY_UNET = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1, "norm_num_groups": 8}
TINY_FLUX = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
CASES = {
    "full": (
        Case("SD 1.5", "sd1", 512, "sd1 unet", unet_step(512, 768), {}),
        Case("SDXL", "sdxl", 1024, "sdxl unet", unet_step(1024, 2048, 1280), {}),
        Case("Flux.1", "flux", 1024, "flux transformer", flux_step(1024, 64, 512, 4096, 768), {}),
    ),
    "tiny": (
        Case("SD 1.5", "sd1", 64, "sd1 unet", unet_step(64, 32), {**TINY_UNET, "cross_attention_dim": 32}),
        Case(
            "Flux.1",
            "flux",
            64,
            "flux transformer",
            flux_step(64, 16, 8, 32, 32),
            {
                **TINY_FLUX,
                "num_attention_heads": 2,
                "joint_attention_dim": 32,
                "pooled_projection_dim": 32,
                "axes_dims_rope": (4, 4, 8),
            },
        ),
    ),
}


def build(case: Case, dtype: torch.dtype) -> Part:
    """Random weights, of the spread that trained ones have: NaN would be fast and zeros faster."""
    import diffusers

    kind, config, _ = NETWORKS[case.network]
    with torch.device("meta"):
        module: nn.Module = getattr(diffusers, kind).from_config({**config, **case.config})
    module = module.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    for weight in (*module.parameters(), *module.buffers()):
        if weight.dtype.is_floating_point:
            weight.normal_(0, 0.02)
    size = sum(weight.nbytes for weight in module.parameters())
    return Part(case.network.partition(" ")[2], module, dtype, case.name, size)


@dataclass
class Bench:
    device: torch.device
    dtype: torch.dtype

    def room(self, cap_gb: float) -> Room:
        """Never `host`, even on a CPU: what is measured is the moving."""
        free = free_bytes(self.device, cap_gb) if self.device.type == "cuda" else int((cap_gb or 24) * GIB)
        return Room(free_bytes=free)

    def limit(self, cap_gb: float) -> None:
        """The driver's answer about free memory does not know of this: the planner is told the cap by itself."""
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap_gb * GIB / total) if cap_gb else 1.0, self.device)

    def planned(self, case: Case, part: Part, cap_gb: float, wish: Wish | None = None) -> Plan:
        load = Load(family=case.family, parts={part.name: size_of(part)}, width=case.side, height=case.side)
        return plan(load, self.room(cap_gb), wish)

    def clean(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else 0.0

    @torch.inference_mode()
    def seconds(self, case: Case, part: Part) -> float:
        return measured(lambda: case.step(part.module, self.device, self.dtype), self.device, seconds=2)


def caps(bench: Bench, case: Case, part: Part) -> Iterator[Row]:
    for cap in CAPS_GB:
        bench.limit(cap)
        bench.clean()
        found = bench.planned(case, part, cap)
        title = f"{case.name} {case.side}, {f'{cap:g} GB' if cap else 'no cap'}"
        residency = apply({part.name: part}, found, bench.device)
        try:
            with torch.inference_mode():
                case.step(part.module, bench.device, bench.dtype)  # comes in, learns the order
                before = residency.bytes_moved
                case.step(part.module, bench.device, bench.dtype)
                moved = residency.bytes_moved - before
            yield Row(f"{title}: {found.level.name} {found.storage}", bench.seconds(case, part), "s a step")
            yield Row(f"{title}: moved", moved / 1e9, "GB a step")
            yield Row(f"{title}: peak (planned {found.need_bytes / GIB:.1f})", bench.peak_gb(), "GB")
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            yield Row(f"{title}: out of memory with {found}", float("nan"), "")
        finally:
            residency.undo()
    bench.limit(0)


def streamed(bench: Bench, case: Case, part: Part) -> Iterator[Row]:
    """The slowest level, with no weight that stays: what a step costs when everything must come over the bus."""
    bench.clean()
    residency = apply({part.name: part}, Plan(level=Level.STREAM), bench.device)
    with torch.inference_mode():
        case.step(part.module, bench.device, bench.dtype)
        before = residency.bytes_moved
        case.step(part.module, bench.device, bench.dtype)
        moved = residency.bytes_moved - before
    yield Row(f"{case.name} {case.side}, all of it streamed", bench.seconds(case, part), "s a step")
    yield Row(f"{case.name} {case.side}, all of it streamed: moved", moved / part.size_bytes, "of the weights")
    yield Row(f"{case.name} {case.side}, all of it streamed: peak", bench.peak_gb(), "GB")
    residency.undo()


def by_diffusers(bench: Bench, case: Case, part: Part) -> Iterator[Row]:
    """What `enable_model_cpu_offload` does with the denoiser: the network as a whole, to and fro for each picture."""
    from accelerate import cpu_offload_with_hook

    bench.clean()
    module, hook = cpu_offload_with_hook(part.module, bench.device)
    try:
        yield Row(f"{case.name} {case.side}, diffusers' offload", bench.seconds(case, part), "s a step")
        yield Row(f"{case.name} {case.side}, diffusers' offload: peak", bench.peak_gb(), "GB")
    finally:
        hook.offload()
        hook.remove()
        module.to("cpu")


def in_8_bits(bench: Bench, case: Case, part: Part) -> Iterator[Row]:
    times, sizes = [], []
    for storage in ("full", "fp8"):
        bench.clean()
        found = bench.planned(case, part, 0, Wish.model_validate({"storage": storage, "placement": "full"}))
        residency = apply({part.name: part}, found, bench.device)
        times.append(bench.seconds(case, part))
        sizes.append(residency.resident_bytes)
        residency.undo()
    yield Row(f"{case.name}: fp8 over 16 bits, weights", sizes[1] / sizes[0], "(bar 0.55)")
    yield Row(f"{case.name}: fp8 over 16 bits, time", times[1] / times[0], "(bar 1.20)")


def switches(bench: Bench, case: Case, part: Part) -> Iterator[Row]:
    held: list[int] = []
    for _ in range(10):
        residency = apply({part.name: part}, bench.planned(case, part, 0), bench.device)
        with torch.inference_mode():
            case.step(part.module, bench.device, bench.dtype)
        residency.undo()
        gc.collect()
        held.append(torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else 0)
    yield Row(f"{case.name}: held after 10 switches, over after 2", (held[-1] - held[1]) / 1e6, "MB (bar 1)")


def shortage(bench: Bench, case: Case, part: Part) -> Iterator[Row]:
    """Plans that are far too large, one level lower after each failure: how many tries until there is a picture."""
    if bench.device.type != "cuda":
        return
    bench.clean()
    bench.limit(part.size_bytes * 0.6 / GIB)
    found: Plan | None = bench.planned(case, part, 0)
    tries = 0
    while found is not None:
        tries += 1
        residency: Residency | None = None
        try:
            residency = apply({part.name: part}, found, bench.device)
            with torch.inference_mode():
                case.step(part.module, bench.device, bench.dtype)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        finally:
            if residency is not None:
                residency.undo()
            bench.clean()
        found = degrade(found)
    bench.limit(0)
    yield Row(f"{case.name}: tries until it fits after a shortage", tries if found else float("nan"), "")


def backends(bench: Bench) -> Iterator[Row]:
    """SD 1.5's and SDXL's largest layers."""
    for label, shape in (("SD 1.5", (2, 8, 4096, 40)), ("SDXL", (2, 10, 4096, 64))):
        tokens = 4096 if bench.device.type == "cuda" else 256
        query, key, value = (
            torch.randn((*shape[:2], tokens, shape[3]), device=bench.device, dtype=bench.dtype) for _ in range(3)
        )
        for name, backend in BACKENDS.items():
            if why_not(name, bench.device):
                log.info("%s: %s", backend.label, why_not(name, bench.device))
                continue
            seconds = measured(partial(backend.attend, query, key, value, None), bench.device)
            yield Row(f"attention of {label}, {backend.label}", seconds * 1000, "ms")


def rows(bench: Bench, size: str) -> Iterator[Row]:
    for case in CASES[size]:
        part = build(case, bench.dtype)
        for measure in (caps, streamed, by_diffusers, in_8_bits, switches, shortage):
            yield from measure(bench, case, part)
        del part
        bench.clean()
    yield from backends(bench)


def main() -> None:
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=CASES, default="full")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here. To try the program itself: --device cpu --size tiny")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for row in rows(Bench(device, dtype), given.size):
        log.info("%s", row)


if __name__ == "__main__":
    main()
