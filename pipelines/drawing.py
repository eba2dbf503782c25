"""The work of a job that draws: its batches, one after another, or in turns where several checkpoints take part."""

from collections.abc import Sequence

from torch import Tensor

from pipelines.desk import Desk, Interrupted, png
from pipelines.generate import Batch, batches, turns
from pipelines.images.sd_upscale import tiles
from pipelines.kit import JobKit
from pipelines.request import GenerationRequest
from pipelines.samplers import OnStep
from pipelines.stages import total_steps
from pipelines.types import Decoding, Interrupt, Picture, Skipped, Step

TOGETHER = 8
"""So many batches wait for each other before another checkpoint takes the place of the one in use: a change costs
seconds, but somebody waits for the first picture, too."""


def draw(task: GenerationRequest, kit: JobKit, left: list[int], desk: Desk) -> None:
    """All units that are `left`, which is kept up to date."""
    desk.previews.map_for(kit.model())  # before the denoiser takes its place
    planned = batches(task, left, kit)
    together = TOGETHER if changes_checkpoint(task) else 1
    for first in range(0, len(planned), together):
        waiting = [Turns(task, kit, batch, left, desk) for batch in planned[first : first + together]]
        while waiting:
            waiting = [each for each in waiting if each.go_on()]


def changes_checkpoint(task: GenerationRequest) -> bool:
    return task.refiner is not None or bool(task.hires and task.hires.model)


class Turns:
    """One batch, which may stop where another checkpoint is needed."""

    def __init__(self, task: GenerationRequest, kit: JobKit, batch: Batch, left: list[int], desk: Desk) -> None:
        self._task, self._kit, self._batch, self._left, self._desk = task, kit, batch, left, desk
        self._turns = turns(task, kit, batch, self._on_step())

    def go_on(self) -> bool:
        """Up to where another checkpoint is needed, or to the end. Whether there is more to do."""
        self._kit.on_tile = self._on_tile
        try:
            self._desk.listener.obey()
            return self._drawn()
        except Interrupted as interrupted:
            self._turns.close()
            if interrupted.how == Interrupt.STOP:
                raise
            skipped = tuple(self._wanted())
            self._left[:] = [unit for unit in self._left if unit not in skipped]
            self._desk.emit(Skipped(units=skipped))
            return False

    def _drawn(self) -> bool:
        for done in self._turns:
            if done is None:
                return True
            unit, picture = done
            self._desk.emit(Picture(unit=unit, seed=self._task.seed_of(unit), png=png(picture)))
            self._left.remove(unit)
            if self._wanted():
                self._desk.listener.obey()
        return False

    def _wanted(self) -> Sequence[int]:
        return [unit for unit in self._batch.wanted if unit in self._left]

    def _on_tile(self, done: int, total: int) -> None:
        self._desk.listener.obey_stop()
        if total > 1:
            self._desk.emit(Decoding(unit=self._wanted()[0], tile=done, tiles=total))

    def _on_step(self) -> OnStep:
        unit, desk, own = self._batch.wanted[0], self._desk, self._task.cell(self._batch.units[0])
        steps = total_steps(own) * tiles(self._kit, own)

        def on_step(index: int, x0: Tensor) -> None:
            desk.listener.obey()
            step = min(index + 1, steps)  # some samplers walk further than they were told
            preview = desk.previews.jpeg(self._kit.in_use, x0[unit - self._batch.units[0]], must=step == steps)
            desk.emit(Step(unit=unit, step=step, steps=steps, preview=preview))
            desk.listener.obey()

        return on_step
