"""Pictures straight from `generate`, without a worker around it."""

from collections.abc import Iterable, Sequence
from typing import Any

import PIL.Image

from pipelines.generate import batches, generate
from pipelines.kit import SoloKit
from pipelines.request import GenerationRequest
from pipelines.scene import Kit, WrapDenoise


def draw(
    model: Any,
    request: GenerationRequest,
    wanted: Iterable[int] | None = None,
    wrappers: Sequence[WrapDenoise] = (),
) -> dict[int, PIL.Image.Image]:
    """All units of a request, or those wanted. `model`: a LoadedModel alone, or a Kit of one's own."""
    kit: Kit = SoloKit(model, wrappers) if hasattr(model, "predict") else model
    pictures: dict[int, PIL.Image.Image] = {}
    for batch in batches(request, range(request.units) if wanted is None else tuple(wanted), kit):
        pictures.update(generate(request, kit, batch, lambda index, x0: None))
    return pictures
