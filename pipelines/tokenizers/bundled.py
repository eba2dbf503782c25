"""T5's and Qwen's tokenizers, from vocabularies that lie beside this file: no download, no model folder needed."""

import lzma
from functools import cache
from importlib.resources import files

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from pipelines.tokenizers.clip import letters

T5_PAD = 0
QWEN_PAD = 151_643

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen2 and Qwen3 cut a text before they merge letters."""

QWEN_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
QWEN_ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
"""Tokens behind the vocabulary, in the order of their numbers from 151,643 on."""


@cache
def t5() -> Tokenizer:
    """32,100 pieces of Google's T5 1.1; `encode(text).ids` ends with </s> (1). Pad with 0."""
    return Tokenizer.from_str(_read("t5.json.xz"))


@cache
def qwen() -> Tokenizer:
    """Alibaba's for Qwen2, Qwen2.5 and Qwen3: bytes and 151,387 merges. It adds nothing to a text."""
    merges = [
        (left, right) for left, _, right in (line.partition(" ") for line in _read("qwen_merges.txt.xz").split("\n"))
    ]
    tokens = [*letters(), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.normalizer = NFC()
    cut = Split(Regex(QWEN_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in QWEN_ADDED])
    return tokenizer


def _read(name: str) -> str:
    return lzma.decompress((files(__package__) / name).read_bytes()).decode()
