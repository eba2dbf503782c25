"""What the two prompts of a pass say at each of its steps: every text once, and when and how much it counts."""

from dataclasses import dataclass
from typing import NamedTuple

from pipelines.prompt.tags import LoraUse, untagged


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
    loras: tuple[LoraUse, ...] = ()
    """Of the whole pass. The same one may come twice: its weights add up."""
    notes: tuple[str, ...] = ()
    """What the prompt asks for and can't be done."""


def worded(prompt: str, negative_prompt: str, steps: int, guided: bool = True) -> Wording:
    """Without guidance the negative prompt has nothing to say."""
    tags = untagged(prompt)
    texts = (tags.text, negative_prompt) if guided else (tags.text,)
    towards = (Term((0,) * steps, 1.0),)
    return Wording(texts, towards, (1,) * steps if guided else (), tags.loras, tags.notes)
