"""/api/v1/plots: X/Y/Z plots, prompt matrices and prompts from text, as one job with a picture for each cell."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from pipelines.request import GenerationRequest
from webui.api.errors import ErrorBody
from webui.jobs import Job
from webui.plots.axes import AXES
from webui.plots.scripts import Script, plotted
from webui.studio import Studio


class AxisInfo(BaseModel):
    name: str
    choices: str = Field(description="The field of a request whose choices are its values; empty: numbers or words")


class NewPlot(BaseModel):
    model_config = ConfigDict(extra="forbid")

    request: GenerationRequest
    script: Script


class Count(BaseModel):
    pictures: int


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(prefix="/api/v1/plots", tags=["Plots"], responses={"4XX": {"model": ErrorBody}})

    @router.get("/axes")
    def axes() -> list[AxisInfo]:
        return [AxisInfo(name=row.name, choices=row.choices) for row in AXES]

    @router.post("/count")
    def count(wanted: NewPlot) -> Count:
        """How many pictures it would be, before it is queued."""
        return Count(pictures=plotted(wanted.request, wanted.script).units)

    @router.post("", status_code=201)
    async def submit(wanted: NewPlot) -> Job:
        """Queue it: every cell is checked now, each picture is saved as soon as it is made, the sheet in the end."""
        return await studio.submit(plotted(wanted.request, wanted.script))

    return router
