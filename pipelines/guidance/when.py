"""In which steps a pass is guided, and in which the negative prompt is asked: a step without it takes half the time."""

import math
from typing import NamedTuple

from pipelines.scene import Scene


class Asks(NamedTuple):
    guided: bool
    away: bool
    """What to stay away from is to be seen."""
    scale: float


class When:
    """The guidance interval is of Kynkaanniemi et al. 2024: early, guidance makes pictures alike, and late it does
    nothing. Outside of it there is one pass only. NGMS is A1111's: below a noise level, every other step goes without
    the negative prompt.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene, self._asked = scene, scene.request.guidance
        # else what the prompts say together is a question of how far to go from there
        self._whole = math.isclose(math.fsum(scene.told.weights), 1)

    def asks(self, sigma: float) -> Asks:
        scale, share = self._scene.stage.cfg_scale, self._scene.share(sigma)
        inside = (not self._asked.start or share > self._asked.start) and share < self._asked.end
        if not inside:
            return Asks(False, not self._whole, 1.0)
        skipped = sigma < self._asked.min_sigma and self._scene.step(sigma) % 2 == 1 and self._whole
        return Asks(True, not skipped, scale)
