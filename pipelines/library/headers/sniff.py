"""What is a file really? Its first bytes against its suffix."""

from pathlib import Path
from typing import NamedTuple

from pipelines.errors import BadModel
from pipelines.types import Format

HEAD_BYTES = 64
"""As many bytes of a file as `check_suffix` wants to see."""

SUFFIXES: dict[str, Format] = {
    ".safetensors": Format.SAFETENSORS,
    ".sft": Format.SAFETENSORS,
    ".gguf": Format.GGUF,
    ".ckpt": Format.PICKLE,
    ".pt": Format.PICKLE,
    ".pth": Format.PICKLE,
    ".bin": Format.PICKLE,
}


class Magic(NamedTuple):
    """How a kind of file begins. `format` is None for what is no model at all; `words` are shown to the user."""

    start: bytes
    offset: int
    format: Format | None
    words: str


MAGICS = (
    Magic(b"GGUF", 0, Format.GGUF, "a GGUF file: give it the suffix .gguf"),
    Magic(b'{"', 8, Format.SAFETENSORS, "a safetensors file: give it the suffix .safetensors"),
    Magic(
        b"PK\x03\x04", 0, Format.PICKLE, "a zip archive: a torch file (give it the suffix .pt), or a download to unpack"
    ),
    Magic(b"\x80\x02", 0, Format.PICKLE, "a pickle: give it the suffix .pt"),
    Magic(b"version https://git-lfs", 0, None, "a Git LFS pointer and not the model: fetch it with `git lfs pull`"),
    Magic(b"<", 0, None, "a web page, such as an error or a login page, and not the model: download it again"),
    Magic(b'{"', 0, None, "a JSON text, such as an error message, and not the model: download it again"),
    Magic(b"\x1f\x8b", 0, None, "a gzip archive: unpack it"),
    Magic(b"Rar!", 0, None, "a RAR archive: unpack it"),
    Magic(b"7z\xbc\xaf", 0, None, "a 7-Zip archive: unpack it"),
)


def check_suffix(path: Path, head: bytes) -> Format:
    """The format that the suffix promises. Raises BadModel if the file begins like something else."""
    promised = SUFFIXES[path.suffix.lower()]
    if not head:
        raise BadModel("It is empty: the copy or download never began. Get it again.")
    if not head.strip(b"\0"):
        raise BadModel("It begins with nothing but zeros: the copy or download is not finished, or failed.")
    for magic in MAGICS:
        if head[magic.offset :].startswith(magic.start):
            if magic.format == promised:
                return promised
            raise BadModel(f"It is named {path.suffix} but is {magic.words}.")
    return promised
