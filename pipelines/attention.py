"""Attention by whichever program does it best: a table of backends, each tried with a real call before it is trusted.

`processors.py` makes networks use it.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import UnknownChoice

log = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Query, key and value, all [rows, heads, tokens, dim], and a mask to be added or None -> like the query."""

HEAD_DIMS = (40, 64, 80, 128, 160)
"""Of SD 1 (40, 80, 160), SD 2 and SDXL (64) and the transformers (64, 128)."""
CHUNK_BYTES = 2**28
"""Of scores that the sliced backend has in memory at once."""


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def sliced(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """A part of the queries after another: where no fused attention is there, the scores of all do not fit."""
    result = torch.empty_like(query)
    a_query = query.shape[0] * query.shape[1] * key.shape[2] * 4
    step = max(1, CHUNK_BYTES // a_query)
    for start in range(0, query.shape[2], step):
        piece = slice(start, start + step)
        scores = query[:, :, piece] @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + (mask if mask.shape[-2] == 1 else mask[:, :, piece])
        result[:, :, piece] = scores.softmax(-1).to(value.dtype) @ value
    return result


def xformers(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    attend = _quietly("xformers.ops").memory_efficient_attention
    if mask is not None:
        mask = mask.expand(*query.shape[:3], key.shape[2]).contiguous()
    turned = (tensor.transpose(1, 2) for tensor in (query, key, value))
    out: Tensor = attend(*turned, attn_bias=mask)
    return out.transpose(1, 2)


def flash(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return sdpa(query, key, value, mask)
    attend = _quietly("flash_attn").flash_attn_func
    out: Tensor = attend(*(tensor.transpose(1, 2) for tensor in (query, key, value)))
    return out.transpose(1, 2)


def sage(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Its kernels know few sizes of heads; SD 1's have others, and those go to PyTorch's own."""
    if mask is not None or query.shape[-1] not in (64, 96, 128):
        return sdpa(query, key, value, mask)
    out: Tensor = _quietly("sageattention").sageattn(query, key, value)
    return out


@cache
def _quietly(module: str) -> Any:
    """xformers prints six lines on a machine without CUDA."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), _muted(module.partition(".")[0]):
        warnings.simplefilter("ignore")
        return import_module(module)


@contextlib.contextmanager
def _muted(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True)
class Backend:
    attend: Attend
    label: str
    """For people."""
    package: str = ""
    """What it needs to be installed; empty: nothing."""
    cuda: bool = False
    """It runs on CUDA devices only."""
    dispatched: str = ""
    """Its name in diffusers' dispatcher; empty: it has none there."""


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(sdpa, "SDPA", dispatched="native"),
    "xformers": Backend(xformers, "xformers", "xformers", cuda=True, dispatched="xformers"),
    "flash": Backend(flash, "FlashAttention", "flash_attn", cuda=True, dispatched="flash"),
    "sage": Backend(sage, "SageAttention", "sageattention", cuda=True, dispatched="sage"),
    "sliced": Backend(sliced, "sliced"),
}
DEFAULT = "sdpa"


@dataclass(frozen=True)
class Choice:
    name: str
    reason: str = ""
    """Why it is not the one that was asked for."""


def choose(wish: str, device: torch.device) -> Choice:
    """The backend that was asked for, or the default with the reason why. Raises UnknownChoice."""
    if wish == "auto":
        return Choice(DEFAULT)
    if wish not in BACKENDS:
        raise UnknownChoice("attention backend", wish, ["auto", *BACKENDS])
    reason = why_not(wish, device)
    if not reason:
        return Choice(wish)
    text = f"{BACKENDS[wish].label} attention cannot be used ({reason}). {BACKENDS[DEFAULT].label} is used instead."
    log.warning(text)
    return Choice(DEFAULT, text)


@cache
def why_not(name: str, device: torch.device) -> str:
    """Empty if it works here, which a small call for each size of head has shown; else the reason."""
    backend = BACKENDS[name]
    if known := availability(device)[name]:
        return known
    for dim in HEAD_DIMS:
        try:
            _try(backend.attend, dim, device)
        except (RuntimeError, NotImplementedError, ImportError, OSError, ValueError, AssertionError) as error:
            return f"a call with heads of {dim} failed ({(str(error).strip() or type(error).__name__).splitlines()[0]})"
    return ""


def availability(device: torch.device) -> dict[str, str]:
    """Every backend -> why it cannot be used here, as far as that is known without loading it; or empty."""
    return {
        name: f"needs an NVIDIA card, and this runs on {device.type.upper()}"
        if backend.cuda and device.type != "cuda"
        else f"the package {backend.package} is not installed"
        if backend.package and find_spec(backend.package) is None
        else ""
        for name, backend in BACKENDS.items()
    }


def _try(attend: Attend, dim: int, device: torch.device) -> None:
    dtype = torch.float16 if device.type != "cpu" else torch.float32
    query, key, value = torch.randn(3, 1, 2, 64, dim, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    found, right = attend(query, key, value, None), sdpa(query, key, value, None)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if not torch.allclose(found.float(), right.float(), atol=0.05):
        raise RuntimeError("its result is wrong")
