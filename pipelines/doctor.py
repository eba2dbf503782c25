"""`app.py doctor`: what this machine has, how fast it is, what fits, and what to do. A report to read and to send."""

import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pipelines.attention import BACKENDS, why_not
from pipelines.device import FULL, choose_device, choose_dtypes, device_name, free_bytes, measured, memory_bytes
from pipelines.memory.planner import GIB, Level, Load, Plan, Room, Wish, nominal, plan_ahead

MB = 10**6
WIDTH = 100
"""Columns."""
PACKAGES = ("torch", "diffusers", "transformers", "xformers", "flash_attn", "sageattention", "bitsandbytes", "gguf")
ATTEND = (2, 8, 1024, 64)
"""Rows, heads, tokens, dim: SDXL's at 1024 pixels has four times the tokens."""
LEAST_RAM, LEAST_DISK = 8 * GIB, 10 * GIB


class Settings(Protocol):
    """What is read of the application's settings."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def storage(self) -> str: ...
    @property
    def placement(self) -> str: ...
    @property
    def attention(self) -> str: ...
    @property
    def vram_gb(self) -> float: ...
    @property
    def models_dir(self) -> Path: ...
    @property
    def cache(self) -> Path: ...


FAMILIES: tuple[tuple[str, str, int, dict[str, int]], ...] = (
    ("SD 1.5", "sd1", 512, {"text_encoder": 246, "unet": 1719, "vae": 167}),
    ("SD 2.1", "sd2", 768, {"text_encoder": 681, "unet": 1732, "vae": 167}),
    ("SDXL", "sdxl", 1024, {"text_encoder": 246, "text_encoder_2": 1390, "unet": 5135, "vae": 167}),
    ("SD 3 medium", "sd3", 1024, {"text_encoder": 246, "text_encoder_3": 9525, "transformer": 4057, "vae": 168}),
    ("Flux.1", "flux", 1024, {"text_encoder": 246, "text_encoder_2": 9525, "transformer": 23803, "vae": 168}),
    ("FLUX.2 klein", "flux2", 1024, {"text_encoder": 8045, "transformer": 7751, "vae": 168}),
    ("Z-Image", "z_image", 1024, {"text_encoder": 8045, "transformer": 12310, "vae": 168}),
    ("Qwen-Image", "qwen_image", 1024, {"text_encoder": 16584, "transformer": 40861, "vae": 254}),
)
"""Label, family, its side in pixels, and its networks in 10^6 bytes at 16 bits: by bench.activations and the files."""


def main(settings: Settings) -> str:
    """The report, ready to print. Raises PipelineError if the device of the settings is not there."""
    device = choose_device(settings.device)
    sections = {
        "Machine": machine(device, settings),
        "Number formats": formats(device, settings),
        "Attention": attentions(device),
        "What fits": fitting(device, settings),
        "What to do": advice(device, settings),
    }
    lines: list[str] = []
    for title, content in sections.items():
        indent = 4 if title == "What to do" else 22
        lines += [title, *(line for text in content for line in wrapped(text, indent)), ""]
    return "\n".join(lines)


def wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=" " * indent) or [""]


def row(name: str, value: str) -> str:
    return f"{name:<18}  {value}"


def machine(device: torch.device, settings: Settings) -> Iterator[str]:
    yield row("device", f"{device}: {device_name(device)}")
    yield row("driver", driver())
    free = free_bytes(device, settings.vram_gb)
    limit = f", of which {settings.vram_gb:g} GB may be used" if settings.vram_gb else ""
    yield row("memory", f"{free / GIB:.1f} GB free of {memory_bytes(device) / GIB:.1f} GB{limit}")
    if device.type == "cuda":
        ram = torch.device("cpu")
        yield row("RAM", f"{free_bytes(ram) / GIB:.1f} GB free of {memory_bytes(ram) / GIB:.1f} GB")
    yield row("processor", f"{torch.get_num_threads()} threads")
    yield row("disk", f"{disk_bytes(settings) / GIB:.1f} GB free where the models lie ({settings.models_dir})")
    yield row("packages", ", ".join(f"{name} {found}" for name in PACKAGES if (found := installed(name))))


def driver() -> str:
    """As nvidia-smi says it: torch knows only what it was built for."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "no NVIDIA driver is installed"
    asked = [command, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi does not answer ({error})"
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    return f"NVIDIA {'; '.join(told.split(chr(10))).strip('; ')}; {built}"


def formats(device: torch.device, settings: Settings) -> Iterator[str]:
    dtypes = choose_dtypes(device, settings.dtype, settings.cache)
    names = {kind: str(getattr(dtypes, kind)).removeprefix("torch.") for kind in dtypes._fields}
    yield row("in use", ", ".join(f"{kind.replace('_', ' ')} {name}" for kind, name in names.items()))
    side = 256 if device.type == "cpu" else 4096
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        square = torch.rand(side, side, device=device).to(dtype)

        def multiply(square: Tensor = square) -> Tensor:
            return square @ square

        yield row(str(dtype).removeprefix("torch."), f"{2 * side**3 / measured(multiply, device) / 1e12:.3f} TFLOP/s")


def attentions(device: torch.device) -> Iterator[str]:
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    query, key, value = (torch.randn(ATTEND, dtype=dtype, device=device) for _ in range(3))
    for name, backend in BACKENDS.items():
        reason = why_not(name, device)
        if reason:
            yield row(backend.label, f"no: {reason}")
            continue

        def attend(attend: Callable[..., Tensor] = backend.attend) -> Tensor:
            return attend(query, key, value, None)

        yield row(
            backend.label, f"{measured(attend, device) * 1000:.2f} ms for {ATTEND[2]} tokens in {ATTEND[1]} heads"
        )


def fitting(device: torch.device, settings: Settings) -> Iterator[str]:
    yield row("model", f"{'size':<12}{'needs':<10}{'how'}")
    for label, family, side, _ in FAMILIES:
        found = planned(device, settings, family)
        need = f"{found.need_bytes / GIB:.1f} GB"
        yield row(label, f"{f'{side} x {side}':<12}{need:<10}{how(found)}")


def planned(device: torch.device, settings: Settings, family: str) -> Plan:
    dtypes = choose_dtypes(device, settings.dtype, settings.cache)
    number = dtypes.unet.itemsize
    side, sizes = next((side, sizes) for _, name, side, sizes in FAMILIES if name == family)
    parts = {name: nominal(name, size * MB * number // 2, number) for name, size in sizes.items()}
    room = Room(free_bytes=free_bytes(device, settings.vram_gb), host=device.type == "cpu")
    wish = Wish.model_validate({"placement": settings.placement, "storage": settings.storage})
    return plan_ahead(Load(family=family, parts=parts, width=side, height=side), room, wish)


LEVELS = {
    Level.FULL: "all of it on the card: the fastest",
    Level.OFFLOAD: "one network after another on the card: fast",
    Level.STREAM: "layer by layer from RAM: slower",
}


def how(found: Plan) -> str:
    if not found.fits:
        return "does not fit"
    words = ["in RAM"] if found.host else [LEVELS[found.level]]
    return ", ".join([*words, *str(found).split(", ")[1:]])


def advice(device: torch.device, settings: Settings) -> Iterator[str]:
    """In plain words, the most helpful first."""
    found = list(_problems(device, settings))
    yield from found or ["Nothing: all is well."]


def _problems(device: torch.device, settings: Settings) -> Iterator[str]:
    if device.type == "cpu" and shutil.which("nvidia-smi") and not torch.cuda.is_available():
        yield (
            "There is an NVIDIA card, but this torch does not see it. Install a torch for it: see pytorch.org, "
            "'Get Started', and choose your CUDA version. An old driver is the other frequent cause: renew it."
        )
    elif device.type == "cpu":
        yield (
            "There is no graphics card that can be used: pictures take minutes instead of seconds. Small models (the "
            "starter model, SD 1.5 at 384 x 384, few steps) are the most fun here."
        )
    if device.type == "cpu" and choose_dtypes(device, settings.dtype, settings.cache) == FULL:
        yield "This processor has no fast bfloat16, which would double its speed: nothing can be done about that."
    if free_bytes(torch.device("cpu")) < LEAST_RAM:
        yield "Less than 8 GB of RAM are free: close other programs before you load large models."
    if disk_bytes(settings) < LEAST_DISK:
        yield "Less than 10 GB are free on the disk of the models: a further checkpoint takes 2 to 24 GB."
    if settings.attention != "auto" and (reason := why_not(settings.attention, device)):
        yield f"Attention is set to {settings.attention}, which cannot be used ({reason}). Set it to auto."
    for label, family, _, _ in FAMILIES:
        found = planned(device, settings, family)
        if not found.fits:
            small = "Make smaller pictures, or choose a version of it with fewer bits (GGUF, fp8)."
            missing = f"it needs about {found.need_bytes / GIB:.1f} GB"
            yield f"{label} does not fit: {missing}. {small}"


def disk_bytes(settings: Settings) -> int:
    there = next(path for path in (settings.models_dir, *settings.models_dir.parents) if path.exists())
    return shutil.disk_usage(there).free


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
