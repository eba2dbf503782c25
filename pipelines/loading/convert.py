"""Turns a pickle (.ckpt, .pt, .bin) into a safetensors file, once: it opens faster, and can hold no program."""

import json
import os
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.errors import BadModel, PipelineError
from pipelines.loading.arena import ALIGNMENT
from pipelines.loading.weights import DTYPES, open_weights

NAMES = {dtype: name for name, dtype in DTYPES.items()}

PICKLES = (".ckpt", ".pt", ".pth", ".bin")


class Spec(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]


def to_safetensors(path: Path, tick: Callable[[float], None] = lambda fraction: None) -> Path:
    """Write the same tensors beside the file, which stays. Raises PipelineError if there is such a file already.

    `tick` hears the share that is done; if it raises, nothing is left behind.
    """
    if path.suffix.lower() not in PICKLES:
        raise PipelineError(f"{path.name} is no pickle; only {', '.join(PICKLES)} can be converted.")
    target = path.with_suffix(".safetensors")
    if target.exists():
        raise PipelineError(f"There is a {target.name} already. Move or delete it first, if it is not this model.")
    tensors = open_weights(path)
    unknown = sorted({str(tensor.dtype) for tensor in tensors.values()} - {str(dtype) for dtype in NAMES})
    if unknown:
        raise BadModel(f"{path.name} holds numbers of the type {unknown[0]}, which safetensors does not know.")
    tensors = dict(sorted(tensors.items(), key=lambda item: item[1].nbytes % ALIGNMENT > 0))  # odd ones move no other
    specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    total = sum(tensor.nbytes for tensor in tensors.values()) or 1

    def one_by_one() -> Iterable[Tensor]:
        done = 0
        for tensor in tensors.values():
            tick(done / total)
            yield tensor
            done += tensor.nbytes

    write(target, specs, one_by_one(), {"format": "pt", "converted_from": path.name})
    tick(1.0)
    return target


def write(target: Path, specs: Mapping[str, Spec], tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file out of tensors that need not be in memory together, in the order of `specs`.

    It has its name once it is complete, and replaces no other.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    place = 0
    for name, (dtype, shape) in specs.items():
        size = dtype.itemsize * int(torch.Size(shape).numel())
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % ALIGNMENT)  # so that weights can be computed with where they lie
    unfinished = target.with_name(f"{target.name}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for tensor in tensors:
                file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            raise PipelineError(f"There is a {target.name} already, made in the meantime.")
        unfinished.rename(target)
    except OSError as error:
        raise PipelineError(f"{target.name} could not be written: {error.strerror or error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    """`python -m pipelines.loading.convert FILE`: prints where the new file lies, or on stderr why there is none."""
    try:
        sys.stdout.write(f"{to_safetensors(Path(sys.argv[1]))}\n")
    except PipelineError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
