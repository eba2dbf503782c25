"""CLIP's tokenizer, which SD 1 to 3, SDXL and Flux share: its vocabulary follows from the merges beside this file."""

import lzma
from functools import cache
from importlib.resources import files

from transformers.models.clip.tokenization_clip import CLIPTokenizer

MERGES = "clip_merges.txt.xz"
"""48,894 pairs, the most frequent first: those of bpe_simple_vocab_16e6.txt (OpenAI, MIT) that CLIP uses."""


@cache
def clip() -> CLIPTokenizer:
    """49,408 tokens: bytes, bytes at the end of a word, merges, begin (49406) and end (49407)."""
    text = lzma.decompress((files(__package__) / MERGES).read_bytes()).decode()
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in text.split("\n"))]
    tokens = [*letters(), *(f"{letter}</w>" for letter in letters()), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(tokens)}, merges, model_max_length=77)


def letters() -> list[str]:
    """The 256 bytes in CLIP's order, as GPT-2 writes them: what can be printed as it is, then the rest from U+0100."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printed), *(chr(0x100 + i) for i in range(256 - len(printed)))]
