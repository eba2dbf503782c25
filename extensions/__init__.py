"""The public API: an extension imports this module, gradio and libraries, and nothing else of ours."""

from pluggy import HookimplMarker

from pipelines.errors import PipelineError
from pipelines.request import GenerationRequest
from pipelines.types import ModelInfo

hookimpl = HookimplMarker("inkstone")

__all__ = ["GenerationRequest", "ModelInfo", "PipelineError", "hookimpl"]
