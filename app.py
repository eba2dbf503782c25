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
from typing import TYPE_CHECKING

import filelock
from pydantic import JsonValue

from pipelines.engine import Engine
from webui import config
from webui.config import HOME, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pipelines.registry import Registry
    from pipelines.session import Session

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
    from webui import api, ui
    from webui.db import Database
    from webui.library import Library
    from webui.outputs import Outputs
    from webui.studio import VERSION, Studio

    plugins = loader.load(settings.extensions)
    outputs = Outputs(settings.outputs, settings.image_format, settings.image_quality)
    studio = Studio(
        engine, Database(settings.database), find_models(settings), outputs, partial(loader.prepare, plugins)
    )

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
    """The user's checkpoints, then the starter model, so that there is always one."""
    from pipelines.registry import Registry

    registry = Registry(dict.fromkeys((settings.models_dir, HOME / "models")), settings.cache / "hashes.json")
    registry.scan()
    return registry


def create_engine(settings: Settings) -> Engine:
    """The worker process. It warms the checkpoint that was used last."""
    from pipelines.process_engine import ProcessEngine
    from webui.db import Database

    database = Database(settings.database)
    given: dict[str, JsonValue] = {**settings.model_dump(mode="json"), "last_model": database.fact("last_model") or ""}
    database.close()
    return ProcessEngine("app:boot", given)


def boot(given: dict[str, JsonValue]) -> "Session":
    """Runs in the worker: torch is imported here, and nowhere else."""
    given = dict(given)
    last, cold = str(given.pop("last_model", "")), given.pop("cold", False)
    settings = Settings.model_validate(given)
    set_up_logging(settings.log_level)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models come from disk
    from extensions import loader
    from pipelines.device import choose_device
    from pipelines.manager import ModelManager
    from pipelines.session import Session

    device = choose_device(settings.device)
    models = {info.name: info for info in find_models(settings).all()}
    wrappers = loader.denoiser_wrappers(loader.load(settings.extensions))
    warm = None if cold else models.get(last) or next(iter(models.values()), None)
    return Session(ModelManager(device), device, wrappers, warm, settings.cache)


def main() -> None:
    settings = config.load()
    set_up_logging(settings.log_level)
    with (
        take_data_folder(settings),
        bind(settings) as listener,
        contextlib.suppress(KeyboardInterrupt),  # uvicorn has closed everything before it raises this
    ):
        asyncio.run(serve(settings, listener))


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


if __name__ == "__main__":
    main()
