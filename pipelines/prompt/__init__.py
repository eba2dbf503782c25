"""The prompt language of this field, read without torch. `wording` joins its parts for one pass of a picture."""

from pipelines.prompt.attention import Span, parse
from pipelines.prompt.wording import Term, Wording, worded

__all__ = ["Span", "Term", "Wording", "parse", "worded"]
