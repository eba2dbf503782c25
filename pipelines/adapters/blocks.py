"""Weights of a LoRA by blocks of the network, as the extension LoRA Block Weight writes them: `lbw=1,0,0.5,...`.

A list begins with BASE, the text encoders and what lies in no block. Then it names either all blocks, in the order in
which a picture passes through them (26 numbers for SD 1 and 2, 20 for SDXL), or only those that listen to the prompt
(17 and 12): the others have 0 then. No torch.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

BASE = "BASE"
UNET = (
    ("IN", re.compile(r"input_blocks\.(\d+)\.")),
    ("M", re.compile(r"middle_block()\.")),
    ("OUT", re.compile(r"output_blocks\.(\d+)\.")),
)
TRANSFORMER = re.compile(r"(single_|)(?:transformer_blocks|layers)\.(\d+)\.")
LISTENS = ".transformer_blocks."
LIMIT = 100.0

PRESETS: Mapping[str, str] = {
    "NONE": "",
    "INS": "BASE IN01 IN02",
    "IND": "BASE IN05 IN07 IN08",
    "MIDD": "BASE IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06",
    "OUTD": "BASE OUT03 OUT04 OUT05 OUT06",
    "OUTS": "BASE OUT07 OUT08 OUT09 OUT10 OUT11",
}
"""The extension's, for SD 1: the blocks that count in full. ALL, INALL and OUTALL fit any network."""
GROUPS = {"ALL": ("",), "INALL": (BASE, "IN"), "OUTALL": (BASE, "OUT")}


def block_of(makers_name: str) -> str:
    """IN04, M00, OUT11; of transformers D03 and S21, blocks of two streams and of one. BASE: in none of them."""
    for kind, pattern in UNET:
        if found := pattern.match(makers_name):
            return f"{kind}{int(found[1] or 0):02}"
    if found := TRANSFORMER.match(makers_name):
        return f"{'S' if found[1] else 'D'}{int(found[2]):02}"
    return BASE


def order(block: str) -> tuple[int, int]:
    kinds = ("IN", "M", "OUT", "D", "S")
    kind = re.sub(r"\d", "", block)
    return (kinds.index(kind), int(block.removeprefix(kind)))


class Blocks:
    """Of one network: its blocks, and which of them listen to the prompt."""

    def __init__(self, makers_names: Iterable[str]) -> None:
        names = list(makers_names)
        found = {block_of(name) for name in names} - {BASE}
        self.all = sorted(found, key=order)
        listening = {block_of(name) for name in names if LISTENS in name}
        self.listening = [block for block in self.all if block in listening] or self.all

    def weights(self, text: str) -> dict[str, float]:
        """Block -> weight. Raises ValueError with a sentence."""
        name = text.strip().upper()
        if name in GROUPS:
            return {block: float(block.startswith(GROUPS[name])) for block in (BASE, *self.all)}
        if name in PRESETS and {*PRESETS[name].split(), BASE} <= {BASE, *self.all}:
            full = PRESETS[name].split()
            return {block: float(block in full) for block in (BASE, *self.all)}
        numbers = _numbers(text)
        for blocks in (self.all, self.listening):
            if numbers and len(numbers) == len(blocks) + 1:
                return {**dict.fromkeys(self.all, 0.0), **dict(zip((BASE, *blocks), numbers, strict=True))}
        raise ValueError(self._advice(text))

    def _advice(self, text: str) -> str:
        counts = " or ".join(str(count + 1) for count in sorted({len(self.all), len(self.listening)}))
        return (
            f"lbw={text} says nothing about this model's blocks: it takes {counts} numbers, ({BASE}, "
            f"{', '.join(self.listening)}), or {', '.join(GROUPS)}"
        )


def _numbers(text: str) -> Sequence[float]:
    try:
        numbers = [float(piece) for piece in text.split(",")]
    except ValueError:
        return ()
    return [max(-LIMIT, min(LIMIT, number)) for number in numbers] if all(map(math.isfinite, numbers)) else ()
