"""Pictures over HTTP: the gallery's pages, the files and their thumbnails. Sends image types and nothing else."""

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel

from webui.api.errors import ErrorBody
from webui.library import Library
from webui.outputs import MEDIA_TYPES, PictureInfo

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class GalleryPage(BaseModel):
    images: list[PictureInfo]
    next: str | None
    """Give this as `after` to get the next page."""
    total: int


def routes(library: Library) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["Pictures"], responses={"4XX": {"model": ErrorBody}})

    @router.get("/images")
    async def images(limit: Annotated[int, Query(ge=1, le=500)] = 100, after: str | None = None) -> GalleryPage:
        """Everything in outputs/, newest first."""
        page = await asyncio.to_thread(library.page, limit, after)
        return GalleryPage(images=page.pictures, next=page.next, total=page.total)

    @router.get("/images/{picture:path}", response_class=FileResponse)
    async def image(picture: str) -> FileResponse:
        path = library.path(picture)
        return _send(path, MEDIA_TYPES[path.suffix.lower()])

    @router.get("/image-info/{picture:path}")
    async def info(picture: str) -> PictureInfo:
        """Size and infotext."""
        return await asyncio.to_thread(library.info, picture)

    @router.get("/thumbnails/{picture:path}", response_class=FileResponse)
    async def thumbnail(picture: str) -> FileResponse:
        """WebP, the longer side 256 pixels."""
        return _send(await asyncio.to_thread(library.thumbnail, picture), "image/webp")

    return router


def _send(path: Path, media_type: str) -> FileResponse:
    """Browsers ask again each time and get a 304 while the file is the same."""
    return FileResponse(path, media_type=media_type, headers={**HEADERS, "Cache-Control": "no-cache"})
