"""/api/v1/models and /plan: what model files there are, and whether a picture fits into the memory of this machine."""

from collections import Counter
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, ValidationError

from pipelines.errors import PipelineError
from pipelines.library.lora_card import LoraCard, lora_card
from pipelines.request import GenerationRequest
from pipelines.types import Kind, ModelInfo
from webui.api.errors import ErrorBody, sentence
from webui.estimates import Estimate
from webui.studio import Studio


class Wish(BaseModel):
    """A request as far as memory and time are concerned; the same names as in a job. It may be half typed."""

    model: str = ""
    width: float = 0
    height: float = 0
    steps: float = 20
    cfg_scale: float = 7.0
    batch_count: float = 1
    batch_size: float = 1
    vae: str = "Automatic"
    text_encoders: tuple[str, ...] = ()


class Named(BaseModel):
    """A checkpoint by its name, title or hash."""

    name: str = Field(max_length=500)


class Listed(BaseModel):
    """A file as the list shows it: names are unique within a kind."""

    kind: Kind
    name: str = Field(max_length=500)


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(prefix="/api/v1", tags=["Models"], responses={"4XX": {"model": ErrorBody}})

    @router.get("/models")
    def models(
        kind: Kind | Literal["all"] = Kind.CHECKPOINT,
        search: Annotated[str, Query(max_length=200)] = "",
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1)] = 100_000,
    ) -> list[ModelInfo]:
        """The files of one kind, or of all; `search` looks into name, family, variant and hash."""
        words = search.casefold().split()
        found = (
            info
            for info in studio.registry.models()
            if kind in ("all", info.kind)
            and all(word in f"{info.title} {info.family} {info.variant}".casefold() for word in words)
        )
        return list(found)[offset : offset + limit]

    @router.get("/models/kinds")
    def kinds() -> dict[Kind, int]:
        """How many files there are of each kind."""
        return Counter(info.kind for info in studio.registry.models())

    @router.get("/models/lora/{name:path}")
    def lora(name: str) -> LoraCard:
        """What is known of a LoRA beside its weights: words that call it, tags of its pictures, its hash."""
        return lora_card(studio.registry.find(Kind.LORA, name))

    @router.post("/models/refresh")
    def refresh() -> dict[Kind, int]:
        """Look into the folders now, without waiting for the watcher."""
        studio.registry.scan()
        return kinds()

    @router.post("/models/convert")
    async def convert(model: Listed) -> ModelInfo:
        """Write a .safetensors beside a .ckpt, .pt, .bin or .pth, which stays. The file is read as data only."""
        return await studio.convert(model.kind, model.name)

    @router.post("/models/hint", status_code=202)
    async def hint(model: Named) -> None:
        """Load this checkpoint now, as far as memory allows: it is likely to be asked for next."""
        studio.hint(model.name)

    @router.get("/plan")
    def plan(wish: Annotated[Wish, Query()]) -> Estimate:
        """What the picture would need of the device's memory, where the weights would lie, and how long it may take."""
        try:
            return studio.estimate(GenerationRequest(**wish.model_dump(exclude_unset=True)))
        except ValidationError as error:
            return Estimate(trouble=" ".join(map(sentence, map(dict, error.errors()))))
        except PipelineError as error:
            return Estimate(trouble=str(error))

    return router
