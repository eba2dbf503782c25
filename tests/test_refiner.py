"""Several checkpoints in one job: the refiner for the last steps, another one for the second pass; in what order."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from pipelines.families.sd1 import SD1
from pipelines.families.sdxl import SDXL, Refiner
from pipelines.generate import batches, generate
from pipelines.kit import SoloKit
from pipelines.request import GenerationRequest, Hires
from pipelines.request import Refiner as Asked
from pipelines.samplers import SAMPLERS
from pipelines.types import Assignment, Event, Interrupt, Kind, ModelInfo, Picture, Skipped, Step, file_key
from tests.checkpoints import save_checkpoint
from tests.drawing import draw
from tests.tiny import boot, info

CPU = torch.device("cpu")


class Kit(SoloKit):
    """Several checkpoints by name; the first one is the job's."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        super().__init__(next(iter(models.values())))
        self.models, self.used = models, [""]

    def model(self, name: str = "") -> Any:
        if name != self.used[-1]:
            self.used.append(name)
        return self.models[name]


@pytest.fixture(scope="module")
def checkpoints(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SD1]:
    fine = save_checkpoint(tmp_path_factory.mktemp("sd1") / "fine.safetensors", seed=3, dtype=torch.float32)
    return {"": SD1.load(tiny, CPU), "same": SD1.load(tiny, CPU), "fine": SD1.load(fine, CPU)}


def request(**values: Any) -> GenerationRequest:
    settings = {"prompt": "a cat", "negative_prompt": "rain", "width": 64, "height": 64, "steps": 10, "seed": 5}
    return GenerationRequest(
        **{**settings, "sampler": "Euler", "refiner": Asked(model="fine", switch_at=0.7), **values}
    )


def calls(checkpoints: Mapping[str, SD1], asked: GenerationRequest) -> dict[str, list[float]]:
    """At which noise levels each checkpoint was asked."""
    seen: dict[str, list[float]] = {name: [] for name in checkpoints}
    hooks = [
        model.unet.register_forward_pre_hook(lambda module, args, to=seen[name]: to.append(round(float(args[1][0]))))
        for name, model in checkpoints.items()
    ]
    draw(Kit(checkpoints), asked)
    for hook in hooks:
        hook.remove()
    return seen


def difference(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean())


def test_it_takes_over_after_its_share_of_the_noise_levels(checkpoints: dict[str, SD1]) -> None:
    seen = calls(checkpoints, request(schedule="SGM Uniform"))
    assert seen == {"": [999, 899, 799, 699, 599, 500, 400, 300], "same": [], "fine": [200, 100]}
    assert calls(checkpoints, request(refiner=Asked(model="fine", switch_at=1)))["fine"] == []
    late = request(refiner=Asked(model="fine", switch_at=0), schedule="SGM Uniform")
    assert calls(checkpoints, late)[""] == [999]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_checkpoint_as_refiner_changes_little_or_nothing(checkpoints: dict[str, SD1], sampler: str) -> None:
    """A solver begins anew after the change: one that looks back at earlier steps forgets them."""
    asked = request(refiner=Asked(model="same", switch_at=0.7), sampler=sampler, steps=24)
    plain, refined = (draw(Kit(checkpoints), each)[0] for each in (asked.model_copy(update={"refiner": None}), asked))
    forgets = {"DPM fast", "DPM adaptive", "Restart", "LMS", "PLMS", "UniPC", "DEIS", "IPNDM", "TCD"}
    looks_back = sampler in forgets or "2M" in sampler or "3M" in sampler
    assert difference(plain, refined) < (6 if looks_back else 0.01)


def test_images_of_a_batch_are_the_single_ones(checkpoints: dict[str, SD1]) -> None:
    together = draw(Kit(checkpoints), request(batch_size=2))
    assert difference(together[1], draw(Kit(checkpoints), request(seed=6))[0]) < 0.1


USED: dict[Any, list[str]] = {
    "first pass": ["", "fine", ""],
    "second pass": ["", "fine"],
    "both passes": ["", "fine", "", "fine"],
}


def test_which_pass_it_refines(checkpoints: dict[str, SD1]) -> None:
    hires, found = Hires(steps=4, denoising_strength=0.5), {}
    for during, used in USED.items():
        refiner, kit = Asked(model="fine", switch_at=0.7, during=during), Kit(checkpoints)
        found[during] = draw(kit, request(refiner=refiner, hires=hires))[0].tobytes()
        assert kit.used == used
        assert kit.used == (
            ["", "fine", "", "fine"] if during == "both passes" else ["", "fine"] + [""] * (during[0] == "f")
        )
    assert len(set(found.values())) == 3


def test_another_checkpoint_for_the_second_pass(checkpoints: dict[str, SD1]) -> None:
    plain = request(refiner=None, hires=Hires(steps=3))
    other = plain.model_copy(update={"hires": Hires(steps=3, model="fine")})
    kit = Kit(checkpoints)
    assert draw(kit, other)[0].tobytes() != draw(kit, plain)[0].tobytes()
    same = plain.model_copy(update={"hires": Hires(steps=3, model="same")})
    assert draw(kit, same)[0].tobytes() == draw(kit, plain)[0].tobytes()


def test_progress_goes_on_after_the_change(checkpoints: dict[str, SD1]) -> None:
    asked, steps = request(), []
    kit = Kit(checkpoints)
    list(generate(asked, kit, batches(asked, [0], kit)[0], lambda index, x0: steps.append(index)))
    assert steps == list(range(10))


def test_sdxl_and_its_refiner(tmp_path: Path) -> None:
    """The refiner is told marks for beauty; its own text encoder reads the prompt."""
    xl = SDXL.load(save_checkpoint(tmp_path / "xl.safetensors", "sdxl"), CPU)
    refiner = Refiner.load(save_checkpoint(tmp_path / "refiner.safetensors", "sdxl-refiner"), CPU)
    sizes: list[Tensor] = []
    hook = refiner.unet.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    kit = Kit({"": xl, "fine": refiner})
    assert draw(kit, request(steps=4))[0].size == (64, 64)
    hook.remove()
    assert kit.used == ["", "fine"]
    assert sizes[0].tolist() == [[64, 64, 0, 0, 6.0], [64, 64, 0, 0, 2.5]]


def run(folder: Path, other: Path, wish_at: Any = None, **values: Any) -> tuple[list[Event], list[str]]:
    """All events of a job in a worker with both checkpoints, and the names of those that were put into use."""
    asked = request(**{"steps": 4, "batch_count": 3, **values})
    names = {key: model for key, model in (("fine", info(other)),)}
    files = {file_key(Kind.CHECKPOINT, name): model for name, model in names.items()}
    work = Assignment(job=1, task=asked, model=info(folder), units=tuple(range(asked.units)), files=files)
    session, events, wishes, used = boot({"device": "cpu"}), list[Event](), list[Interrupt](), list[str]()
    before = session._models.use

    def use(model: ModelInfo, *rest: Any) -> Any:
        used.append(model.name)
        return before(model, *rest)

    vars(session._models)["use"] = use

    def emit(event: Event) -> None:
        events.append(event)
        if wish_at and (wish := wish_at(event)):
            wishes.append(wish)

    session.run(work, emit, lambda: wishes.pop() if wishes else None, lambda status: None)
    return events, used


@pytest.fixture(scope="module")
def other(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(tiny, folder)
    return folder


def test_batches_wait_for_each_other_so_that_each_checkpoint_is_loaded_once(tiny: Path, other: Path) -> None:
    refiner = Asked(model="fine", switch_at=0.5)
    events, used = run(tiny, other, refiner=refiner, schedule="SGM Uniform")
    assert used == ["tiny", "other"]
    steps = [(event.unit, event.step) for event in events if isinstance(event, Step)]
    early = [(unit, step) for unit in range(3) for step in (1, 2, 3)]
    assert steps == early + [(unit, 4) for unit in range(3)]
    assert [event.unit for event in events if isinstance(event, Picture)] == [0, 1, 2]
    alone, _ = run(tiny, other, refiner=refiner, schedule="SGM Uniform", batch_count=1, seed=7)
    last, single = (next(e for e in reversed(found) if isinstance(e, Picture)) for found in (events, alone))
    assert PIL.Image.open(io.BytesIO(last.png)).tobytes() == PIL.Image.open(io.BytesIO(single.png)).tobytes()


def test_a_batch_that_is_skipped_leaves_the_others_alone(tiny: Path, other: Path) -> None:
    def wish(event: Event) -> Interrupt | None:
        return Interrupt.SKIP if isinstance(event, Step) and (event.unit, event.step) == (1, 2) else None

    events, _ = run(tiny, other, wish, refiner=Asked(model="fine", switch_at=0.5))
    assert [event.units for event in events if isinstance(event, Skipped)] == [(1,)]
    assert [event.unit for event in events if isinstance(event, Picture)] == [0, 2]
