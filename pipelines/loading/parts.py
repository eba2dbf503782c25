"""The networks that a checkpoint is made of: how each kind lies in a file, how it is built, and what stays of it.

    tensors of a file -> config (from their shapes) -> module on `meta` -> tensors under the module's names -> a Part

`loading.py` walks this path for every family; `placement.py` decides where a Part's weights lie while it computes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipelines.families.base import LoadedModel
from pipelines.types import ModelInfo

Tensors = Mapping[str, Tensor]
"""Names -> tensors that are mapped from a file: touching a value reads from the disk, a shape or a view does not."""

Config = dict[str, Any]


class Dtypes(Protocol):
    """In what each kind of network computes."""

    @property
    def text_encoder(self) -> torch.dtype: ...

    @property
    def unet(self) -> torch.dtype:
        """Of the denoiser, whatever its kind."""
        ...

    @property
    def vae(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Recipe:
    """How one kind of network is found in a file of its makers' layout, and built."""

    prefixes: tuple[str, ...]
    """Where its tensors lie in a file that holds several networks; "" where a file may hold it alone."""

    config: Callable[[Tensors], Config]
    """Tensors without their prefix -> what `build` takes, read from names and shapes alone: so narrow, pruned and
    deeper relatives load as well. Raises BadModel with what does not fit."""

    build: Callable[[Config], nn.Module]
    """Called under torch.device("meta"): nothing is allocated or initialised. Buffers that no file holds are to be
    real all the same: build makes those under torch.device("cpu")."""

    convert: Callable[[Tensors, Config], Tensors]
    """To the module's own names: renamed, split or transposed views; no byte is read where a view will do. Names that
    are the module's own already, as in a folder in diffusers' layout, stay as they are."""

    settings: Callable[[Config], Config] | None = None
    """From the config.json of a folder in diffusers' layout to what `build` takes. None: `config` reads the shapes
    there as well."""


@dataclass
class Part:
    """One network in memory. Checkpoints whose weights are the same, such as a common VAE, hold the same Part."""

    name: str
    """diffusers' name: unet, transformer, vae, text_encoder, text_encoder_2, text_encoder_3."""

    module: nn.Module
    """eval(), no gradients. Its weights are at home on the CPU unless `placement.py` has put them elsewhere."""

    dtype: torch.dtype
    """It computes in this: give it inputs of this type. The weights at home may be of another."""

    key: str
    """The same for two parts with the same weights: class, config and a hash of the content."""

    size_bytes: int
    """Of the weights at home."""

    memory: Tensor | None = None
    """Bytes in which weights at home lie that were copied, to be written over when the part is done for; None: all of
    them are mapped from the file."""


@dataclass(frozen=True)
class Family:
    """A row of the table of families."""

    parts: Mapping[str, Recipe]
    """Everything that it takes to make a picture. What a file lacks comes from `ModelInfo.companions`."""

    model: Callable[[Mapping[str, Part], ModelInfo, torch.device], LoadedModel]
    """From the parts, tokenizers and the like to the thing that encodes, predicts and decodes on this device."""

    optional: frozenset[str] = frozenset()
    """Parts that it can do without, where neither the file nor a companion has them."""

    def parts_of(self, info: ModelInfo) -> dict[str, Recipe]:
        """Those that this model is to be made of."""
        there = info.parts.keys() | info.companions.keys()
        return {
            name: recipe
            for name, recipe in self.parts.items()
            if name not in self.optional or name in there or (info.path / name).is_dir()
        }
