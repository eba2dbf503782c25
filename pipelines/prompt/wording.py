"""What the two prompts of a pass say at each of its steps: every text once, and when and how much it counts."""

from dataclasses import dataclass
from typing import NamedTuple


class Term(NamedTuple):
    """A prompt that is drawn towards; several are joined by AND."""

    by_step: tuple[int, ...]
    """Of each step, the text that counts: its place in `Wording.texts`."""
    weight: float


@dataclass(frozen=True)
class Wording:
    texts: tuple[str, ...]
    """Each different text once."""
    towards: tuple[Term, ...]
    away: tuple[int, ...]
    """Of each step, the text to stay away from; empty where nothing is stayed away from."""


def worded(prompt: str, negative_prompt: str, steps: int, guided: bool = True) -> Wording:
    """Without guidance the negative prompt has nothing to say."""
    texts = (prompt, negative_prompt) if guided else (prompt,)
    return Wording(texts, (Term((0,) * steps, 1.0),), (1,) * steps if guided else ())
