"""Civitai: a model or version number -> its file, by the site's public API."""

from typing import Any
from urllib.parse import urljoin, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.types import Kind
from webui.downloads.folders import SUFFIXES, safe_name
from webui.downloads.sources import CivitaiSource
from webui.downloads.types import BadSource, DownloadFailed, Plan, Wanted
from webui.downloads.web import Web

KINDS: dict[str, Kind] = {
    "checkpoint": Kind.CHECKPOINT,
    "lora": Kind.LORA,
    "locon": Kind.LORA,
    "dora": Kind.LORA,
    "textualinversion": Kind.EMBEDDING,
    "vae": Kind.VAE,
    "controlnet": Kind.CONTROLNET,
    "upscaler": Kind.UPSCALER,
}
"""Civitai's types; any other file tells by itself what it is."""

SIDE_FILES = frozenset({"training data", "config", "archive"})


class Metadata(BaseModel):
    format: str | None = None
    size: str | None = None
    fp: str | None = None


class File(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    name: str
    type: str = "Model"
    primary: bool | None = None
    size_kb: float | None = Field(default=None, alias="sizeKB")
    hashes: dict[str, Any] | None = None
    metadata: Metadata | None = None
    download_url: str = Field(default="", alias="downloadUrl")

    def fits(self, wishes: tuple[tuple[str, str], ...]) -> bool:
        mine = {**(self.metadata or Metadata()).model_dump(), "type": self.type}
        return all(str(mine.get(name) or "").lower() == value.lower() for name, value in wishes)

    @property
    def safe(self) -> bool:
        return self.name.lower().endswith((".safetensors", ".sft", ".gguf"))

    @property
    def size(self) -> int | None:
        """Exact only where kilobytes come with their fraction."""
        size = (self.size_kb or 0) * 1024
        return int(size) if size and size == int(size) else None


class Model(BaseModel):
    type: str = ""


class Version(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    id: int
    files: list[File] = []
    model: Model | None = None
    download_url: str = Field(default="", alias="downloadUrl")


class ModelPage(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    type: str = ""
    versions: list[Version] = Field(default=[], alias="modelVersions")


async def plan(web: Web, base: str, source: CivitaiSource) -> Plan:
    """Raises BadSource, DownloadFailed, TryLater."""
    kind, version = await _version(web, base, source)
    file = choose(version.files, source.wishes)
    name = safe_name(file.name)
    url = urljoin(f"{base}/", file.download_url or version.download_url or f"api/download/models/{version.id}")
    if urlsplit(url).scheme not in ("https", "http"):  # file: would copy something of this machine
        raise DownloadFailed("Civitai names an address for this file that is none. Choose another version on its page.")
    sha256 = str((file.hashes or {}).get("SHA256") or "").lower() or None
    wanted = Wanted(url=url, path=name, size=file.size, sha256=sha256)
    own_kind = Kind.VAE if file.type.lower() == "vae" else KINDS.get(kind.lower())
    return Plan(name=name, kind=own_kind, files=(wanted,))


def choose(files: list[File], wishes: tuple[tuple[str, str], ...]) -> File:
    """What the link asks for, else the maker's main file; a safetensors file before a pickle."""
    models = [file for file in files if file.type.lower() not in SIDE_FILES and file.name.lower().endswith(SUFFIXES)]
    if not models:
        raise BadSource("This version on Civitai holds no model file. Choose another version on its page.")
    asked = [file for file in models if wishes and file.fits(wishes)]
    if asked:
        return asked[0]
    plain = [file for file in models if file.type.lower() in ("model", "pruned model")] or models
    return max(plain, key=lambda file: (file.safe, bool(file.primary)))


async def _version(web: Web, base: str, source: CivitaiSource) -> tuple[str, Version]:
    """Type of the model, and the version: the newest if none is named."""
    try:
        if source.version is not None:
            body, _ = await web.json(f"{base}/api/v1/model-versions/{source.version}")
            version = Version.model_validate(body)
            return version.model.type if version.model else "", version
        body, _ = await web.json(f"{base}/api/v1/models/{source.model}")
        page = ModelPage.model_validate(body)
    except ValidationError as error:
        raise DownloadFailed("Civitai describes this model in a way that cannot be read. Try again later.") from error
    if not page.versions:
        raise BadSource(f"Model {source.model} on Civitai has no version that can be fetched.")
    return page.type, page.versions[0]
