"""Errors as every dialect's client gets them: a status, a type, and a sentence that says what to do."""

import sqlite3
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pipelines.errors import ModelNotFound, PipelineError, UnknownChoice
from webui.downloads.types import BadSource, DownloadNotFound, DownloadNotNow, NoRoom
from webui.inputs import BadPicture
from webui.library import NotAPicture
from webui.outputs import DiskFull
from webui.plots.values import BadValues
from webui.resolve import BadPlot
from webui.studio import JobNotFound, NotNow

STATUS: dict[type[PipelineError], int] = {
    JobNotFound: 404,
    NotAPicture: 404,
    DownloadNotFound: 404,
    ModelNotFound: 422,
    UnknownChoice: 422,
    BadSource: 422,
    BadPicture: 422,
    BadPlot: 422,
    BadValues: 422,
    NotNow: 409,
    DownloadNotNow: 409,
    NoRoom: 507,
    DiskFull: 507,
}


class Error(BaseModel):
    type: str
    message: str


class ErrorBody(BaseModel):
    """The body of every answer of 4xx and 5xx."""

    error: Error


def add_handlers(app: FastAPI) -> None:
    @app.exception_handler(PipelineError)
    async def user_error(_: Request, error: PipelineError) -> JSONResponse:
        status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
        return answer(status, type(error).__name__, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, "InvalidRequest", " ".join(map(sentence, error.errors())))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, "HTTPError", str(error.detail))

    @app.exception_handler(sqlite3.OperationalError)
    async def no_database(_: Request, error: sqlite3.OperationalError) -> JSONResponse:
        return answer(507, "DatabaseError", f"The database cannot be written ({error}). Is the disk full?")


def answer(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse(ErrorBody(error=Error(type=kind, message=message)).model_dump(), status)


def sentence(detail: dict[str, Any]) -> str:
    """One of pydantic's findings in words. Never echoes the input, which may be large."""
    if detail["type"] == "json_invalid":
        return "The body is not valid JSON."
    name = ".".join(str(part) for part in detail["loc"] if part != "body") or "The body"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{name}: {message[:1].lower()}{message[1:]}."
