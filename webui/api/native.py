"""Our own dialect, /api/v1: jobs, the worker, and the events as Server-Sent Events."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from pipelines.request import GenerationRequest
from pipelines.types import WorkerStatus
from webui import VERSION
from webui.api.errors import ErrorBody
from webui.jobs import Job
from webui.studio import Studio

JobId = Annotated[int, Path(ge=1, lt=2**63)]
Seq = Annotated[int | None, Query(ge=0, lt=2**63, description="Number of the last event that you know")]


class JobView(BaseModel):
    """A job, and how far it is while it runs."""

    job: Job
    progress: dict[str, Any] | None = None


class Status(BaseModel):
    version: str
    worker: WorkerStatus
    queued: int
    running: list[dict[str, Any]]


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["Inkstone"], responses={"4XX": {"model": ErrorBody}})
    _add_jobs(router, studio)
    _add_rest(router, studio)
    return router


def _add_jobs(router: APIRouter, studio: Studio) -> None:
    @router.post("/jobs", status_code=201)
    async def submit(request: GenerationRequest) -> Job:
        """Queue a job. It is on the disk when this answers, milliseconds later."""
        return await studio.submit(request)

    @router.get("/jobs")
    async def jobs(limit: Annotated[int, Query(ge=1, le=500)] = 50) -> list[Job]:
        """Newest first."""
        return studio.jobs.recent(limit)

    @router.get("/jobs/{job_id}")
    async def job(job_id: JobId) -> JobView:
        progress = studio.running.get(job_id)
        return JobView(job=studio.job(job_id), progress=progress.public() if progress else None)

    @router.delete("/jobs/{job_id}")
    async def cancel(job_id: JobId) -> Job:
        """Stop within one step. Finished pictures stay."""
        return await studio.cancel(job_id)

    @router.post("/jobs/{job_id}/skip")
    async def skip(job_id: JobId) -> Job:
        """Leave out the images that are being made and go on."""
        return studio.skip(job_id)

    @router.post("/jobs/{job_id}/retry")
    async def retry(job_id: JobId) -> Job:
        """Queue a failed or cancelled job again; only what is missing will be made."""
        return studio.retry(job_id)


def _add_rest(router: APIRouter, studio: Studio) -> None:
    @router.get("/status")
    async def status() -> Status:
        running = [progress.public() for progress in studio.running.values()]
        return Status(version=VERSION, worker=studio.worker, queued=studio.jobs.queued(), running=running)

    @router.get("/events", response_class=EventSourceResponse)
    async def events(
        since: Seq = None, last_event_id: Annotated[int | None, Header(ge=0, lt=2**63)] = None
    ) -> AsyncIterator[ServerSentEvent]:
        """All that happens to jobs, from `since` on (or from now), for as long as you listen."""
        known, newest = since if last_event_id is None else last_event_id, studio.events.span()[1]
        seq = newest if known is None else min(known, newest)
        with studio.events.watch() as watcher:
            while True:
                while news := studio.events.since(seq):
                    for event in news:
                        seq = event.seq
                        yield ServerSentEvent(data=event.model_dump(mode="json"), event=event.type, id=str(seq))
                await watcher.wait()
