"""The recipe: how a request becomes pictures. Read this file first.

    encode the prompts -> draw noise -> denoise it step by step -> decode each latent to a picture

A family (`families/`) brings the neural networks, a sampler (`samplers/`) the way of the steps, an extension a
function around the denoiser. `session.py` calls this for each batch of a job and sends what comes out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import PIL.Image
import torch
from torch import Tensor

from pipelines.families.base import Cond, LoadedModel
from pipelines.prompt import parse
from pipelines.samplers import Denoise, ImageNoise, OnStep, sampler_named, sigmas_for
from pipelines.types import GenerationRequest

WrapDenoise = Callable[[Denoise, LoadedModel, GenerationRequest], Denoise | None]
"""How extensions take part: ControlNet, regional prompts and tricks with CFG are one function around another.
None leaves the denoiser as it is. The inner function is called once a step, with sigma as a plain number."""


@dataclass(frozen=True)
class Batch:
    """Images that are made at once. Never a part of them: other shapes would give slightly other pixels."""

    units: range
    wanted: tuple[int, ...]


def batches(request: GenerationRequest, wanted: Sequence[int]) -> list[Batch]:
    """The batches with a wanted unit in them. After a crash, only some units of a batch may be still to be made."""
    size, asked = request.batch_size, set(wanted)
    split = [range(first, first + size) for first in range(0, request.units, size)]
    return [Batch(units, tuple(sorted(asked.intersection(units)))) for units in split if asked.intersection(units)]


@torch.inference_mode()
def encode(request: GenerationRequest, model: LoadedModel) -> Cond:
    """Row 0 is where to go, row 1 what to stay away from; without guidance there is no row 1."""
    prompts = [request.prompt] if request.cfg_scale == 1 else [request.prompt, request.negative_prompt]
    return model.encode([parse(prompt) for prompt in prompts])


@torch.inference_mode()
def generate(
    request: GenerationRequest,
    model: LoadedModel,
    cond: Cond,
    batch: Batch,
    on_step: OnStep,
    wrappers: Sequence[WrapDenoise] = (),
) -> Iterator[tuple[int, PIL.Image.Image]]:
    """One batch: each wanted unit and its picture. `on_step` sees every step and may raise to end it."""
    sampler = sampler_named(request.sampler)
    shape = model.latent_shape(request.width, request.height)
    sigmas = sigmas_for(sampler, request.schedule, request.steps, model.levels.fitted(shape, request.steps))
    denoise = guided(model, cond.repeated(len(batch.units)), request.cfg_scale)
    for wrap in wrappers:
        denoise = wrap(denoise, model, request) or denoise
    seeds = [request.seed_of(unit) for unit in batch.units]
    noise = ImageNoise(shape, seeds, model.device)
    latents = sampler.solve(denoise, noise() * sigmas[0], sigmas, noise, on_step)
    for unit in batch.wanted:
        yield unit, model.decode(latents[unit - batch.units[0]])


def guided(model: LoadedModel, cond: Cond, scale: float) -> Denoise:
    """Classifier-free guidance (Ho and Salimans 2022), both passes as one batch; at scale 1 there is one pass only."""
    if scale == 1:
        return lambda x, sigma: model.predict(x, sigma, cond)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        towards, away = model.predict(torch.cat([x, x]), sigma, cond).chunk(2)
        return torch.lerp(away, towards, scale)

    return denoise
