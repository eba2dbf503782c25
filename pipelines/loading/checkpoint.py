"""Brings networks from files into memory, without a second copy and without touching anything before all is checked.

find a part's tensors -> read the sizes -> a module on `meta` -> compare names and shapes -> fill it
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import xxhash
from torch import Tensor, nn

from pipelines.errors import BadModel
from pipelines.library.network_folder import read_json
from pipelines.loading.arena import ALIGNMENT, Arena, allocate, cast, padded
from pipelines.loading.parts import Config, Dtypes, Part, Recipe, Tensors
from pipelines.loading.weights import Pages, Stamp, open_weights, stamp
from pipelines.types import ModelInfo

Tick = Callable[[int], None]
"""Called with the bytes that have been dealt with since the last call. What it raises ends the load."""

WORDS = {
    "unet": ("U-Net", "Stable-diffusion"),
    "transformer": ("transformer", "Stable-diffusion"),
    "vae": ("VAE", "VAE"),
    "text_encoder": ("text encoder", "text_encoder"),
    "text_encoder_2": ("second text encoder", "text_encoder"),
    "text_encoder_3": ("third text encoder", "text_encoder"),
    "controlnet": ("ControlNet", "ControlNet"),
    "t2i_adapter": ("T2I adapter", "T2IAdapter"),
    "ip_adapter": ("IP-Adapter", "IPAdapter"),
    "image_encoder": ("CLIP vision encoder", "clip_vision"),
}
"""What people call a part, and in which of the models folders one of its own belongs."""

IGNORED = re.compile(r"(^|\.)(position_ids|logit_scale|num_batches_tracked|model_ema|loss)(\.|$)")
"""Tensors that are no weights of the network: what training left, and constants."""

HASHED_BYTES = 2 * 2**30
"""Larger parts are told apart by their file: they come in files of their own, and reading them takes seconds."""


@dataclass(frozen=True)
class Source:
    """Where one part's tensors come from."""

    part: str
    path: Path
    stamp: Stamp
    tensors: Tensors
    """Without the prefix that they have in the file."""

    settings: Config | None
    """The config.json beside them, in diffusers' layout."""

    @property
    def title(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}" if self.path.is_dir() else self.path.name

    def bad(self, what: str) -> BadModel:
        return BadModel(f"The {word_for(self.part)} in {self.title} {what}")


@dataclass(frozen=True)
class Draft:
    """A part that fits its file, name by name, and has not been read yet."""

    source: Source
    module: nn.Module
    config: Config
    state: Tensors
    """Under the module's own names."""

    dtype: torch.dtype
    mapped: bool
    """It is for a card, which gets the weights as they are, from the file or from memory that it reaches faster."""

    @cached_property
    def casts(self) -> dict[str, torch.dtype]:
        """The tensors that are copied, and to which type. The others are used where they lie in the file.

        MKL rounds the last bit of a number in another way where weights lie at odd places: these are copied as well,
        so that a picture does not depend on the length of a file's header.
        """
        if self.mapped:
            return {}
        packed = self.config.get("packed", {})
        return {
            name: self.dtype
            for name, tensor in self.state.items()
            if tensor.is_floating_point() and name.rpartition(".")[0] not in packed
            if tensor.dtype != self.dtype or tensor.data_ptr() % ALIGNMENT
        }

    @cached_property
    def locked_bytes(self) -> int:
        """Of copies of all weights as they are."""
        return sum(padded(tensor.nbytes) for tensor in self.state.values())

    @cached_property
    def memory_bytes(self) -> int:
        """Of the casts."""
        return sum(padded(self.state[name].numel() * dtype.itemsize) for name, dtype in self.casts.items())

    @cached_property
    def size_bytes(self) -> int:
        return self.memory_bytes + sum(t.nbytes for name, t in self.state.items() if name not in self.casts)

    @cached_property
    def file_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state.values())

    def key(self, content: str) -> str:
        text = json.dumps([type(self.module).__name__, self.config, str(self.dtype), content], default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def word_for(part: str) -> str:
    return WORDS.get(part, (part, ""))[0]


def stamps(info: ModelInfo) -> tuple[Stamp, ...]:
    """Of everything that the model is loaded from."""
    return (stamp(info.path), *(stamp(companion.path) for companion in info.companions.values()))


class Opened:
    """The files of one checkpoint, each opened once."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self._tensors: dict[Path, Tensors] = {}

    def source(self, part: str, recipe: Recipe) -> Source:
        companion = self.info.companions.get(part)
        info = companion or self.info
        folder = info.path / part if (info.path / part).is_dir() else info.path
        if info.path.is_dir():
            if folder == info.path and companion is None:
                raise self._lacking(part)
            settings = read_json(folder / "config.json") if recipe.settings else None
            return Source(part, folder, stamp(folder), self._open(folder), settings)
        tensors = below(self._open(info.path), recipe.prefixes, alone=companion is not None or len(info.parts) == 1)
        if not tensors:
            raise self._lacking(part)
        return Source(part, info.path, stamp(info.path), tensors, None)

    def pages(self) -> Pages:
        files = (file for path in self._tensors for file in (path.iterdir() if path.is_dir() else (path,)))
        return Pages(files)

    def _open(self, path: Path) -> Tensors:
        if path not in self._tensors:
            self._tensors[path] = open_weights(path)
        return self._tensors[path]

    def _lacking(self, part: str) -> BadModel:
        word, folder = WORDS.get(part, (part, ""))
        place = f" Put a file with one into models/{folder} and choose it." if folder else ""
        return BadModel(f"The model {self.info.name} lacks its {word}, or is another kind of model.{place}")


def below(tensors: Tensors, prefixes: tuple[str, ...], alone: bool) -> Tensors:
    """The tensors of one network, without their prefix. `alone`: they may be all that there is, without any."""
    for prefix in prefixes:
        found = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if found and (prefix or alone):
            return found
    return {}


def draft(recipe: Recipe, source: Source, dtype: torch.dtype, mapped: bool) -> Draft:
    """Raises BadModel, with the network and what is wrong with it. Only a few small tensors are read."""
    try:
        read = recipe.settings(source.settings) if recipe.settings and source.settings else None
        config = read if read is not None else recipe.config(source.tensors)
        with torch.device("meta"):
            module = recipe.build(config)
        state = dict(recipe.convert(source.tensors, config))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:150]
        raise source.bad(f"is damaged or of another kind ({reason}). Download it again.") from error
    state = {name: tensor for name, tensor in state.items() if not IGNORED.search(name)}
    compare(source, module, state)
    return Draft(source, module, config, state, dtype, mapped)


def compare(source: Source, module: nn.Module, state: Tensors) -> None:
    """What diffusers would fill with random numbers, or leave out, is an error here."""
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items() if not IGNORED.search(name)}
    faults = {
        "are missing": wanted.keys() - state.keys(),
        "are of another network": state.keys() - wanted.keys(),
        "have another size": {n for n, shape in wanted.items() if n in state and state[n].shape != shape},
    }
    for fault, names in faults.items():
        if names:
            raise source.bad(f"does not fit: {len(names)} of its weights {fault}, such as {min(names)}. Get it again.")


def content(part: Draft, tick: Tick) -> str:
    """The same for the same numbers under the same names, whatever file they are in."""
    if part.file_bytes > HASHED_BYTES or part.source.part in ("unet", "transformer"):
        return f"{part.source.part} {part.source.stamp}"
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(part.state.items()):
        tick(0)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fill(part: Draft, memory: Tensor | None, key: str, pages: Pages, tick: Tick) -> Part:
    """Read the weights: into `memory`, which is another part's no longer, or into new one. Ends as `tick` wishes.
    For a card, all go into `memory` as they are; without any they stay in the file."""
    copies = {name: tensor.dtype for name, tensor in part.state.items()} if part.mapped and memory is not None else {}
    copies |= part.casts
    if part.memory_bytes and memory is None:
        memory = allocate(part.memory_bytes)
    arena = Arena(memory) if memory is not None else None
    ready: dict[str, Tensor] = {}
    for name, tensor in part.state.items():
        if arena is not None and name in copies:
            ready[name] = cast(tensor, into=arena.tensor(tensor.shape, copies[name]))
            pages.let_go(tensor)
        else:
            ready[name] = tensor.contiguous()
        tick(tensor.nbytes)
    assign(part.module, ready)
    part.module.eval()
    if part.config.get("packed"):
        from pipelines.loading.quantised import compute_in  # only who has packed weights needs its libraries

        compute_in(part.module, part.dtype)
    return Part(part.source.part, part.module, part.dtype, key, part.size_bytes, memory if copies else None)


def assign(module: nn.Module, tensors: Tensors) -> None:
    """As load_state_dict(assign=True) does, in a tenth of its time: names and shapes have been compared already."""
    layers = dict(module.named_modules())
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last in layers[layer]._parameters:
            layers[layer]._parameters[last] = nn.Parameter(tensor, requires_grad=False)
        else:
            layers[layer]._buffers[last] = tensor


def emptied(part: Part) -> Tensor | None:
    """The memory of a part that is done for. Its module has no weights any more, rather than wrong ones."""
    memory, part.memory = part.memory, None
    for module in part.module.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.to("meta"), requires_grad=False)
    return memory


def dtype_for(part: str, dtypes: Dtypes) -> torch.dtype:
    if part == "vae":
        return dtypes.vae
    return dtypes.text_encoder if part.startswith("text_encoder") else dtypes.unet


def drafts(recipes: Mapping[str, Recipe], opened: Opened, device: torch.device, dtypes: Dtypes) -> list[Draft]:
    on_card = device.type != "cpu"
    return [
        draft(recipe, opened.source(name, recipe), dtype_for(name, dtypes), on_card) for name, recipe in recipes.items()
    ]


def load_parts(
    recipes: Mapping[str, Recipe], info: ModelInfo, device: torch.device, dtypes: Dtypes, tick: Tick = lambda _: None
) -> dict[str, Part]:
    """All parts of one checkpoint, by themselves: nothing is shared, and nothing is kept."""
    opened = Opened(info)
    found = drafts(recipes, opened, device, dtypes)
    pages = opened.pages()
    return {part.source.part: fill(part, None, part.key(content(part, tick)), pages, tick) for part in found}
