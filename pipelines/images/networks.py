"""Networks from picture to picture, upscalers and face restorers: spandrel knows them by their weights.

A few stay in RAM. Each is on the device only while it works, so that it takes nothing from the checkpoint's room.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipelines.decoding import OnTile
from pipelines.device import is_out_of_memory
from pipelines.errors import BadModel, OutOfMemory
from pipelines.images.tiles import pieces
from pipelines.loading.weights import first_line, open_weights, stamp
from pipelines.types import ModelInfo

KEPT = 2
TILES = (256, 128, 64)
"""Sides in pixels of the small picture, as they are tried. ESRGAN's largest takes 250 MB for the first, in 16 bits."""
OVERLAP = 32
"""Pixels that neighbouring tiles share, and within which one fades into the other."""
UNIT = 16
"""Networks look at pixels in groups, Real-ESRGAN's x2 at 2 x 2, SwinIR at 8 x 8: tiles begin where a group does."""
CPU = torch.device("cpu")
NOT_FREE = {
    "codeformer": "CodeFormer may not be used commercially, so the code for it is not part of Inkstone. "
    "Install it with `uv sync --extra codeformer` if you may, or take GFPGAN or RestoreFormer."
}
"""By variant: what to do about files that only work with a package of their own."""

Note = Callable[[str], None]
Work = Callable[[Tensor], Tensor]
Way = Callable[[Work, Tensor], Tensor]
Asked = Callable[[Any, Tensor], Tensor]
"""(spandrel's descriptor, pixels) -> pixels"""
Call = Callable[[Any, Tensor, float], Tensor]
"""(module, pixels, weight) -> pixels"""


def plain(network: Any, x: Tensor) -> Tensor:
    found: Tensor = network(x)
    return found


def quiet(done: int, total: int) -> None:
    """Nobody listens."""


class PixelNetworks:
    """Of one device. Not for several threads."""

    def __init__(self, device: torch.device, kept: int = KEPT) -> None:
        self.device = device
        self._kept = kept
        self._held: OrderedDict[Hashable, Any] = OrderedDict()  # the last used last

    def __len__(self) -> int:
        return len(self._held)

    def get(self, info: ModelInfo) -> Any:
        """Its descriptor, as spandrel calls it, in RAM. Raises BadModel and ModelNotFound."""
        key = (info.path, stamp(info.path))
        if key not in self._held:
            found = opened(info)
            while len(self._held) >= self._kept:
                self._held.popitem(last=False)
            self._held[key] = found
        self._held.move_to_end(key)
        return self._held[key]

    def clear(self) -> None:
        self._held.clear()

    def enlarged(self, info: ModelInfo, pixels: Tensor, note: Note, on_tile: OnTile = quiet) -> Tensor:
        """[1, 3, height, width] from 0 to 1, on the CPU, by the factor of the network. In smaller tiles if memory is
        short, in the end on the CPU."""
        network = self.get(info)
        if network.input_channels != 3:
            raise BadModel(f"{info.name} is for pictures without colours: choose another upscaler.")
        return self._fitting(
            info, pixels, [partial(_piecewise, tile=at, on_tile=on_tile) for at in _tiles(network)], note
        )

    def restored(self, info: ModelInfo, face: Tensor, calls: Mapping[str, Call], weight: float, note: Note) -> Tensor:
        """[1, 3, side, side] from 0 to 1, on the CPU: a face, by a network that was made for faces. `calls`: how some
        are to be asked, by the name of their architecture; all others are asked as spandrel does."""
        network = self.get(info)
        call = calls.get(network.architecture.id)

        def way(work: Work, x: Tensor) -> Tensor:
            return work(x)

        def asked(network: Any, x: Tensor) -> Tensor:
            found: Tensor = call(network.model, x, weight) if call else network(x)
            return found.clamp(0, 1)

        return self._fitting(info, face, [way], note, asked)

    def _fitting(
        self, info: ModelInfo, pixels: Tensor, ways: Sequence[Way], note: Note, asked: Asked = plain
    ) -> Tensor:
        """The first way for which there is memory, on the device, else on the CPU."""
        network = self.get(info)
        for device in dict.fromkeys((self.device, CPU)):
            if device != self.device:
                note(f"There is too little memory left on the graphics card for {info.name}: it works on the CPU.")
            for way in ways:
                try:
                    return run(network, device, pixels, way, asked)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        raise OutOfMemory(f"There is not enough memory for {info.name}. Make the picture smaller, or choose another.")


@torch.inference_mode()
def run(network: Any, device: torch.device, pixels: Tensor, way: Way, asked: Asked = plain) -> Tensor:
    """What the network makes of the pixels, on the CPU, in 32 bits; `way` asks it, about all of them or pieces."""
    dtypes = (torch.float16,) if device.type == "cuda" and network.supports_half else ()

    def work(x: Tensor, dtype: torch.dtype) -> Tensor:
        return asked(network, x.to(device, dtype)).float().cpu()

    for dtype in (*dtypes, torch.float32):
        with _placed(network, device, dtype):
            found = way(partial(work, dtype=dtype), pixels)
        if found.isfinite().all():
            break
    return found


def opened(info: ModelInfo) -> Any:
    """Raises BadModel with what is wrong."""
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError, canonicalize_state_dict  # takes 1 s

    tensors = dict(open_weights(info.path))
    try:
        with torch.inference_mode(False):  # its weights outlive this job
            found = ModelLoader(registry=_registry()).load_from_state_dict(canonicalize_state_dict(tensors)).eval()
            found.model.requires_grad_(False)
    except UnsupportedModelError as error:
        if info.variant in NOT_FREE:
            raise BadModel(NOT_FREE[info.variant]) from error
        known = "ESRGAN, SwinIR, DAT, HAT, GFPGAN and many others can be"
        raise BadModel(f"{info.name} is of a kind that cannot be run; {known}.") from error
    except (RuntimeError, KeyError, ValueError, AssertionError, IndexError, AttributeError, TypeError) as error:
        raise BadModel(f"{info.name} is damaged or no network of pictures ({first_line(error)}).") from error
    if not isinstance(found, ImageModelDescriptor):
        raise BadModel(f"{info.name} fills holes in pictures: it makes none larger, and restores no faces.")
    return found


def _registry() -> Any:
    """With the architectures that are free for some uses only, where somebody has installed them."""
    from spandrel import MAIN_REGISTRY

    try:
        from spandrel_extra_arches import EXTRA_REGISTRY
    except ImportError:
        return MAIN_REGISTRY
    both = MAIN_REGISTRY.copy()
    both.add(*EXTRA_REGISTRY)
    return both


@contextmanager
def _placed(network: Any, device: torch.device, dtype: torch.dtype) -> Generator[None, None, None]:
    home = network.model.state_dict()
    try:
        with torch.inference_mode(False):
            network.to(device, dtype)
        yield
    finally:
        with torch.inference_mode(False):
            network.to(CPU, torch.float32)  # what is in no file
            network.model.load_state_dict(home, assign=True)


def _tiles(network: Any) -> tuple[int, ...]:
    """0: as a whole, where the network looks at all of a picture."""
    return TILES if network.tiling.name == "SUPPORTED" else (0, *TILES)


def _piecewise(work: Work, x: Tensor, tile: int, on_tile: OnTile) -> Tensor:
    """In RAM, in 32 bits: the whole picture is never on the device."""
    height, width = x.shape[-2:]
    parts = list(pieces(height, width, (tile or height, tile or width), min(OVERLAP, tile // 4), UNIT))
    whole = weight = torch.empty(0)
    on_tile(0, len(parts))
    for done, (rows, columns, fade) in enumerate(parts, 1):
        found = work(x[..., slice(*rows), slice(*columns)])
        scale = found.shape[-1] // (columns.stop - columns.start)
        if done == 1:
            whole = torch.zeros(*found.shape[:-2], height * scale, width * scale)
            weight = torch.zeros(height * scale, width * scale)
        place = (..., slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale))
        large = torch.from_numpy(fade).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        whole[place] += found * large
        weight[place] += large
        on_tile(done, len(parts))
    return whole / weight
