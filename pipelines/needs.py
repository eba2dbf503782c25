"""What a request names beyond its checkpoint: other model files, and pictures to start from or to follow. No torch."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from pipelines.control.preprocessors import module_named
from pipelines.frozen import Frozen
from pipelines.request import GenerationRequest
from pipelines.types import Kind

LATENT_MODES = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)
PLAIN_UPSCALERS = ("None", "Lanczos", "Nearest")
UPSCALERS = (*LATENT_MODES, *PLAIN_UPSCALERS)
"""Those that need no file, as A1111 calls them."""

PICTURES = ("image", "mask")
"""The fields of request models that hold a picture."""


Request = TypeVar("Request", bound=Frozen)


class Need(NamedTuple):
    kinds: tuple[Kind, ...]
    """It may be any of these."""
    name: str


def files(request: GenerationRequest) -> Iterator[Need]:
    """The files that it cannot be made without."""
    yield from upscalers(request)
    if request.hires and request.hires.model:
        yield Need((Kind.CHECKPOINT,), request.hires.model)
    if request.refiner:
        yield Need((Kind.CHECKPOINT,), request.refiner.model)
    for control in request.controls:
        module = module_named(control.module).module
        if not module.alone:
            yield Need((Kind.CONTROLNET, Kind.T2I_ADAPTER, Kind.IP_ADAPTER), control.model)
    for reference in request.references:
        if reference.model:
            yield Need((Kind.IP_ADAPTER,), reference.model)
    if request.faces:
        yield Need((Kind.FACE_RESTORER,), request.faces.model)


def upscalers(request: GenerationRequest) -> Iterator[Need]:
    """Of the second pass, and of SD upscale."""
    asking = (request.hires, request.start and request.start.tiled)
    for each in asking:
        if each and each.upscaler not in UPSCALERS:
            yield Need((Kind.UPSCALER,), each.upscaler)


def prompts(request: GenerationRequest) -> Iterator[str]:
    """Every text that is read by the networks, and may name LoRAs and embeddings."""
    spoken = [request.spoken(unit) for unit in range(len(request.variants))] or [request]
    for each in spoken:
        yield each.prompt
        yield each.negative_prompt
        if each.hires:
            yield each.hires.prompt
            yield each.hires.negative_prompt
    yield from (region.prompt for region in request.regions)


def pictures(request: Frozen) -> set[str]:
    """All that it holds, by the names that they have there."""
    found: set[str] = set()

    def see(name: str) -> str:
        found.add(name)
        return name

    with_pictures(request, see)
    return found


def with_pictures(request: Request, change: Callable[[str], str]) -> Request:
    """The request with each of its pictures under another name."""
    update: dict[str, Any] = {}
    for name in type(request).model_fields:
        value = getattr(request, name)
        if name in PICTURES and isinstance(value, str):
            update[name] = change(value)
        elif isinstance(value, Frozen):
            update[name] = with_pictures(value, change)
        elif isinstance(value, tuple) and any(isinstance(each, Frozen) for each in value):
            update[name] = tuple(with_pictures(each, change) for each in value)
    changed = {name: value for name, value in update.items() if value != getattr(request, name)}
    return request.model_copy(update=changed) if changed else request
