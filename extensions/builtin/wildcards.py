"""`{red|green|blue}` in a prompt becomes one of its choices, the same one for the same seed."""

import random
import re

from extensions import GenerationRequest, hookimpl

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


@hookimpl
def prepare_request(request: GenerationRequest) -> GenerationRequest | None:
    if not CHOICE.search(request.prompt):
        return None
    rng = random.Random(request.seed)
    prompt = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), request.prompt)
    return request.model_copy(update={"prompt": prompt})
