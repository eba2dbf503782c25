"""Jobs that wait for a model on its way, and what becomes of them when it arrives or will never come."""

import contextlib
from collections.abc import Callable

from pipelines.errors import ModelNotFound, PipelineError
from pipelines.library.registry import Registry
from pipelines.request import GenerationRequest
from pipelines.types import Kind
from webui.downloads import DownloadInfo, Downloads, DownloadState
from webui.jobs import JobStore
from webui.resolve import Resolved

Resolve = Callable[[GenerationRequest], Resolved]

ENDED = (DownloadState.DONE, DownloadState.CANCELLED)
"""One that has failed can be resumed: its jobs go on waiting."""

COMING = (DownloadState.QUEUED, DownloadState.RUNNING, DownloadState.PAUSED)
PARTS = (None, Kind.VAE, Kind.TEXT_ENCODER)
"""What may complete a checkpoint. None: not known yet."""


class Arrivals:
    def __init__(self, jobs: JobStore, registry: Registry, downloads: Downloads, resolve: Resolve) -> None:
        self._jobs, self._registry, self._downloads, self._resolve = jobs, registry, downloads, resolve

    def look(self) -> None:
        """Queue the jobs whose model has arrived. One whose model will never come fails."""
        for job in self._jobs.blocked():
            try:
                awaited = self._downloads.get(job.awaits or 0)
                if awaited.state in ENDED:
                    self._jobs.unblock(job.id, self._resolve(self._named(job.task, awaited)))
            except ModelNotFound as error:
                if other := self.on_its_way(job.task):
                    self._jobs.keep_waiting(job.id, other.id)
                else:
                    self._jobs.failed(job.id, type(error).__name__, str(error))
            except PipelineError as error:
                self._jobs.failed(job.id, type(error).__name__, str(error))

    def on_its_way(self, request: GenerationRequest) -> DownloadInfo | None:
        """The download that may bring what this request lacks: its checkpoint, or a VAE or text encoder for it."""
        if not request.model:
            return None
        if found := self._downloads.waiting_for(request.model):
            return found
        with contextlib.suppress(ModelNotFound):
            self._registry.get(request.model)
            each = self._downloads.snapshot()
            return next((download for download in each if download.state in COMING and download.kind in PARTS), None)
        return None

    def _named(self, request: GenerationRequest, download: DownloadInfo) -> GenerationRequest:
        """A job may have been queued under the address of its model: now the file has a name."""
        try:
            self._registry.get(request.model)
        except ModelNotFound:
            return request.model_copy(update={"model": download.name})
        return request
