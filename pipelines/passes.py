"""One pass over one batch: what it starts from, and its legs, one for each checkpoint that has a part in it."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from pipelines.briefing import briefed
from pipelines.features import denoiser
from pipelines.images.canvas import Canvas
from pipelines.images.given import Given, Made
from pipelines.request import GenerationRequest
from pipelines.samplers import ImageNoise, OnStep, Sigmas, sampler_named
from pipelines.scene import Kit, Scene
from pipelines.stages import Stage
from pipelines.walks import Leg, begun, legs_of, noise_of, sigmas_of, walk_of


@dataclass
class Pass:
    """The checkpoint of the pass must be the one in use when this is made."""

    request: GenerationRequest
    stage: Stage
    kit: Kit
    units: range
    canvas: Canvas | None = None
    before: Made | None = None
    """What the pass before this one has made, at this one's size."""
    sigmas: Sigmas = field(init=False)
    legs: list[Leg] = field(init=False)
    _noise: ImageNoise | None = field(default=None, init=False)
    _x: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        model, stage = self.kit.model(self.stage.model), self.stage
        self.sigmas = sigmas_of(self.request, stage, self.kit)
        levels = model.levels.fitted(model.latent_shape(stage.width, stage.height), stage.planned_steps or 1)
        self.legs = legs_of(self.request, self.stage, self.sigmas, levels)

    @contextmanager
    def walked(self, leg: Leg, on_step: OnStep) -> Generator[tuple[Scene, Made], None, None]:
        """What a leg has made, in its scene: networks are as they were for its steps until the end of the `with`."""
        with self.staged(leg) as scene, denoiser(scene) as denoise:
            if scene.given and not self.stage.walked_steps:
                yield scene, scene.given.untouched(len(self.units))
                return
            sampler = sampler_named(self.stage.sampler)
            self._noise = self._noise or noise_of(scene)
            walk = walk_of(scene, sampler, self._noise, leg, on_step)
            x = begun(scene, sampler, self._noise()) if self._x is None else self._x
            self._x = sampler.solve(denoise, x, walk)
            yield scene, self._x

    @contextmanager
    def staged(self, leg: Leg) -> Generator[Scene, None, None]:
        """Everything that is known before the first step of a leg, in which the model wears its LoRAs."""
        stage, model, given = self.stage, self.kit.model(leg.model), None
        if self.canvas or self.before is not None:
            canvas = self.canvas and self.canvas.at(stage.width, stage.height)
            given = Given(model, self.request.start, canvas, self.before)
        with briefed(self.request, stage, self.kit, self.units, leg.model) as heard:
            yield Scene(self.request, stage, self.kit, model, heard, self.units, self.sigmas, given)
