"""Start here: `uv run app.py`. Puts the parts together and serves them; holds no logic of its own.

The order matters for the first second: read the settings, take the port, answer with a splash page, start the worker,
and only then import the heavy half of the web side. The worker process imports this module too, for `boot`.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
import webbrowser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
from pydantic import JsonValue, ValidationError

from pipelines.engine import Engine
from pipelines.errors import ModelNotFound, PipelineError
from webui import config
from webui.config import HOME, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pipelines.library.registry import Registry
    from pipelines.session import Session
    from pipelines.types import ModelInfo

log = logging.getLogger("inkstone")


def create_app(settings: Settings, engine: Engine) -> "FastAPI":
    """The whole web side around an engine. Imports gradio, which costs seconds."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.cache / "gradio"))
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager

    import gradio as gr
    from fastapi import FastAPI
    from fastapi_offline import FastAPIOffline

    from extensions import loader
    from pipelines.library.reading import kind_of
    from webui import VERSION, api, ui
    from webui.db import Database
    from webui.downloads import Downloads, Hooks, Rules, Tokens
    from webui.inputs import Inputs
    from webui.library import Library
    from webui.outputs import Outputs
    from webui.resolve import Resolver
    from webui.studio import Studio

    plugins = loader.load(settings.extensions)
    outputs = Outputs(settings.outputs, settings.image_format, settings.image_quality)
    db, registry = Database(settings.database), find_models(settings)

    def arrived(_: Path) -> None:
        registry.scan()

    hooks = Hooks(identify=kind_of, on_done=arrived, on_change=lambda: studio.downloads_changed())
    rules = Rules(huggingface=settings.hf_mirror, allowed_hosts=frozenset(settings.download_hosts))
    downloads = Downloads(db, settings.models_dir, Tokens(settings.outputs / "tokens.json"), rules, hooks)
    inputs = Inputs(settings.inputs, settings.outputs)
    resolver = Resolver(db, registry, inputs, partial(loader.prepare, plugins))
    studio = Studio(engine, db, resolver, outputs, downloads)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with studio:
            yield

    app = FastAPIOffline(
        title="Inkstone",
        version=VERSION,
        docs_url="/api/docs",
        redoc_url=None,
        openapi_url="/api/openapi.json",
        static_url="/api/docs-static",
        lifespan=lifespan,
        max_body_size=64 * 2**20,
    )
    api.add_routes(app, studio, Library(settings.outputs, settings.cache))
    pages = ui.build(studio)
    gr.mount_gradio_app(app, pages, path="/", **ui.mount_options())
    pages._queue.sleep_when_free = 0.02  # Gradio polls its queue every millisecond, which costs 5 % of a core
    return app


def find_models(settings: Settings) -> "Registry":
    """The user's models, those of other applications, then the starter model, so that there is always one."""
    from pipelines.library.registry import Registry

    folders = (settings.models_dir, *settings.more_models, HOME / "models")
    registry = Registry(dict.fromkeys(folders), settings.cache / "models.sqlite")
    registry.scan()
    return registry


def create_engine(settings: Settings) -> Engine:
    """The worker process. It warms the checkpoint that was used last."""
    from pipelines.process_engine import ProcessEngine
    from webui.db import Database

    database = Database(settings.database)
    given: dict[str, JsonValue] = {**settings.model_dump(mode="json"), "warm": database.fact("warm")}
    database.close()
    return ProcessEngine("app:boot", given)


def boot(given: dict[str, JsonValue]) -> "Session":
    """Runs in the worker: torch is imported here, and nowhere else."""
    given = dict(given)
    warm, cold = given.pop("warm", None), given.pop("cold", False)
    settings = Settings.model_validate(given)
    set_up_logging(settings.log_level)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models come from disk
    from extensions import loader
    from pipelines.device import choose_device, choose_dtypes
    from pipelines.loading.homes import Homes
    from pipelines.loading.manager import ModelManager, default_budget
    from pipelines.loading.pinned import pins_for
    from pipelines.memory.fitting import Choices, Fitter
    from pipelines.memory.planner import Wish
    from pipelines.session import Session

    device = choose_device(settings.device)
    wish = Wish(placement=settings.placement, storage=settings.storage)
    fitter = Fitter(device, Choices(wish, settings.vram_gb, settings.attention), settings.cache)
    budget = default_budget() if settings.cache_gb < 0 else int(settings.cache_gb * 2**30)
    dtypes = choose_dtypes(device, settings.dtype, settings.cache)
    models = ModelManager(device, dtypes, budget, release=fitter.release, homes=Homes(pins_for(device)))
    wrappers = loader.denoiser_wrappers(loader.load(settings.extensions))
    return Session(models, device, wrappers, None if cold else first_model(settings, warm), settings.cache, fitter)


def first_model(settings: Settings, last: JsonValue) -> "ModelInfo | None":
    """What the first job is likely to ask for: the checkpoint of the last one, with its companions, else the first."""
    from pipelines.types import ModelInfo

    with contextlib.suppress(ValidationError):  # written by another version
        if last and (info := ModelInfo.model_validate_json(str(last))).path.exists():
            return info
    with contextlib.suppress(ModelNotFound):  # the page will say so
        registry = find_models(settings)
        info = registry.get("")
        return info.model_copy(update={"companions": registry.companions(info)})
    return None


def main() -> None:
    doctor = sys.argv[1:2] == ["doctor"]
    settings = config.load(sys.argv[2:] if doctor else None)
    if doctor:
        return see_doctor(settings)
    set_up_logging(settings.log_level)
    with (
        take_data_folder(settings),
        bind(settings) as listener,
        contextlib.suppress(KeyboardInterrupt),  # uvicorn has closed everything before it raises this
    ):
        asyncio.run(serve(settings, listener))


def see_doctor(settings: Settings) -> None:
    """`uv run app.py doctor`: what this machine has, what fits, what to do."""
    from pipelines import doctor

    try:
        sys.stdout.write(doctor.main(settings) + "\n")
    except PipelineError as error:
        raise SystemExit(str(error)) from error


async def serve(settings: Settings, listener: socket.socket) -> None:
    import uvicorn

    from webui.front import Front
    from webui.security import Guard

    async def open_house() -> "FastAPI":
        engine = create_engine(settings)
        await engine.start()
        return await asyncio.to_thread(create_app, settings, engine)

    app = Guard(Front(open_house), settings.hosts)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    host = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    log.info("Inkstone is at %s", url)
    if settings.host not in config.LOOPBACK and settings.host != "::1":
        log.warning("Everyone on this network can use Inkstone: it asks for no password yet.")
    if not settings.no_browser and has_screen():
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    await server.serve(sockets=[listener])


def bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where TCP is named: else each answer waits 40 ms for an acknowledgement
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        raise SystemExit(
            f"{settings.host}:{settings.port} cannot be used ({error.strerror}). "
            f"Is Inkstone running already? Else choose another port, as in --port {settings.port + 1}."
        ) from error
    listener.listen(128)
    return listener


def take_data_folder(settings: Settings) -> filelock.BaseFileLock:
    """One Inkstone a data folder: the queue has one owner. The lock is the operating system's, so a crash frees it."""
    try:
        settings.outputs.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(settings.outputs / ".lock", timeout=0).acquire().lock
    except filelock.Timeout as error:
        raise SystemExit(
            f"Another Inkstone uses {settings.outputs}. Close it, or choose another folder with --data-dir."
        ) from error
    except OSError as error:
        raise SystemExit(
            f"{settings.outputs} cannot be written: {error.strerror}. Choose another --data-dir."
        ) from error


def has_screen() -> bool:
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for noisy in ("httpx", "PIL", "asyncio", "python_multipart"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks everybody to install kernels from a hub


if __name__ == "__main__":
    main()
