"""The prompt language of this field, read without torch. `wording` joins its parts for one pass of a picture."""

from pipelines.prompt.attention import Span, parse, read
from pipelines.prompt.readers import READERS, Reader
from pipelines.prompt.schedule import Timeline
from pipelines.prompt.tags import LoraUse, loras_in, names_in
from pipelines.prompt.wording import Term, Wording, worded

__all__ = [
    "READERS",
    "LoraUse",
    "Reader",
    "Span",
    "Term",
    "Timeline",
    "Wording",
    "loras_in",
    "names_in",
    "parse",
    "read",
    "worded",
]
