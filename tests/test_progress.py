"""How far a job is, and how long it will still take."""

from pipelines.request import GenerationRequest
from pipelines.types import Step
from webui.progress import Progress


def test_time_left_follows_the_pace_and_what_is_missing() -> None:
    progress = Progress(job=1, task=GenerationRequest(batch_count=3, batch_size=2))
    progress.begin((2, 3, 4, 5))  # the first batch was made before a crash
    assert progress.done == 2
    for step in range(1, 6):
        progress.take(Step(unit=2, step=step, steps=10), now=100 + 2 * step)
    assert progress.seconds_left == 2 * (5 + 10), "five more steps, and one more batch of ten"
    progress.take(Step(unit=4, step=5, steps=10), now=112)  # in turns: the other checkpoint comes later
    assert progress.seconds_left == 2 * (5 + 5)
    progress.skip((2, 3))
    progress.take(Step(unit=4, step=10, steps=10), now=114)
    assert progress.seconds_left == 0


def test_a_new_preview_is_a_new_frame() -> None:
    progress = Progress(job=1, task=GenerationRequest())
    progress.take(Step(unit=0, step=1, steps=2, preview=b"a"))
    progress.take(Step(unit=0, step=2, steps=2))
    assert (progress.preview, progress.frame) == (b"a", 1)
