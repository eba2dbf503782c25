"""What trainers call the layers of our networks. Names only: no weight is looked at.

Trainers write a layer's path with dots or with underscores, as diffusers has it or as the model's makers do, where
queries, keys and values are often one matrix: such a layer is several pieces of ours. With underscores for all that
separates, one table serves all of them, and every method.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pipelines.adapters.makers import layers_of, makers_names, transformer_rows
from pipelines.loading.parts import Part

DENOISERS = ("unet", "transformer")


class Piece(NamedTuple):
    """A layer of ours, and which rows of the trainer's layer are its own."""

    part: str
    layer: str
    first: int = 0
    stop: int = 0
    """0: all rows."""
    swapped: bool = False
    """The halves have changed places: scale and shift of the modulation of SD 3's and Flux's last layer."""

    @property
    def whole(self) -> bool:
        return not self.stop and not self.swapped

    def of(self, rows: Tensor) -> Tensor:
        """The piece of a tensor with one row for each of the layer's outputs."""
        taken = rows[self.first : self.stop] if self.stop else rows
        return torch.cat(taken.chunk(2)[::-1]) if self.swapped else taken


Book = Mapping[str, tuple[Piece, ...]]
"""A trainer's name of a layer, with underscores alone -> the pieces of ours that it is."""

PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((f"{way}_unet_", DENOISERS) for way in ("lora", "oft")),
    *((f"{way}_{te}_", ("text_encoder",)) for way in ("lora", "oft") for te in ("te", "te1")),
    *((f"{way}_te2_", ("text_encoder_2",)) for way in ("lora", "oft")),
    ("lora_te3_", ("text_encoder_3", "text_encoder_2")),  # T5, which is Flux's second
    ("unet_", DENOISERS),
    ("transformer_", DENOISERS),
    ("model_diffusion_model_", DENOISERS),
    ("diffusion_model_", DENOISERS),
    ("base_model_model_", (*DENOISERS, "text_encoder")),
    ("text_encoders_clip_l_transformer_", ("text_encoder",)),
    ("text_encoders_clip_g_transformer_", ("text_encoder_2",)),
    ("text_encoders_t5xxl_transformer_", ("text_encoder_3", "text_encoder_2")),
    ("text_encoder_2_", ("text_encoder_2",)),
    ("text_encoder_3_", ("text_encoder_3",)),
    ("text_encoder_", ("text_encoder",)),
    ("lycoris_", (*DENOISERS, "text_encoder")),
    ("", DENOISERS),
)
"""How a name begins -> the networks that it may mean, of which a model has one."""


def plain(name: str) -> str:
    """With underscores alone, and without what old versions of diffusers put between."""
    return re.sub(r"[.\-]", "_", name.replace(".processor.", "."))


def find(name: str, books: Mapping[str, Book]) -> tuple[Piece, ...]:
    """Where a trainer's layer lies in our networks; empty if nowhere. `books`: one for each part of the model."""
    flat = plain(name)
    for prefix, parts in PREFIXES:
        if not flat.startswith(prefix):
            continue
        for part in parts:
            if found := books.get(part, {}).get(flat[len(prefix) :]):
                return found
    return ()


def book_of(part: Part) -> Book:
    """Every name that a trainer may have for a layer of this network."""
    layers = {name: module for name, module in part.module.named_modules() if name and _bears(module)}
    book: dict[str, tuple[Piece, ...]] = {plain(name): (Piece(part.name, name),) for name in layers}
    for name in layers:
        for other in _others(part, name):
            book.setdefault(plain(other), (Piece(part.name, name),))
    for theirs, ours in transformer_rows(part.module):
        book.setdefault(plain(theirs), tuple(_pieces(part, ours)))
    return book


def _pieces(part: Part, layers: tuple[str, ...]) -> Iterator[Piece]:
    first = stop = 0
    for layer in layers:
        if len(layers) > 1:
            first, stop = stop, stop + int(cast(Any, part.module.get_submodule(layer)).out_features)
        around = part.module.get_submodule(layer.rpartition(".")[0])
        yield Piece(part.name, layer, first, stop, type(around).__name__ == "AdaLayerNormContinuous")


def _bears(module: nn.Module) -> bool:
    return next(iter(module.parameters(recurse=False)), None) is not None


def _others(part: Part, name: str) -> Iterator[str]:
    if name.endswith(".to_out.0"):
        yield name.removesuffix(".0")
    if part.name == "unet":
        yield from makers_names(name, layers_of(part.module))
    if part.name.startswith("text_encoder"):
        bare = name.removeprefix("text_model.")
        yield from (bare, f"text_model.{bare}")
        for ours, old in OLD_CLIP.items():
            if bare.endswith(ours):
                yield f"text_model.{bare.removesuffix(ours)}{old}"


OLD_CLIP = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""Names that diffusers gave the text encoder's layers until 2023."""
