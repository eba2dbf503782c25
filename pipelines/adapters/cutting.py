"""Cuts a set of LoRAs to a model: which terms lie on which of its layers, and how much each counts."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from pipelines.adapters.blocks import BASE, Blocks, block_of
from pipelines.adapters.makers import layers_of, makers_names
from pipelines.adapters.methods import shaped, terms_of
from pipelines.adapters.names import DENOISERS, Book, Piece, find
from pipelines.adapters.patch import Patch
from pipelines.adapters.reading import AdapterFile, Params
from pipelines.adapters.terms import Layer, Term, Unfit, layer_of
from pipelines.errors import BadModel
from pipelines.loading.parts import Part
from pipelines.prompt import LoraUse


class Worn(NamedTuple):
    """A file, and how much of it."""

    file: AdapterFile
    use: LoraUse


class Cut(NamedTuple):
    patches: tuple[Patch, ...]
    reading: str
    """Names what changes the text encoders; empty: nothing does."""
    notes: tuple[str, ...]


@torch.inference_mode()
def cut(parts: Mapping[str, Part], worn: Sequence[Worn], books: Mapping[str, Book], must_fit: bool) -> Cut:
    """All patches for these networks. Raises BadModel if a file that `must_fit` has nothing for them."""
    cutter = Cutter(parts, books, must_fit)
    reading = " ".join(f"{one.file.stamp} {one.use}" for one in worn if cutter.add(one))
    return Cut(tuple(cutter.patches.values()), reading, tuple(cutter.notes))


class Cutter:
    """Collects the terms of each layer, file by file."""

    def __init__(self, parts: Mapping[str, Part], books: Mapping[str, Book], must_fit: bool) -> None:
        self.patches: dict[tuple[str, str], Patch] = {}
        self.notes: list[str] = []
        self._parts, self._books, self._must_fit = parts, books, must_fit

    def add(self, worn: Worn) -> bool:
        """True: the file changes a text encoder."""
        factor_of = self._factors(worn.use)
        left_out, fitting, reads = list(worn.file.strange), 0, False
        for name, params in worn.file.layers.items():
            try:
                found = self._terms(find(name, self._books), params)
            except Unfit:
                left_out.append(name)
                continue
            fitting += 1
            for piece, terms in found:
                if factor := factor_of(piece):
                    reads = reads or piece.part not in DENOISERS
                    patch = self.patches.setdefault((piece.part, piece.layer), Patch(piece.part, piece.layer))
                    patch.terms += [term.times(factor) for term in terms]
        self._tell(worn.use.name, fitting, left_out)
        return reads

    def _terms(self, pieces: Sequence[Piece], params: Params) -> list[tuple[Piece, list[Term]]]:
        """Raises Unfit."""
        layers = [layer_of(self._parts[piece.part].module.get_submodule(piece.layer)) for piece in pieces]
        if not pieces or None in layers:
            raise Unfit
        fitting = [layer for layer in layers if layer is not None]
        terms = terms_of(params, pieces[-1].stop or fitting[0].out)
        return [
            (piece, [_cut_to(term, piece, layer) for term in terms])
            for piece, layer in zip(pieces, fitting, strict=True)
        ]

    def _factors(self, use: LoraUse) -> Callable[[Piece], float]:
        """By network, and by block if the prompt says so."""
        weights: Mapping[str, float] = {}
        names: dict[str, str] = {}
        if use.blocks:
            denoiser = next(part for name, part in self._parts.items() if name in DENOISERS)
            names = _makers(denoiser)
            try:
                weights = Blocks(names.values()).weights(use.blocks)
            except ValueError as error:
                self.notes.append(f"The LoRA {use.name} counts in full in all blocks: {error}.")

        def factor(piece: Piece) -> float:
            if piece.part not in DENOISERS:
                return use.te * weights.get(BASE, 1.0)
            return use.unet * weights.get(block_of(names.get(piece.layer, "")), 1.0)

        return factor

    def _tell(self, name: str, fitting: int, left_out: Sequence[str]) -> None:
        count = len(left_out)
        if not fitting and self._must_fit:
            raise BadModel(
                f"The LoRA {name} does not fit this model: it has none of its {count} layers, such as {left_out[0]}. "
                "It was made for a model of another kind."
            )
        if not fitting:
            self.notes.append(f"The LoRA {name} does not fit the second checkpoint, which goes on without it.")
        elif count:
            self.notes.append(
                f"Of the LoRA {name}, {count} of {count + fitting} layers have no place in this model and are left "
                f"out, such as {left_out[0]}."
            )


def _makers(denoiser: Part) -> dict[str, str]:
    """Every layer, and what the makers call it where blocks are numbered by that."""
    layers = [name for name, _ in denoiser.module.named_modules()]
    if denoiser.name != "unet":
        return {name: name for name in layers}
    return {name: (*makers_names(name, layers_of(denoiser.module)), name)[0] for name in layers}


def _cut_to(term: Term, piece: Piece, layer: Layer) -> Term:
    """Raises Unfit."""
    try:
        found = shaped(term if piece.whole else term.rows(piece.of), layer.shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Unfit(str(error)) from error
    if not found.fits(layer):
        raise Unfit
    return found
