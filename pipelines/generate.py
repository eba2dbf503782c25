"""The recipe: how a request becomes pictures. Read this file first.

    for each pass (`stages.py`):  encode the prompts -> draw noise -> denoise it step by step
    in the end:                   decode each latent to a picture

A family (`families/`) brings the neural networks, a sampler (`samplers/`) the way of the steps, a feature
(`features.py`) or an extension a function around the denoiser. `session.py` calls this for each batch of a job and
sends what comes out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import PIL.Image
import torch
from torch import Tensor

from pipelines.conditioning import told
from pipelines.families.base import Reading
from pipelines.features import denoiser
from pipelines.prompt import worded
from pipelines.request import GenerationRequest
from pipelines.samplers import Denoise, ImageNoise, OnStep, Sigmas, sampler_named, sigmas_for
from pipelines.scene import Kit, Scene
from pipelines.stages import Stage, stages


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
def generate(
    request: GenerationRequest, kit: Kit, batch: Batch, on_step: OnStep
) -> Iterator[tuple[int, PIL.Image.Image]]:
    """One batch: each wanted unit and its picture. `on_step` sees every step and may raise to end it."""
    plan, before = stages(request), 0
    for stage in plan:
        scene = staged(request, stage, kit, batch.units)
        with denoiser(scene) as denoise:
            latents = walked(scene, denoise, partial(_later, on_step, before))
            if stage == plan[-1]:
                for unit in batch.wanted:
                    yield unit, scene.model.decode(latents[unit - batch.units[0]])
        before += stage.walked_steps


def walked(scene: Scene, denoise: Denoise, on_step: OnStep) -> Tensor:
    """From noise to latents [images, channels, height, width]."""
    shape = scene.model.latent_shape(scene.stage.width, scene.stage.height)
    noise = ImageNoise(shape, scene.seeds, scene.device)
    sampler = sampler_named(scene.stage.sampler)
    return sampler.solve(denoise, noise() * scene.sigmas[0], scene.sigmas, noise, on_step)


def _later(on_step: OnStep, before: int, index: int, x0: Tensor) -> None:
    on_step(before + index, x0)


def staged(request: GenerationRequest, stage: Stage, kit: Kit, units: range) -> Scene:
    """Everything that is known before the first step of a pass."""
    model = kit.model(stage.model)
    wording = worded(stage.prompt, stage.negative_prompt, stage.timeline, stage.cfg_scale != 1, model.reader.prose)
    for note in wording.notes:
        kit.note(note)
    reading = Reading(request.clip_skip, request.emphasis)
    return Scene(request, stage, kit, model, told(model, wording, reading, kit.texts), units, sigmas_of(stage, kit))


def sigmas_of(stage: Stage, kit: Kit) -> Sigmas:
    """The noise levels that a pass walks: of a picture to start from, only the last ones."""
    model, steps = kit.model(stage.model), stage.planned_steps
    levels = model.levels.fitted(model.latent_shape(stage.width, stage.height), steps)
    planned = sigmas_for(sampler_named(stage.sampler), stage.schedule, steps, levels)
    return Sigmas(planned[len(planned) - 1 - stage.walked_steps :], planned.flow)
