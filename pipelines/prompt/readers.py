"""The table of what reads a prompt in each family, and how far it can follow the prompt language."""

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Reader(NamedTuple):
    kind: Literal["clip", "t5", "qwen"]
    """Whose tokens are counted."""
    tokens: int
    """Of a chunk for CLIP, which takes any number of them; else the most that are read."""
    weights: bool = True
    clip_skip: bool = True
    prose: bool = False
    """It reads sentences: a number behind a colon at the end of a prompt is no weight."""
    name: str = "CLIP"

    @property
    def chunked(self) -> bool:
        return self.kind == "clip"


CLIP = Reader("clip", 75)
READERS: Mapping[str, Reader] = {
    "sd1": CLIP,
    "sd2": CLIP,
    "sdxl": CLIP,
    "sd3": Reader("t5", 256, prose=True, name="T5"),
    "flux": Reader("t5", 512, clip_skip=False, prose=True, name="T5"),
    "flux2": Reader("qwen", 512, weights=False, clip_skip=False, prose=True, name="Qwen3"),
    "z_image": Reader("qwen", 512, weights=False, clip_skip=False, prose=True, name="Qwen3"),
    "qwen_image": Reader("qwen", 1024, weights=False, clip_skip=False, prose=True, name="Qwen2.5-VL"),
}
