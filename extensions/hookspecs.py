"""Every hook, in the order in which a request meets them. [web] runs in the server, [worker] beside the device."""

from typing import Any

from pluggy import HookspecMarker

from pipelines.request import GenerationRequest

hookspec = HookspecMarker("inkstone")


@hookspec
def prepare_request(request: GenerationRequest) -> GenerationRequest | None:
    """[web] Return a changed copy of the resolved request, or None. Each hook sees the last one's result."""


@hookspec
def wrap_denoiser(denoise: Any, model: Any, request: GenerationRequest) -> Any:
    """[worker] Return a function (x, sigma) -> x0 around `denoise`, or None to leave it as it is."""
