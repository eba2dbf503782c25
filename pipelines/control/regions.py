"""Prompts for parts of a picture: each place attends to the texts of the regions that it lies in ('attention couple').

The prompt of the request has what no region covers. What to stay away from is the same everywhere. Where a region
covers the whole picture with weight 1, the picture is the one of its prompt alone.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines import processors
from pipelines.attention import DEFAULT, Choice
from pipelines.conditioning import Told
from pipelines.control.areas import at_places, shares
from pipelines.control.attention_hooks import Ask, Inner, attending, attends_to_text
from pipelines.families.base import Call, Cond
from pipelines.request import Region
from pipelines.samplers import Denoise
from pipelines.scene import Scene

CANNOT = (
    "This kind of model cannot keep prompts apart by region: those of the regions are left out. "
    "Write into the prompt where things are, or take a checkpoint of SD 1, SD 2, SDXL or Flux.1."
)


@contextmanager
def regional(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    pairs = zip(scene.request.regions, scene.told.regions, strict=True)
    found = [(region, told) for region, told in pairs if region.weight]
    if not found or not scene.stage.walked_steps:
        yield denoise
        return
    if any(len(told.weights) > 1 for _, told in found):
        scene.kit.note("AND is not for the prompts of regions: the first part of each is taken. Make a region of each.")
    with ExitStack() as stack:
        texts = Texts(scene, found)
        if "unet" in scene.model.parts:
            stack.enter_context(scene.model.asides.joined(texts.pooled))
            stack.enter_context(attending(scene.model, texts.coupled, attends_to_text))
        elif getattr(scene.model, "joint_regions", False):
            stack.enter_context(plain_attention(scene.model.parts["transformer"].module))
            stack.enter_context(scene.model.asides.joined(texts.joint))
        else:
            scene.kit.note(CANNOT)
        yield denoise


class Texts:
    """Of the regions of a pass, and how much of each place is theirs."""

    def __init__(self, scene: Scene, regions: Sequence[tuple[Region, Told]]) -> None:
        self._scene = scene
        self._told = [told for _, told in regions]
        self._shares = shares(scene, [region for region, _ in regions])
        """[1 + regions, height, width]; the first is of the prompt for all."""
        self._at: dict[int, Tensor] = {}
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def conds(self, sigma: float) -> list[Cond]:
        """What each region is told at a step: one row."""
        step = self._scene.step(sigma)
        return [told.at(step, 1).take([0]) for told in self._told]

    def coupled(self, ask: Ask, inner: Inner) -> Tensor:
        """A layer's answer: to each text as if there were no other, then mixed place by place."""
        found = inner(ask)
        rows = drawn_towards(ask.call)
        if not rows:
            return found
        part = self._shares_at(ask.hidden.shape[1], ask.hidden)
        hidden = ask.hidden[rows]
        mixed = found[rows] * part[0]
        for share, cond in zip(part[1:], self.conds(ask.call.sigma), strict=True):
            context = cond.tokens.to(ask.hidden.dtype).expand(len(rows), -1, -1)
            mixed = mixed + inner(replace(ask, hidden=hidden, context=context, mask=None)) * share
        found = found.clone()
        found[rows] = mixed
        return found

    def pooled(self, call: Call) -> Call:
        """What is told of a prompt as a whole is mixed by how much of the picture is whose."""
        if call.cond.pooled is None:
            return call
        rows, pooled = drawn_towards(call), call.cond.pooled.clone()
        pooled[rows] = self._mixed(call, rows)
        told = self._scene.model.told(call.x, replace(call.cond, pooled=pooled))  # type: ignore[attr-defined]
        return replace(call, told={**call.told, **told})

    def joint(self, call: Call) -> Call:
        """For transformers in which texts and places attend to each other: all texts one behind the other, and a mask.

        A place sees the texts of its regions, by its shares; a text sees itself and the places that see it.
        """
        tokens, pooled = call.told["encoder_hidden_states"], call.told["pooled_projections"].clone()
        rows = drawn_towards(call)
        pooled[rows] = self._mixed(call, rows).to(pooled.dtype)
        texts = [tokens, *(cond.tokens.to(tokens).expand(len(tokens), -1, -1) for cond in self.conds(call.sigma))]
        masks = self._joint_masks(tuple(text.shape[1] for text in texts))
        whose = [int(row in rows) for row in range(len(tokens))]
        full = torch.cat(texts, 1)
        return call.with_told(
            {
                "encoder_hidden_states": full,
                "pooled_projections": pooled,
                "txt_ids": call.told["txt_ids"].new_zeros(full.shape[1], 3),
                "joint_attention_kwargs": {"attention_mask": masks[whose, None].to(tokens.dtype)},
            }
        )

    def _joint_masks(self, lengths: tuple[int, ...]) -> Tensor:
        """[2, tokens, tokens]: of rows that are stayed away from, for which the first text has everything; and of
        those that are drawn towards."""
        if lengths not in self._masks:
            height, width = self._shares.shape[-2:]
            patched = functional.adaptive_avg_pool2d(self._shares, (-(-height // 2), -(-width // 2))).flatten(1)
            whole = torch.zeros_like(patched)
            whole[0] = 1
            self._masks[lengths] = torch.stack([joint_mask(part, lengths) for part in (whole, patched)])
        return self._masks[lengths]

    def _mixed(self, call: Call, rows: Sequence[int]) -> Tensor:
        """Pooled texts, for rows that are drawn towards."""
        assert call.cond.pooled is not None
        sizes = self._shares.mean((1, 2))
        mixed = call.cond.pooled[list(rows)] * sizes[0]
        for size, cond in zip(sizes[1:], self.conds(call.sigma), strict=True):
            if cond.pooled is not None:
                mixed = mixed + cond.pooled * size
        return mixed.to(call.cond.pooled.dtype)

    def _shares_at(self, places: int, like: Tensor) -> Tensor:
        """[1 + regions, places, 1]"""
        if places not in self._at:
            self._at[places] = at_places(self._shares, places)[..., None].to(like)
        return self._at[places]


def drawn_towards(call: Call) -> list[int]:
    """The rows of the call's own pictures that are told the prompt."""
    count = len(call.x) - call.guests
    away = call.cond.away or (False,) * count
    return [row for row in range(count) if not away[row]]


def joint_mask(shares: Tensor, lengths: Sequence[int]) -> Tensor:
    """To be added to the scores, [texts + places, texts + places], for shares [texts, places]. Places see each other,
    texts do not; a share counts as if a token were there so many times."""
    texts, size = sum(lengths), sum(lengths) + shares.shape[1]
    mask = torch.zeros(size, size, device=shares.device)
    mask[:texts, :texts] = -torch.inf
    start = 0
    for share, length in zip(shares.log(), lengths, strict=True):
        own = slice(start, start + length)
        mask[own, own] = 0
        mask[texts:, own] = share[:, None]
        mask[own, texts:] = share[None]
        start += length
    return mask


@contextmanager
def plain_attention(module: nn.Module) -> Generator[None, None, None]:
    """Not all backends of the transformers take a mask."""
    used = processors.used_by(module)
    processors.apply(module, Choice(DEFAULT))
    try:
        yield
    finally:
        if used:
            processors.apply(module, Choice(used))
