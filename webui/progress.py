"""How far a running job is. Passing knowledge: it lives in memory, and only the latest counts."""

import time
from dataclasses import dataclass, field

from pipelines.stages import at_once
from pipelines.types import Decoding, Note, Step, Task


@dataclass
class Progress:
    job: int
    task: Task
    done: int = 0
    unit: int = 0
    step: int = 0
    steps: int = 0
    tile: int = 0
    """Of the picture that is being decoded; 0 of 0 while it is denoised."""
    tiles: int = 0
    notes: list[str] = field(default_factory=list)
    seconds_left: float | None = None
    stopping: bool = False
    """The user's wish outlives the worker that was told of it."""
    preview: bytes | None = None
    frame: int = 0
    """Counts the previews, so that nobody is sent the same one twice."""
    _at: dict[int, int] = field(default_factory=dict)
    """How many steps of each batch are done; without those that are done or skipped."""
    _first_step: float | None = None
    _steps_done: int = 0

    def begin(self, units: tuple[int, ...]) -> None:
        """`units` are still to be made; the others were finished by an earlier try."""
        self.done = self.task.files - len(units)
        self._at = {unit // at_once(self.task): 0 for unit in units}

    def skip(self, units: tuple[int, ...]) -> None:
        """They are not made."""
        for unit in units:
            self._at.pop(unit // at_once(self.task), None)

    def take(self, event: Step | Decoding | Note, now: float | None = None) -> None:
        match event:
            case Note():
                self.notes.append(event.text)
            case Decoding():
                self.unit, self.tile, self.tiles = event.unit, event.tile, event.tiles
            case Step():
                self.tile = self.tiles = 0
                self._count(event, time.monotonic() if now is None else now)

    def _count(self, event: Step, now: float) -> None:
        self.unit, self.step, self.steps = event.unit, event.step, event.steps
        if event.preview is not None:
            self.preview, self.frame = event.preview, self.frame + 1
        self._at[event.unit // at_once(self.task)] = event.step
        left = sum(event.steps - done for done in self._at.values())
        if self._first_step is None:
            self._first_step = now
        else:  # the first step also pays for loading, so it only starts the clock
            self._steps_done += 1
            pace = (now - self._first_step) / self._steps_done
            self.seconds_left = round(pace * left, 1)

    def public(self) -> dict[str, object]:
        """What the pages and GET /jobs show."""
        return {
            "job": self.job,
            "prompt": self.task.prompt[:200],
            "width": self.task.width,
            "height": self.task.height,
            "done": self.done,
            "total": self.task.files,
            "unit": self.unit,
            "step": self.step,
            "steps": self.steps,
            "tile": self.tile,
            "tiles": self.tiles,
            "notes": self.notes,
            "seconds_left": self.seconds_left,
        }
