"""Finds extensions (the bundled ones and folders with a plugin.py) and loads each so that a broken one breaks alone."""

import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from extensions import hookspecs
from pipelines.errors import PipelineError
from pipelines.types import GenerationRequest

log = logging.getLogger(__name__)

BUILTIN = ("extensions.builtin.wildcards",)


def load(folder: Path) -> pluggy.PluginManager:
    plugins = pluggy.PluginManager("inkstone")
    plugins.add_hookspecs(hookspecs)
    for name in BUILTIN:
        plugins.register(importlib.import_module(name), name)
    for path in sorted(folder.glob("*/plugin.py")):
        name = path.parent.name
        try:
            plugins.register(_import_file(f"inkstone_extension_{name.replace('-', '_')}", path), name)
        except (Exception, SystemExit):  # somebody else's code: log it and go on
            log.exception("Extension %s could not be loaded", name)
    return plugins


def prepare(plugins: pluggy.PluginManager, request: GenerationRequest) -> GenerationRequest:
    """Pass a request through every prepare_request hook in turn; what comes out is validated anew."""
    for hook in plugins.hook.prepare_request.get_hookimpls():
        try:
            changed: Any = hook.function(request)
            request = GenerationRequest.model_validate(changed.model_dump()) if changed is not None else request
        except PipelineError:  # the extension speaks to the user
            raise
        except Exception:  # somebody else's code: leave its part out
            log.exception("Extension %s failed in prepare_request", hook.plugin_name)
    return request


def denoiser_wrappers(plugins: pluggy.PluginManager) -> tuple[Any, ...]:
    return tuple(hook.function for hook in plugins.hook.wrap_denoiser.get_hookimpls())


def _import_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
