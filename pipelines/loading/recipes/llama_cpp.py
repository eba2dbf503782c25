"""llama.cpp's names of a text encoder's weights (`blk.3.attn_q.weight`), as GGUF files have them, and our own."""

import re
from collections.abc import Mapping
from typing import NamedTuple


class LlamaCpp(NamedTuple):
    """How one architecture is called there and here."""

    block: str
    """What stands before a block's number in the file, such as `blk.`"""

    layers: str
    """and in the module, such as `layers.`"""

    inside: Mapping[str, str]
    """A layer inside of a block -> the module's."""

    ends: Mapping[str, str]
    """Whole names outside of the blocks."""

    def own(self, name: str) -> str:
        """The module's name; empty for what is not in this layout."""
        found = re.fullmatch(re.escape(self.block) + r"(\d+)\.(\w+)\.(weight|bias)", name)
        if found and found[2] in self.inside:
            return f"{self.layers}{found[1]}.{self.inside[found[2]]}.{found[3]}"
        return self.ends.get(name, "")
