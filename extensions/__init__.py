"""The public API: an extension imports this module, gradio and libraries, and nothing else of ours."""

from pluggy import HookimplMarker

from pipelines.errors import PipelineError
from pipelines.types import GenerationRequest, ModelInfo

hookimpl = HookimplMarker("inkstone")

__all__ = ["GenerationRequest", "ModelInfo", "PipelineError", "hookimpl"]
