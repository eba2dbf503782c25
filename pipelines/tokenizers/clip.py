"""CLIP's tokenizer, which SD 1 to 3, SDXL and Flux share: its vocabulary follows from the merges beside this file.

No torch and no transformers: the web process counts with it.
"""

import json
import lzma
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import RobertaProcessing

from pipelines.errors import BadModel

MERGES = "clip_merges.txt.xz"
"""48,894 pairs, the most frequent first: those of bpe_simple_vocab_16e6.txt (OpenAI, MIT) that CLIP uses."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Where a text is cut before letters are merged: https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py"""

Merges = Sequence[tuple[str, str]]


class Clip:
    """A vocabulary at work."""

    def __init__(self, vocabulary: Mapping[str, int], merges: Merges) -> None:
        """Raises KeyError where begin or end are not in it."""
        self.begin, self.end = vocabulary[BEGIN], vocabulary[END]
        self.comma = vocabulary.get(",</w>")
        self.tokenizer = _tokenizer(dict(vocabulary), list(merges))

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def ids(self, text: str) -> list[int]:
        """Without begin and end."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found


@cache
def clip() -> Clip:
    """49,408 tokens: bytes, bytes at the end of a word, merges, begin (49406) and end (49407)."""
    return Clip(*bundled())


@cache
def bundled() -> tuple[Mapping[str, int], Merges]:
    text = lzma.decompress((files(__package__) / MERGES).read_bytes()).decode()
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in text.split("\n"))]
    tokens = [*letters(), *(f"{letter}</w>" for letter in letters()), *(left + right for left, right in merges)]
    return {token: number for number, token in enumerate([*tokens, BEGIN, END])}, merges


def letters() -> list[str]:
    """The 256 bytes in CLIP's order, as GPT-2 writes them: what can be printed as it is, then the rest from U+0100."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printed), *(chr(0x100 + i) for i in range(256 - len(printed)))]


def tokenizer_of(path: Path, name: str = "tokenizer") -> Clip:
    """A folder in diffusers' layout brings its own, a single file none. Raises BadModel if that is broken."""
    if not path.is_dir():
        return clip()
    folder = path / name
    if not folder.is_dir():
        raise BadModel(f"The model {path.name} lacks its {name}. Download it again.")
    try:
        vocabulary, merges, added = _read(folder)
        if vocabulary == bundled()[0] and not added:
            return clip()
        if strange := [pair for pair in merges if not {*pair, "".join(pair)} <= vocabulary.keys()]:
            raise ValueError(f"{strange[0]} is not in the vocabulary")
        found = Clip(vocabulary, merges)
        found.tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        raise BadModel(f"{path.name}/{name} is broken ({reason}). Download the model again.") from error
    return found


def _read(folder: Path) -> tuple[Mapping[str, int], Merges, list[str]]:
    """Vocabulary, merges, and tokens that were added to them, in the order of their numbers."""
    whole, beside = folder / "tokenizer.json", folder / "added_tokens.json"
    if whole.is_file():
        content: dict[str, Any] = _json(whole)
        vocabulary, lines = content["model"]["vocab"], content["model"]["merges"]
        added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    else:
        vocabulary = _json(folder / "vocab.json")
        lines = [line for line in (folder / "merges.txt").read_text("utf-8").splitlines() if line]
        lines = lines[1:] if lines and lines[0].startswith("#version") else lines
        added = _json(beside) if beside.is_file() else {}
    pairs = (line.split(" ") if isinstance(line, str) else line for line in lines)
    merges = [(str(left), str(right)) for left, right in pairs]
    return vocabulary, merges, sorted(added.keys() - vocabulary.keys(), key=lambda token: added[token])


def _json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    model = BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    cut = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = RobertaProcessing((END, vocabulary[END]), (BEGIN, vocabulary[BEGIN]), False, False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (BEGIN, END)])
    return tokenizer
