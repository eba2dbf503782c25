"""Downloads of models over HTTP, and the tokens for the sites they come from."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pipelines.types import Kind
from webui.api.errors import ErrorBody
from webui.downloads import DownloadInfo, Downloads
from webui.downloads.types import Mode, Service

DownloadId = Annotated[int, Path(ge=1, lt=2**63)]


class NewDownload(BaseModel):
    model_config = ConfigDict(extra="forbid")

    source: str = Field(
        max_length=2000,
        description="owner/name, owner/name:file.safetensors, an address on huggingface.co or civitai.com, "
        "any https address of a model file, or a full path on the server",
        examples=["owner/name:dream.safetensors"],
    )
    kind: Kind | None = Field(default=None, description="Left out: as the source or the file says")
    name: str | None = Field(default=None, max_length=200, description="File name; left out: the source's")
    sha256: str | None = Field(default=None, max_length=80, description="What it must be, if you know")
    mode: Mode = Field(default="auto", description="For a path: link, copy, or a link where the disk can")


class NewToken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: SecretStr = Field(max_length=500)


class TokenState(BaseModel):
    """All that is told of a token."""

    set: bool


def routes(downloads: Downloads) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["Downloads"], responses={"4XX": {"model": ErrorBody}})
    _add_downloads(router, downloads)
    _add_tokens(router, downloads)
    return router


def _add_downloads(router: APIRouter, downloads: Downloads) -> None:
    @router.get("/downloads")
    async def listed() -> list[DownloadInfo]:
        """Newest first."""
        return list(downloads.list())

    @router.post("/downloads", status_code=201)
    async def add(body: NewDownload) -> DownloadInfo:
        """Fetch a model into its folder. It goes on after a restart."""
        return await downloads.add(body.source, body.kind, body.name, body.sha256, body.mode)

    @router.get("/downloads/{download_id}")
    async def one(download_id: DownloadId) -> DownloadInfo:
        return downloads.get(download_id)

    @router.post("/downloads/{download_id}/pause")
    async def pause(download_id: DownloadId) -> DownloadInfo:
        return await downloads.pause(download_id)

    @router.post("/downloads/{download_id}/resume")
    async def resume(download_id: DownloadId) -> DownloadInfo:
        """Go on, or try a failed or cancelled one again."""
        return await downloads.resume(download_id)

    @router.post("/downloads/{download_id}/cancel")
    async def cancel(download_id: DownloadId) -> DownloadInfo:
        """Stop and delete what has come."""
        return await downloads.cancel(download_id)

    @router.delete("/downloads/{download_id}", status_code=204)
    async def remove(download_id: DownloadId) -> None:
        """Take it off the list. A finished model stays on the disk."""
        await downloads.remove(download_id)


def _add_tokens(router: APIRouter, downloads: Downloads) -> None:
    @router.get("/tokens")
    async def tokens() -> dict[Service, TokenState]:
        """Which tokens are set; never what they are."""
        return {service: TokenState(set=known) for service, known in downloads.tokens.known().items()}

    @router.put("/tokens/{service}")
    async def set_token(service: Service, body: NewToken) -> TokenState:
        downloads.tokens.set(service, body.token.get_secret_value())
        return TokenState(set=True)

    @router.delete("/tokens/{service}")
    async def forget_token(service: Service) -> TokenState:
        downloads.tokens.forget(service)
        return TokenState(set=False)
