"""The nouns of downloads: what is asked for, which files that means, how far they are, and what can go wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipelines.errors import PipelineError
from pipelines.frozen import Frozen
from pipelines.types import Kind

HUGGING_FACE = "https://huggingface.co"
CIVITAI = "https://civitai.com"

Service = Literal["huggingface", "civitai"]
Mode = Literal["auto", "link", "copy"]

TOKEN_HOSTS: Mapping[Service, frozenset[str]] = {
    "huggingface": frozenset({"huggingface.co", "hf.co"}),
    "civitai": frozenset({"civitai.com", "www.civitai.com", "civitai.red", "civitai.green"}),
}
"""The only hosts that ever see a token. A mirror is somebody else's machine, so it is not among them."""


class BadSource(PipelineError):
    """What was typed, or what lies there, is nothing that can be added."""


class DownloadNotFound(PipelineError): ...


class DownloadNotNow(PipelineError):
    """The download is in a state in which this cannot be done."""


class DownloadFailed(PipelineError):
    """It ends here, and trying again at once would not help."""


class AddressRefused(DownloadFailed):
    """An address that a stranger's link must not make us call."""


class NoRoom(PipelineError):
    """The disk is full. What has come stays, so that it can go on later."""


class TryLater(PipelineError):
    """The line or the server failed in a way that may pass."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class DownloadState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


CLAIMING = frozenset({DownloadState.QUEUED, DownloadState.RUNNING, DownloadState.PAUSED})
"""In these states a download has a claim on its file name."""

UNFINISHED = CLAIMING | {DownloadState.FAILED}
"""In these states the model may still come."""


class Wanted(Frozen):
    """One file to fetch."""

    url: str = Field(description="https, or file: for a copy from this machine")
    path: str = Field(description="Below the download's folder, with slashes; a single file: its name")
    size: int | None = Field(default=None, description="Bytes, where the source says so exactly")
    sha256: str | None = None


class Plan(Frozen):
    """What a source comes to."""

    name: str = Field(description="Of the file or folder that appears in the models folder")
    kind: Kind | None = None
    folder: bool = False
    files: tuple[Wanted, ...] = ()
    link: str | None = Field(default=None, description="A path on this machine that is linked instead of fetched")

    @property
    def total(self) -> int | None:
        """Bytes of all files; None where a source does not say."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)


class Download(Frozen):
    """A row of the store."""

    id: int
    source: str
    asked_name: str | None
    asked_sha256: str | None
    mode: Mode
    kind: Kind | None
    name: str
    state: DownloadState
    message: str
    plan: Plan | None
    target: str | None
    validators: dict[str, str]
    received: int
    total: int | None
    created: float
    finished: float | None


class DownloadInfo(Frozen):
    """A download as pages and the API see it."""

    id: int
    source: str
    name: str
    kind: Kind | None
    state: DownloadState
    received: int = Field(description="Bytes that lie on the disk")
    total: int | None = Field(description="Bytes in all; null while nobody knows")
    bytes_per_second: float = 0
    seconds_left: float | None = None
    message: str = Field(default="", description="Why it waits, failed or is paused, and what to do")


@dataclass(frozen=True)
class Rules:
    """How downloads behave; the defaults are for the real world, tests shorten the waits."""

    allowed_hosts: frozenset[str] = frozenset()
    """`host` or `host:port`: may have a private address and speak plain http, as a NAS at home."""

    huggingface: str = HUGGING_FACE
    civitai: str = CIVITAI
    token_hosts: Mapping[Service, frozenset[str]] = field(default_factory=lambda: TOKEN_HOSTS)
    parallel: int = 2
    tries: int = 12
    connect_seconds: float = 15.0
    stall_seconds: float = 30.0
    backoff_seconds: float = 1.0
    redirects: int = 10
    margin_bytes: int = 512 * 2**20
    """So much of the disk stays free for pictures and the database."""

    progress_seconds: float = 0.25


def file_of(root: Path, relative: str) -> Path:
    return root.joinpath(*relative.split("/"))
