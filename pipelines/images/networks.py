"""Networks from picture to picture, upscalers and face restorers: spandrel knows them by their weights.

A few stay in RAM. Each is on the device only while it works, so that it takes nothing from the checkpoint's room.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
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

Note = Callable[[str], None]


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
        for device in dict.fromkeys((self.device, CPU)):
            if device != self.device:
                note(f"There is too little memory left on the graphics card for {info.name}: it works on the CPU.")
            for tile in _tiles(network):
                try:
                    return run(network, device, pixels, partial(_piecewise, tile=tile, on_tile=on_tile))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        raise OutOfMemory("There is not enough memory for this upscaler. Make the picture smaller, or choose another.")


Work = Callable[[Tensor], Tensor]


def run(network: Any, device: torch.device, pixels: Tensor, way: Callable[[Work, Tensor], Tensor]) -> Tensor:
    """What the network makes of the pixels, on the CPU, in 32 bits; `way` calls it, on all of them or on pieces."""
    dtypes = (torch.float16,) if device.type == "cuda" and network.supports_half else ()
    for dtype in (*dtypes, torch.float32):
        with _placed(network, device, dtype):
            found = way(partial(_called, network, device, dtype), pixels)
        if found.isfinite().all():
            break
    return found


def _called(network: Any, device: torch.device, dtype: torch.dtype, x: Tensor) -> Tensor:
    found: Tensor = network(x.to(device, dtype))
    return found.float().cpu()


def opened(info: ModelInfo) -> Any:
    """Raises BadModel with what is wrong."""
    from spandrel import ModelLoader, UnsupportedModelError, canonicalize_state_dict  # a second, for who needs it

    tensors = dict(open_weights(info.path))
    try:
        with torch.inference_mode(False):  # its weights outlive this job
            found = ModelLoader().load_from_state_dict(canonicalize_state_dict(tensors)).eval()
            found.model.requires_grad_(False)
        return found
    except UnsupportedModelError as error:
        known = "ESRGAN, SwinIR, DAT, HAT, GFPGAN and many others can be"
        raise BadModel(f"{info.name} is of a kind that cannot be run; {known}.") from error
    except (RuntimeError, KeyError, ValueError, AssertionError, IndexError, AttributeError, TypeError) as error:
        raise BadModel(f"{info.name} is damaged or no network of pictures ({first_line(error)}).") from error


@contextmanager
def _placed(network: Any, device: torch.device, dtype: torch.dtype) -> Generator[None, None, None]:
    home = network.model.state_dict()
    try:
        with torch.inference_mode(False):
            network.to(device, dtype)
        yield
    finally:
        with torch.inference_mode(False):
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
