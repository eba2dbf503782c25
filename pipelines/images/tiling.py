"""Pictures whose edges fit together: convolutions go round, along one side or both, as long as a pass takes."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pipelines.samplers import Denoise
from pipelines.scene import Scene

AXES = {"x": (True, False), "y": (False, True), "both": (True, True)}
"""What a request says -> whether a picture goes round along its width, and along its height."""
Sides = tuple[int, int, int, int]
"""Left, right, top, bottom."""


@contextmanager
def seamless(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    """Of U-Nets. A transformer knows each place by its number, and nothing of neighbours at the edges."""
    if not scene.request.tiling:
        yield denoise
        return
    if "unet" not in scene.model.parts:
        scene.kit.note("Tiling works with U-Nets only (SD 1.x, SD 2.x, SDXL): this picture has edges as usual.")
        yield denoise
        return
    axes = AXES[scene.request.tiling]
    with ExitStack() as stack:
        for part in ("unet", "vae"):
            stack.enter_context(going_round(scene.model.parts[part].module, axes))
        if wrapping := getattr(scene.model, "wrapping", None):
            stack.enter_context(wrapping(axes))
        yield denoise


@contextmanager
def going_round(network: nn.Module, axes: tuple[bool, bool]) -> Generator[None, None, None]:
    """All convolutions of this network, and the places where it makes room for one beforehand."""
    changed = list(_convolutions(network))
    rooms: list[Any] = [layer for layer in network.modules() if _makes_room(layer)]
    try:
        for convolution, sides in changed:
            convolution.__dict__["_conv_forward"] = partial(_round, convolution, sides, axes)
        for layer in rooms:
            layer.padding = 1  # it leaves the room to its convolution
        yield
    finally:
        for convolution, _ in changed:
            del convolution.__dict__["_conv_forward"]
        for layer in rooms:
            layer.padding = 0


def _convolutions(network: nn.Module) -> Iterator[tuple[nn.Conv2d, Sides]]:
    """Those that look beyond the edge, and how far."""
    layers: list[Any] = list(network.modules())
    roomy: dict[nn.Module, Sides] = {layer.conv: (0, 1, 0, 1) for layer in layers if _makes_room(layer)}
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str):
            height, width = layer.padding
            sides = roomy.get(layer, (width, width, height, height))
            if any(sides):
                yield layer, sides


def _makes_room(layer: Any) -> bool:
    """diffusers' Downsample2D in autoencoders: a row and a column of zeros at the end, for a convolution without."""
    return type(layer).__name__ == "Downsample2D" and bool(layer.use_conv) and layer.padding == 0


def _round(
    layer: nn.Conv2d, sides: Sides, axes: tuple[bool, bool], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """In place of Conv2d's own, which knows one way for both axes."""
    left, right, top, bottom = sides
    x = functional.pad(x, (left, right, 0, 0), mode="circular" if axes[0] else "constant")
    x = functional.pad(x, (0, 0, top, bottom), mode="circular" if axes[1] else "constant")
    return functional.conv2d(x, weight, bias, layer.stride, 0, layer.dilation, layer.groups)
