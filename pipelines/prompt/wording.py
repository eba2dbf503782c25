"""What the two prompts of a pass say at each of its steps: every text once, and when and how much it counts.

comments out -> tags out -> split at AND -> what each part says at each step -> every different text once
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipelines.prompt.comments import uncommented
from pipelines.prompt.composition import composed
from pipelines.prompt.schedule import Timeline, scheduled
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

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(term.weight for term in self.towards)

    def at(self, step: int, away: bool = True) -> tuple[int, ...]:
        """The texts that count at a step, counted from 0: one for each prompt, last what to stay away from."""
        lists = [term.by_step for term in self.towards]
        if away and self.away:
            lists.append(self.away)
        return tuple(texts[min(step, len(texts) - 1)] for texts in lists)


def worded(
    prompt: str, negative_prompt: str, steps: int | Timeline, guided: bool = True, prose: bool = False
) -> Wording:
    """`guided`: the pass stays away from the negative prompt. So it does as well where the weights of the parts do not
    add up to 1: they say how far to go from there. `prose`: the model reads sentences, in which a colon and a number
    at the end are no weight."""
    timeline = Timeline(steps) if isinstance(steps, int) else steps
    tags = untagged(uncommented(prompt))
    parts = composed(tags.text, prose)
    weights = [part.weight for part in parts]
    texts: dict[str, int] = {}

    def places(text: str) -> tuple[int, ...]:
        return tuple(texts.setdefault(each, len(texts)) for each in scheduled(text, timeline))

    towards = tuple(Term(places(part.text), part.weight) for part in parts)
    away = guided or not math.isclose(math.fsum(weights), 1)
    away_places = places(uncommented(negative_prompt)) if away else ()
    return Wording(tuple(texts), towards, away_places, tags.loras, tags.notes)


def joined(wordings: Sequence[Wording]) -> tuple[Wording, ...]:
    """The same wordings over one list of texts."""
    if len(wordings) == 1:
        return tuple(wordings)
    texts = {text: place for place, text in enumerate(dict.fromkeys(t for each in wordings for t in each.texts))}
    moved = []
    for each in wordings:
        places = [texts[text] for text in each.texts]
        towards = tuple(Term(tuple(places[old] for old in term.by_step), term.weight) for term in each.towards)
        away = tuple(places[old] for old in each.away)
        moved.append(replace(each, texts=tuple(texts), towards=towards, away=away))
    return tuple(moved)
