"""Which embeddings does a prompt name? By the same tokens as the encoder finds them, without torch."""

from collections.abc import Iterable

from pipelines.library.embeddings import word_of
from pipelines.prompt.attention import read
from pipelines.prompt.chunks import Lexicon, chunked, lexicon
from pipelines.prompt.readers import CLIP
from pipelines.prompt.schedule import Timeline
from pipelines.prompt.wording import worded
from pipelines.tokenizers.clip import clip

ALL_STEPS = 150
"""In so many steps everything that changes in a prompt has its turn."""


def embeddings_named_in(prompts: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """Of these files, those whose name stands in a prompt: `words/EasyNegative.pt` is named by `easynegative`. Of two
    with the same name the first counts."""
    prompts = dict.fromkeys(prompts)
    squeezed = _squeezed("\n".join(prompts))
    possible: dict[str, str] = {}
    for name in names:
        if _squeezed(word_of(name)) in squeezed:
            possible.setdefault(word_of(name), name)
    if not possible:
        return ()
    known = lexicon(((word, 1) for word in possible), clip().ids)
    found = {word for prompt in prompts for word in _words(prompt, known)}
    return tuple(name for word, name in possible.items() if word in found)


def _words(prompt: str, known: Lexicon) -> set[str]:
    texts = {text for earlier in (None, 0) for text in worded(prompt, "", Timeline(ALL_STEPS, earlier)).texts}
    cuts = [chunked(read(text), clip().ids, clip().comma, CLIP.tokens, known) for text in texts]
    return {word.name for cut in cuts for word in cut.words}


def _squeezed(text: str) -> str:
    """Without what tokens do not tell: spaces, and escapes before brackets. Only a sieve: far quicker than tokens."""
    return "".join(text.split()).replace("\\", "").lower()
