"""The prompt language of this field, read without torch. `wording` joins its parts for one pass of a picture."""

from pipelines.prompt.attention import Span, parse
from pipelines.prompt.tags import LoraUse, loras_in, names_in
from pipelines.prompt.wording import Term, Wording, worded

__all__ = ["LoraUse", "Span", "Term", "Wording", "loras_in", "names_in", "parse", "worded"]
