"""Finds extensions (the bundled ones and folders with a plugin.py) and loads each so that a broken one breaks alone."""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from extensions import hookspecs
from pipelines.errors import PipelineError
from pipelines.request import GenerationRequest

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
            changed = _call(hook, request=request)
            request = GenerationRequest.model_validate(changed.model_dump()) if changed is not None else request
        except PipelineError:  # the extension speaks to the user
            raise
        except Exception:  # somebody else's code: leave its part out
            log.exception("Extension %s failed in prepare_request", hook.plugin_name)
    return request


def denoiser_wrappers(plugins: pluggy.PluginManager) -> tuple[Callable[[Any, Any, GenerationRequest], Any], ...]:
    """[worker] The functions around the denoiser, in the order in which they are put on."""

    def wrapper(hook: pluggy.HookImpl) -> Callable[[Any, Any, GenerationRequest], Any]:
        return lambda denoise, model, request: _call(hook, denoise=denoise, model=model, request=request)

    return tuple(map(wrapper, plugins.hook.wrap_denoiser.get_hookimpls()))


def _call(hook: pluggy.HookImpl, **given: Any) -> Any:
    """One plugin's hook: as everywhere in pluggy, it may name only the arguments that it wants, in any order."""
    return hook.function(*(given[name] for name in hook.argnames))


def _import_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
