"""/api/v1/inputs: pictures to start from or to follow. Given once, a picture is named by its id in any job."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body
from fastapi.responses import Response

from webui.api.errors import ErrorBody
from webui.api.pictures import HEADERS
from webui.inputs import InputInfo, Inputs

SIGNS = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"RIFF", "image/webp"))
"""How the files begin that are kept, and what they are."""


def routes(inputs: Inputs) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["Pictures"], responses={"4XX": {"model": ErrorBody}})

    @router.post("/inputs", status_code=201)
    async def keep(data: Annotated[bytes, Body(media_type="application/octet-stream")]) -> InputInfo:
        """The body is the file itself: PNG, JPEG, WebP, GIF, BMP or TIFF. It is turned upright and kept in 8 bits."""
        return await asyncio.to_thread(inputs.keep, data)

    @router.get("/inputs/{name}", response_class=Response)
    async def one(name: str) -> Response:
        data = await asyncio.to_thread(inputs.data, name)
        media_type = next(kind for sign, kind in SIGNS if data.startswith(sign))
        return Response(
            data, media_type=media_type, headers={**HEADERS, "Cache-Control": "max-age=31536000, immutable"}
        )

    return router
