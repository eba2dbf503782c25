"""The style of another picture without weights of its own: it is seen through the self-attention of the U-Net.

The picture is noised to the level of the step and goes through the network beside the others, told nothing (as in
FABRIC, von Ruette et al. 2023). In each self-attention layer, the pictures attend to its keys and values as well as to
their own, and with AdaIN their queries and keys take over its statistics: Hertz et al. 2023, 'StyleAligned', section 4.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipelines.control.areas import at_places, mask_of
from pipelines.control.attention_hooks import Ask, Inner, attending, attends_to_itself
from pipelines.control.pictures import fitted
from pipelines.control.references import styles
from pipelines.families.base import Call, Cond
from pipelines.images.resize import opaque, to_pixels
from pipelines.processors import heads_of, merged
from pipelines.request import Reference
from pipelines.samplers import Denoise
from pipelines.scene import Scene

CANNOT = (
    "The style of a picture can be taken over without an adapter only where a U-Net draws (SD 1, SD 2, SDXL): here it "
    "is left out. Describe the style in the prompt, or choose such a checkpoint."
)
SEED = 0
"""Of the noise in a reference. It is the same for all images, so that a batch is its single pictures."""
TINY = 1e-5


@dataclass(frozen=True)
class Style:
    reference: Reference
    latents: Tensor
    """[1, channels, height, width]"""
    noise: Tensor
    mask: Tensor | None
    """[1, height, width] in latents; None: everywhere."""

    def mix(self, call: Call, places: int, like: Tensor) -> Tensor:
        """[rows, places or 1, 1]: how much of each row and place takes it over."""
        count = len(call.x) - call.guests
        away = call.cond.away or (False,) * count
        full = min(1.0, self.reference.weight) if self.reference.method == "adain" else 1.0
        spared = (1 - self.reference.fidelity) * full
        rows = torch.tensor([spared if away[row] else full for row in range(count)]).to(like)[:, None, None]
        return rows if self.mask is None else rows * at_places(self.mask, places).to(like)[..., None]


@contextmanager
def styled(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    """Before the features that speak to rows: these see which are guests."""
    wanted = styles(scene.request)
    if not wanted or not scene.stage.walked_steps:
        yield denoise
        return
    if "unet" not in scene.model.parts or scene.told.nothing is None:
        scene.kit.note(CANNOT)
        yield denoise
        return
    company = Company(scene, [_style(scene, reference) for reference in wanted], scene.told.nothing)
    with scene.model.asides.joined(company.join), attending(scene.model, company.shared, attends_to_itself):
        yield denoise


def _style(scene: Scene, reference: Reference) -> Style:
    """Encoded now, before the U-Net takes its place on the device."""
    picture = opaque(scene.kit.image(reference.image))
    whole = fitted(picture, (scene.stage.width, scene.stage.height), "Crop and resize")
    latents = scene.model.to_latent(to_pixels(whole)).float()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED)).to(latents.device)
    return Style(reference, latents, noise, mask_of(scene, reference.mask)[0] if reference.mask else None)


class Company:
    """Reference pictures beside those that are drawn."""

    def __init__(self, scene: Scene, styles: Sequence[Style], nothing: Cond) -> None:
        self._scene, self._styles, self._nothing = scene, styles, nothing

    def present(self, sigma: float) -> list[Style]:
        share = self._scene.share(sigma)
        return [style for style in self._styles if style.reference.start <= share < style.reference.end]

    def join(self, call: Call) -> Call:
        """A row for each at the end of the call."""
        found = self.present(call.sigma)
        if not found:
            return call
        shrink = 1 / math.sqrt(call.sigma**2 + 1)
        noised = [self._scene.model.levels.noised(each.latents, each.noise, call.sigma) * shrink for each in found]
        x = torch.cat([call.x, *(each.to(call.x) for each in noised)])
        cond = _with_guests(call.cond, self._nothing, len(found))
        model: Any = self._scene.model
        told = {**call.told, **model.told(x, cond)}
        step = call.step[:1].expand(len(x))
        return replace(call, x=x, step=step, cond=cond, told=told, guests=call.guests + len(found))

    def shared(self, ask: Ask, inner: Inner) -> Tensor:
        """A layer's answer, in which the pictures have seen the references."""
        found = inner(ask)
        present, count = self.present(ask.call.sigma), len(ask.hidden) - ask.call.guests
        if not present or not ask.call.guests:
            return found
        heads = heads_of(ask.layer, ask.hidden, ask.hidden)
        own, guests = [each[:count] for each in heads], [each[count:] for each in heads]
        mixes = [style.mix(ask.call, ask.hidden.shape[1], found) for style in present]
        most = sum(mixes[1:], mixes[0]).clamp(min=1)
        seen = found[:count]
        total = seen
        for i, (style, mix) in enumerate(zip(present, mixes, strict=True)):
            other = merged(ask.layer, _seen(ask, style.reference, own, [each[i : i + 1] for each in guests]))
            total = total + (other - seen) * (mix / most)
        return torch.cat([total, found[count:]])


def _seen(ask: Ask, reference: Reference, own: Sequence[Tensor], guest: Sequence[Tensor]) -> Tensor:
    """[rows, heads, places, dim]: what the pictures find in themselves and in one reference."""
    query, key, value = own
    bias = None
    if "adain" in reference.method:
        query, key = (adain(mine, its) for mine, its in zip((query, key), guest[:2], strict=True))
    if "attention" in reference.method:
        its_key, its_value = (each.expand(len(key), -1, -1, -1) for each in guest[1:])
        if reference.weight != 1:  # as if each of its places were there so many times
            bias = query.new_zeros(1, 1, 1, key.shape[2] + its_key.shape[2])
            bias[..., key.shape[2] :] = math.log(reference.weight)
        key, value = torch.cat([key, its_key], 2), torch.cat([value, its_value], 2)
    return ask.attend(query, key, value, bias).to(own[0].dtype)


def adain(values: Tensor, like: Tensor) -> Tensor:
    """With mean and deviation over the places of another one: Huang and Belongie 2017, equation 8."""
    mean, spread = values.mean(2, keepdim=True), values.std(2, keepdim=True) + TINY
    return (values - mean) / spread * (like.std(2, keepdim=True) + TINY) + like.mean(2, keepdim=True)


def _with_guests(cond: Cond, nothing: Cond, guests: int) -> Cond:
    """An empty text for each, as many chunks long as the others are."""
    chunks = -(-cond.tokens.shape[1] // nothing.tokens.shape[1])
    tokens = nothing.tokens.repeat(guests, chunks, 1)[:, : cond.tokens.shape[1]].to(cond.tokens)
    pooled = cond.pooled
    if pooled is not None and nothing.pooled is not None:
        pooled = torch.cat([pooled, nothing.pooled.repeat(guests, 1).to(pooled)])
    flags = {name: (*flag, *[False] * guests) for name in ("away", "blind") if (flag := getattr(cond, name))}
    return replace(cond, tokens=torch.cat([cond.tokens, tokens]), pooled=pooled, **flags)
