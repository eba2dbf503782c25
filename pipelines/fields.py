"""Kinds of values that requests are made of, with their limits; and paths to them, such as `hires.scale`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue
from pydantic_core import from_json, to_json

SEED_LIMIT = 2**32
"""Seeds are drawn below this, as in A1111, so that a seed fits into every tool that reads infotext."""
SMALLEST_SIDE, LARGEST_SIDE = 64, 4096


def check_side(value: int) -> int:
    if value != 0 and (not SMALLEST_SIDE <= value <= LARGEST_SIDE or value % 8):
        raise ValueError(
            f"must be a multiple of 8 from {SMALLEST_SIDE} to {LARGEST_SIDE}, or 0 for the model's own size"
        )
    return value


def _storable(extras: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """JSON parsers stop at 200 levels and refuse half a surrogate: what is accepted must be readable again."""
    try:
        from_json(b"[" * 100 + to_json(extras) + b"]" * 100)
    except ValueError as error:
        raise ValueError("must be text and numbers, nested at most 100 deep") from error
    return extras


Side = Annotated[int, AfterValidator(check_side)]
Extras = Annotated[dict[str, JsonValue], AfterValidator(_storable)]
Text = Annotated[str, Field(max_length=20_000)]
Name = Annotated[str, Field(max_length=500)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=-1, lt=2**53)]

Image = Annotated[
    str,
    Field(
        max_length=100 * 2**20,
        description="A picture. Asked for: base64, a data URL, or the id of a picture in outputs/; "
        "frozen in a job: `sha256:` and the hash of what is kept in outputs/.inputs",
    ),
]


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Into the fields of a request as a tree, at a path with dots; a part that is not there is begun."""
    *parts, last = path.split(".")
    for part in parts:
        if tree.get(part) is None:
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


ResizeMode = Literal["Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)"]
