"""The VAE's work: as a whole, or in tiles with progress; a smaller way if memory runs out, a wider format after NaN.

Families call their VAE's own `decode` and `encode`. For as long as `VAEWork` is in charge, those two names on that one
module lead here; afterwards they lead to the class again.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.device import is_out_of_memory, wider
from pipelines.loading.parts import Part
from pipelines.memory.activations import TILES

log = logging.getLogger(__name__)

OnTile = Callable[[int, int], None]
"""(tiles that are done, tiles in all). What it raises ends the work."""

Work = Callable[[Tensor], Tensor]
"""[n, channels, ..., height, width] -> the same, larger or smaller by one factor along both sides."""

OVERLAP = 16
"""Latents that neighbouring tiles share, and within which one fades into the other."""


class VAEWork:
    """How one VAE is used during one job."""

    def __init__(
        self,
        part: Part,
        device: torch.device,
        tile: int = 0,
        recast: Callable[[Part], None] = lambda part: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`tile`: side in latents, 0 for the whole picture. `recast` is told when the part's format has changed, and
        `note` what the user is to know."""
        self.tile = tile
        self.on_tile: OnTile = lambda done, total: None
        self.wrap = (False, False)
        """Whether the picture goes on at its other side: along its width, along its height."""
        self._part, self._device, self._recast, self._note = part, device, recast, note

    @contextmanager
    def in_charge(self) -> Generator[None, None, None]:
        module: Any = self._part.module
        decode, encode = module.decode, module.encode

        def decoded(latent: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            def work(piece: Tensor) -> Tensor:
                pixels: Tensor = decode(piece, *args, return_dict=False, **kwargs)[0]
                return pixels

            pixels = self._safe(work, latent, scale=1)
            return _DecoderOutput(pixels) if return_dict else (pixels,)

        def encoded(pixels: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
            kinds: list[Any] = []

            def work(piece: Tensor) -> Tensor:
                kinds.append(encode(piece, *args, return_dict=False, **kwargs)[0])
                moments: Tensor = kinds[-1].parameters
                return moments

            moments = self._safe(work, pixels, scale=self._scale())
            posterior = type(kinds[-1])(moments)
            return _EncoderOutput(posterior) if return_dict else (posterior,)

        module.__dict__.update(decode=decoded, encode=encoded)
        try:
            yield
        finally:
            del module.__dict__["decode"], module.__dict__["encode"]

    def _scale(self) -> int:
        """Pixels to a latent, along a side."""
        config: Any = self._part.module.config
        blocks: Sequence[int] = getattr(config, "block_out_channels", None) or config.dim_mult  # Qwen's VAE
        return int(2 ** (len(blocks) - 1))

    def _safe(self, work: Work, x: Tensor, scale: int) -> Tensor:
        """Numbers that are none come from a format that is too narrow, unless they were there before."""
        result = self._fitting(work, x, scale)
        while not bool(result.isfinite().all()) and bool(x.isfinite().all()):
            wide = wider(self._part.dtype, self._device)
            if wide is None:
                return result
            self._note(
                f"The VAE gave invalid numbers (NaN) in {_name(self._part.dtype)}; it goes on in {_name(wide)}, "
                "for this and all further pictures of this model."
            )
            self._part.dtype = wide
            self._recast(self._part)
            result = self._fitting(work, x.to(wide), scale)
        return result

    def _fitting(self, work: Work, x: Tensor, scale: int) -> Tensor:
        """In smaller and smaller tiles, until it fits. Raises what the smallest one raises."""
        smaller = [tile for tile in TILES if not self.tile or tile < self.tile]
        while True:
            try:
                return self._once(work, x, scale)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not smaller:
                    raise
            self.tile = smaller.pop(0)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._note(
                f"The picture did not fit into memory at once: the VAE works in tiles of {self.tile * 8} pixels."
            )

    def _once(self, work: Work, x: Tensor, scale: int) -> Tensor:
        if self.tile and max(x.shape[-2:]) > self.tile * scale:
            overlap = OVERLAP * min(1.0, self.tile / 64) * scale
            margins = [min(round(overlap), side) * on for side, on in zip(x.shape[:-3:-1], self.wrap, strict=True)]
            with steady_norms(self._part.module, work, x, self.tile * scale):
                return unwrapped(tiled(work, wrapped(x, margins), self.tile * scale, overlap, self.on_tile), x, margins)
        self.on_tile(0, 1)
        result = work(x)
        self.on_tile(1, 1)
        return result


@contextmanager
def steady_norms(module: nn.Module, work: Work, x: Tensor, tile: int) -> Generator[None, None, None]:
    """Group norms use the statistics of the picture in small, so that all tiles are of one brightness and contrast.

    Left to themselves they take each tile's own. On the starter model, PSNR against the whole picture: tiles of half
    its side 28 dB alone, 44 dB like this; of a quarter 20 and 36 dB. It costs one tile more.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.GroupNorm)]
    if not norms or x.ndim != 4:
        yield
        return
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(layer: Any, args: tuple[Tensor], output: Tensor) -> None:
        groups = args[0].float().reshape(len(args[0]), layer.num_groups, -1)
        seen[layer] = (groups.mean(-1, keepdim=True), groups.var(-1, correction=0, keepdim=True))

    def steady(layer: Any, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        if layer not in seen:  # of the other half: the encoder's, while decoding
            return None
        mean, variance = seen[layer]
        groups = args[0].reshape(len(args[0]), layer.num_groups, -1)
        normal = (groups - mean.to(groups)) * torch.rsqrt(variance + layer.eps).to(groups)
        shape = (1, -1, *[1] * (args[0].ndim - 2))
        result: Tensor = normal.reshape(args[0].shape) * layer.weight.reshape(shape) + layer.bias.reshape(shape)
        return result

    factor = tile / max(x.shape[-2:])
    size = [max(8, round(side * factor / 8) * 8) for side in x.shape[-2:]]
    small = functional.interpolate(x, size, mode="bilinear", antialias=False)
    with _hooked(norms, look):
        work(small)
    with _hooked(norms, steady):
        yield


@contextmanager
def _hooked(layers: Sequence[nn.Module], hook: Callable[..., Any]) -> Generator[None, None, None]:
    """First in line: a weight that is only there during the call is still there."""
    handles = [layer.register_forward_hook(hook, prepend=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def wrapped(x: Tensor, margins: Sequence[int]) -> Tensor:
    """With so much of its other side at both ends, along its width and its height."""
    if not any(margins):
        return x
    width, height = margins
    return functional.pad(x, (width, width, height, height), mode="circular")


def unwrapped(result: Tensor, x: Tensor, margins: Sequence[int]) -> Tensor:
    """The picture alone, of what was made of `wrapped(x, margins)`."""
    width, height = margins
    factor = result.shape[-1] / (x.shape[-1] + 2 * width)
    (top, bottom), (left, right) = (
        (round(margin * factor), round((margin + side) * factor))
        for margin, side in ((height, x.shape[-2]), (width, x.shape[-1]))
    )
    return result[..., top:bottom, left:right]


class _DecoderOutput:
    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class _EncoderOutput:
    def __init__(self, latent_dist: Any) -> None:
        self.latent_dist = latent_dist


def tiled(work: Work, x: Tensor, tile: int, overlap: float, on_tile: OnTile) -> Tensor:
    """Tiles of `tile` x `tile` places, each faded into its neighbours; the picture is put together in RAM."""
    height, width = x.shape[-2:]
    places = [(top, left) for top in starts(height, tile, overlap) for left in starts(width, tile, overlap)]
    whole = weight = torch.empty(0)
    for done, (top, left) in enumerate(places):
        on_tile(done, len(places))
        result = work(x[..., top : top + tile, left : left + tile])
        if done == 0:
            factor = result.shape[-1] / min(tile, width)
            size = (round(height * factor), round(width * factor))
            whole = torch.zeros(*result.shape[:-2], *size)
            weight = torch.zeros(size)
        y0, x0 = round(top * factor), round(left * factor)
        rows, columns = result.shape[-2:]
        fade = _ramp(rows, y0, size[0], overlap * factor)[:, None] * _ramp(columns, x0, size[1], overlap * factor)
        whole[..., y0 : y0 + rows, x0 : x0 + columns] += result.float().cpu() * fade
        weight[y0 : y0 + rows, x0 : x0 + columns] += fade
    on_tile(len(places), len(places))
    return (whole / weight).to(x.device, result.dtype)


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles begin along a side: evenly, the last one ends with the picture."""
    if length <= tile:
        return [0]
    count = -int(-(length - overlap) // (tile - overlap))
    # whole latents, also when pixels are cut: 8 of these are one
    unit = 8 if tile % 8 == 0 and length % 8 == 0 and overlap >= 64 else 1
    return [round((length - tile) * index / (count - 1) / unit) * unit for index in range(count)]


def _ramp(size: int, start: int, total: int, overlap: float) -> Tensor:
    """Weights along a side of a tile: from 0 to 1 within the overlap, 1 at the picture's own edges."""
    places = torch.arange(size) + 0.5
    ends = torch.ones(size)
    if start > 0:
        ends = torch.minimum(ends, places / overlap)
    if start + size < total:
        ends = torch.minimum(ends, (size - places) / overlap)
    return ends.clamp(min=1e-3)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
