"""HTTP. Each module is one dialect: it decodes a body to a task and encodes the result, no more."""

from fastapi import FastAPI

from webui.api import downloads, errors, inputs, live, models, native, pictures, plots
from webui.library import Library
from webui.studio import Studio


def add_routes(app: FastAPI, studio: Studio, library: Library) -> None:
    errors.add_handlers(app)
    app.include_router(native.routes(studio))
    app.include_router(models.routes(studio))
    app.include_router(downloads.routes(studio.downloads))
    app.include_router(pictures.routes(library))
    app.include_router(inputs.routes(studio.inputs))
    app.include_router(plots.routes(studio))
    app.include_router(live.routes(studio))
