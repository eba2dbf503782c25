"""What a worker keeps of LoRAs between pictures: files that were read, and whole sets as they were put on a model.

`dressed` puts the set of a pass on and takes it off again. A set that was worn before costs no more than its hooks.
"""

from collections import OrderedDict
from collections.abc import Generator, Hashable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelines.adapters.cutting import Worn, cut
from pipelines.adapters.names import Book, book_of
from pipelines.adapters.patch import Patch
from pipelines.adapters.reading import AdapterFile, read_adapter
from pipelines.errors import ModelNotFound
from pipelines.families.base import LoadedModel
from pipelines.loading.parts import Part
from pipelines.loading.weights import stamp
from pipelines.prompt import LoraUse
from pipelines.types import Kind, ModelInfo

FILE_BYTES = 512 * 2**20
"""Of files that were read; what is in use counts, and stays in any case."""
SET_BYTES = 512 * 2**20
"""Of sets where they compute."""
BOOKS = 16


class Kit(Protocol):
    """What dressing needs of a job's kit."""

    def file(self, kind: Kind, name: str) -> ModelInfo: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Dress:
    """A set of LoRAs, cut to a model."""

    patches: tuple[Patch, ...]
    reading: str
    """Names what of it changes the text encoders; empty: nothing."""
    notes: tuple[str, ...]

    @contextmanager
    def on(self, model: LoadedModel) -> Generator[None, None, None]:
        with ExitStack() as stack:
            for patch in self.patches:
                for handle in patch.put_on(model.parts[patch.part].module.get_submodule(patch.layer)):
                    stack.callback(handle.remove)
            yield

    @property
    def size_bytes(self) -> int:
        return sum(patch.ready.size_bytes for patch in self.patches if patch.ready)

    def leave_device(self) -> None:
        """It comes again when it is called."""
        for patch in self.patches:
            patch.ready = None


NAKED = Dress((), "", ())


class Wardrobe:
    def __init__(self, file_bytes: int = FILE_BYTES, set_bytes: int = SET_BYTES) -> None:
        self._file_bytes, self._set_bytes = file_bytes, set_bytes
        self._files: OrderedDict[Hashable, AdapterFile] = OrderedDict()
        self._books: OrderedDict[str, Book] = OrderedDict()
        self._sets: OrderedDict[Hashable, Dress] = OrderedDict()

    @contextmanager
    def dressed(
        self, model: LoadedModel, uses: Sequence[LoraUse], kit: Kit, must_fit: bool = True
    ) -> Generator[str, None, None]:
        """The model with these LoRAs on all of its networks. Gives `Dress.reading`. A missing file is a note; raises
        BadModel for one that is broken or, if it `must_fit`, has nothing for this model."""
        dress = self._dress(model, uses, kit, must_fit)
        for note in dress.notes:
            kit.note(note)
        with dress.on(model):
            yield dress.reading
        self._keep_within_budget(model.device)

    def clear(self) -> None:
        """Everything out of memory."""
        self._files.clear()
        self._sets.clear()

    def _dress(self, model: LoadedModel, uses: Sequence[LoraUse], kit: Kit, must_fit: bool) -> Dress:
        worn = [one for use in uses if (use.te or use.unet) and (one := self._worn(use, kit))]
        if not worn:
            return NAKED
        parts = tuple((name, part.key, str(part.dtype)) for name, part in sorted(model.parts.items()))
        key = (tuple((one.file.stamp, one.use) for one in worn), parts, must_fit)
        if key not in self._sets:
            books = {name: self._book(part) for name, part in model.parts.items()}
            self._sets[key] = Dress(*cut(model.parts, worn, books, must_fit))
        self._sets.move_to_end(key)
        return self._sets[key]

    def _worn(self, use: LoraUse, kit: Kit) -> Worn | None:
        try:
            path = kit.file(Kind.LORA, use.name).path
            key = stamp(path)
        except ModelNotFound as error:
            kit.note(f"{error} The picture is made without it.")
            return None
        if key not in self._files:
            self._files[key] = read_adapter(path)
        self._files.move_to_end(key)
        return Worn(self._files[key], use)

    def _book(self, part: Part) -> Book:
        if part.key not in self._books:
            self._books[part.key] = book_of(part) if part.name != "vae" else {}
        self._books.move_to_end(part.key)
        while len(self._books) > BOOKS:
            self._books.popitem(last=False)
        return self._books[part.key]

    def _keep_within_budget(self, device: torch.device) -> None:
        """On a card, only the last set stays: nobody has planned for more."""
        last = next(reversed(self._sets.values()), NAKED)
        if device.type != "cpu":
            for dress in self._sets.values():
                if dress is not last:
                    dress.leave_device()
        while len(self._sets) > 1 and sum(dress.size_bytes for dress in self._sets.values()) > self._set_bytes:
            self._sets.popitem(last=False)
        while len(self._files) > 1 and sum(file.size_bytes for file in self._files.values()) > self._file_bytes:
            self._files.popitem(last=False)
