"""What this machine computes on, in which number format, and how much memory it has left."""

import json
import logging
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch.nn import functional

from pipelines.errors import PipelineError

log = logging.getLogger(__name__)

GIB = 2**30
NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE_FILE = "device.json"
PROBES = 40
"""Of a millisecond or two each."""
FASTER = 1.15
"""So much faster must a half format be than float32 to be worth its rounding."""


class Dtypes(NamedTuple):
    """In what each kind of network computes."""

    text_encoder: torch.dtype
    unet: torch.dtype
    vae: torch.dtype


BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Of processors that multiply bfloat16 by themselves."""

FULL = Dtypes(torch.float32, torch.float32, torch.float32)


def choose_device(wish: str) -> torch.device:
    """From "auto", "cpu", "cuda", "cuda:1" or "mps"; "auto" takes the fastest that is there."""
    there = devices()
    if wish == "auto":
        return torch.device(there[0])
    name = "cuda:0" if wish == "cuda" else wish
    if name not in there:
        raise PipelineError(f"The device {wish!r} is not there. Choose one of: auto, {', '.join(there)}.")
    return torch.device(name)


def devices() -> list[str]:
    """The devices of this machine, the fastest first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def device_name(device: torch.device) -> str:
    """For people: "CPU", or what the maker calls the card."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def choose_dtypes(device: torch.device, wish: str = "auto", cache: Path | None = None) -> Dtypes:
    """The fastest formats that give right pictures here. On a CPU that is measured once and kept in `cache`."""
    if wish != "auto":
        asked = NAMES[wish]
        return Dtypes(asked, asked, asked)
    if device.type == "cuda":
        return of_card(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    if device.type == "mps":
        return Dtypes(torch.float16, torch.float16, torch.float32)
    if not may_have_bf16(cpu_name()):
        return FULL
    return FULL if _bf16_speed(cache) < FASTER else Dtypes(torch.bfloat16, torch.bfloat16, torch.bfloat16)


def of_card(name: str, capability: tuple[int, int]) -> Dtypes:
    """NVIDIA: bf16 is fast from compute capability 8.0 on, fp16 from 6.0 on; but GTX 16xx draw black pictures in fp16.

    SDXL's VAE overflows fp16, so cards without bf16 decode in fp32.
    """
    if capability >= (8, 0):
        return Dtypes(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    if capability < (6, 0) or "GTX 16" in name or any(f" T{n}" in f" {name}" for n in (500, 550, 600, 1000, 1200)):
        return FULL
    return Dtypes(torch.float16, torch.float16, torch.float32)


def wider(dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """A format with room for larger numbers, for a network that overflowed; None: there is none."""
    if dtype == torch.float16:
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float32
    return torch.float32 if dtype == torch.bfloat16 else None


def may_have_bf16(cpu: str) -> bool:
    """Without instructions for it bfloat16 is emulated, a hundred times slower: that need not be measured."""
    return not Path("/proc/cpuinfo").exists() or any(flag in cpu for flag in BF16_FLAGS)


def _bf16_speed(cache: Path | None) -> float:
    """How many times faster than float32 bfloat16 is on this CPU."""
    key = f"{cpu_name()} / torch {torch.__version__} / {torch.get_num_threads()} threads"
    known = read_facts(cache, PROBE_FILE)
    found = known.get(key)
    if isinstance(found, int | float):
        return float(found)
    ratio = round(_seconds(torch.float32) / _seconds(torch.bfloat16), 2)
    log.info("bfloat16 is %.1f times as fast as float32 on this CPU", ratio)
    write_facts(cache, PROBE_FILE, {**known, key: ratio})
    return ratio


@torch.inference_mode()
def _seconds(dtype: torch.dtype) -> float:
    """Of a product and a convolution like a U-Net's; the best of many, since other programs only slow, and what a busy
    moment says would be kept for good."""
    rows, square = torch.ones(128, 640, dtype=dtype), torch.ones(640, 640, dtype=dtype)
    picture, kernel = torch.ones(1, 160, 16, 16, dtype=dtype), torch.ones(160, 160, 3, 3, dtype=dtype)

    def once() -> float:
        start = time.perf_counter()
        functional.linear(rows, square)
        functional.conv2d(picture, kernel, padding=1)
        return time.perf_counter() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other, fifty times as long where other programs have the processor
    try:
        once()  # builds the kernels
        return min(once() for _ in range(PROBES))
    finally:
        torch.set_num_threads(threads)


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])  # x86, Arm
    fast = [flag for flag in ("avx2", "avx512f", *BF16_FLAGS) if flag in flags]
    return " ".join([next(named, platform.machine()), *fast])


def memory_bytes(device: torch.device) -> int:
    """All that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def free_bytes(device: torch.device, cap_gb: float = 0) -> int:
    """What can still be taken. `cap_gb`: the user's limit, 0 for none; the driver knows nothing of it.

    On CUDA, torch keeps memory that it has been given back by tensors: that is free too.
    """
    if device.type == "mps":
        used = torch.mps.driver_allocated_memory()
        free = min(psutil.virtual_memory().available, torch.mps.recommended_max_memory() - used)
    elif device.type == "cuda":
        used = torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - used
    else:
        return psutil.virtual_memory().available
    return max(0, min(free, int(cap_gb * GIB) - used) if cap_gb else free)


def is_out_of_memory(error: BaseException) -> bool:
    """On a CPU, torch raises a plain RuntimeError for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


FAULTS = ("CUDA error", "cudaError", "device-side assert", "an illegal memory access", "CUBLAS_STATUS_EXECUTION_FAILED")


def is_device_fault(error: BaseException) -> bool:
    """After one of these, nothing that is done on the device works any more in this process."""
    if is_out_of_memory(error):
        return False
    known = getattr(torch, "AcceleratorError", ())
    return isinstance(error, known) or (isinstance(error, RuntimeError) and any(f in str(error) for f in FAULTS))


def measured(run: Callable[[], object], device: torch.device, seconds: float = 0.3) -> float:
    """The median time of one call, in seconds, over as many as fit."""
    times: list[float] = []
    run()
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_facts(cache: Path | None, name: str) -> dict[str, object]:
    """What was found out before. A cache may be empty, cut off or from another version: then nothing is known."""
    try:
        found = json.loads((cache / name).read_text(encoding="utf-8")) if cache else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_facts(cache: Path | None, name: str, facts: dict[str, object]) -> None:
    if cache is None:
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    except OSError as error:
        log.warning("%s could not be kept: %s", name, error)
