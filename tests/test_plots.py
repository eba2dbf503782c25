"""Plots: how values are read, which image is which cell, and that a plot is one job whose cells are single pictures."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines import infotext
from pipelines.families.sd1 import SD1
from pipelines.plot import Axis, Change, Plot
from pipelines.request import Faces, GenerationRequest, Hires, Refiner, Start
from pipelines.stages import extent
from pipelines.types import ModelInfo
from tests.drawing import draw
from webui.plots.axes import AXES, axis
from webui.plots.scripts import AxisText, Script, plotted
from webui.plots.values import BadValues, numbers, whole_numbers, words
from webui.sheets import sheet

BASE = GenerationRequest(prompt="a red cat", negative_prompt="rain", width=64, height=64, steps=2, seed=5)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1, 2,5", [1, 2, 5]),
        ("1-5", [1, 2, 3, 4, 5]),
        ("5-1", [5, 4, 3, 2, 1]),
        ("1-10 (+3)", [1, 4, 7, 10]),
        ("10-5 (-2)", [10, 8, 6]),
        ("1-10 [4]", [1, 4, 7, 10]),
        ("0.5-1 [3], 2", [0.5, 0.75, 1, 2]),
        ("0-1 (+0.25)", [0, 0.25, 0.5, 0.75, 1]),
        ("-1", [-1]),
        ("1-9 [1]", [1]),
        ("", []),
    ],
)
def test_numbers(text: str, found: list[float]) -> None:
    assert numbers(text) == pytest.approx(found)


@pytest.mark.parametrize("text", ["a", "1-", "1-10 (-1)", "1-10 (+0)", "0-100000", "1--2--3"])
def test_what_is_no_number_is_said(text: str) -> None:
    with pytest.raises(BadValues):
        whole_numbers(text)


@given(st.text(max_size=60))
def test_no_text_does_harm(text: str) -> None:
    for read in (words, numbers, whole_numbers):
        with contextlib.suppress(BadValues):
            assert isinstance(read(text), list)


def test_words_in_quotes_keep_their_commas() -> None:
    assert words('a b, "c, d" ,\ne') == ["a b", "c, d", "e"]


def plot(*axes: tuple[str, str], **changes: Any) -> GenerationRequest:
    script = Script(axes=tuple(AxisText(name=name, values=values) for name, values in axes))
    return plotted(BASE.model_copy(update=changes), script)


def test_cells_are_requests_of_their_own_and_the_costliest_axis_is_outermost() -> None:
    asked = plot(("Steps", "3, 4"), ("Checkpoint name", "one, two"))
    assert (asked.units, asked.files) == (4, 5)
    cells = [asked.cell(unit) for unit in range(4)]
    assert [(cell.model, cell.steps) for cell in cells] == [("one", 3), ("one", 4), ("two", 3), ("two", 4)]
    assert [asked.plot.place(unit) for unit in range(4)] == [(0, 0), (1, 0), (0, 1), (1, 1)] if asked.plot else False
    assert all(cell.plot is None and cell.units == 1 for cell in cells)


def test_prompts_are_changed_by_several_axes() -> None:
    asked = plot(("Prompt S/R", "red, blue"), ("Prompt S/R", "cat, dog"), hires=Hires(prompt="red fur"))
    found = [(asked.cell(unit).prompt, asked.cell(unit).hires) for unit in range(4)]
    assert [prompt for prompt, _ in found] == ["a red cat", "a blue cat", "a red dog", "a blue dog"]
    assert [hires.prompt for _, hires in found if hires] == ["red fur", "blue fur"] * 2
    assert [plot(("Prompt order", "cat, red")).cell(unit).prompt for unit in (0, 1)] == ["a red cat", "a cat red"]


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ([("Prompt S/R", "green, blue")], "stands in no prompt"),
        ([("Nothing", "1")], "There is no axis 'Nothing'"),
        ([("Steps", "")], "give one value"),
        ([("Hires steps", "1, 2")], "without Hires fix"),
        ([("Denoising", "0.5")], "without a picture"),
        ([("Size", "512")], "not like 512x768"),
        ([("Seed", "1-1500"), ("Steps", "1, 2")], "3000 pictures are too many"),
        ([], "at least one axis"),
    ],
)
def test_what_cannot_be_plotted_is_said(axes: list[tuple[str, str]], reason: str) -> None:
    with pytest.raises(BadValues, match=reason):
        plot(*axes)


def test_every_axis_reads_a_value_and_sets_a_field() -> None:
    base = BASE.model_copy(update={"hires": Hires(), "start": Start(image="x"), "refiner": Refiner(model="b")})
    typed = {
        "Sampler": "euler a",
        "Hires sampler": "DPM++ 2M Karras",
        "Prompt S/R": "red",
        "Prompt order": "red, cat",
        "Size": "64x64",
        "RNG source": "NV",
        "Token merging ratio": "0.5",
    }
    for row in AXES:
        made = axis(row.name, typed.get(row.name, "1"), base)
        cell = base.model_copy(update={"plot": Plot(axes=(made,))}).cell(0).model_dump()
        for path, value in made.changes[0].update.items():
            found: Any = cell
            for name in path.split("."):
                found = found[name]
            assert found == value, row.name


def test_random_seeds_are_drawn_once() -> None:
    asked = plot(("Seed", "-1, -1, 7"))
    seeds = [asked.seed_of(unit) for unit in range(3)]
    assert seeds[2] == 7
    assert len(set(seeds)) == 3
    assert min(seeds) >= 0
    assert seeds == [asked.seed_of(unit) for unit in range(3)]


def test_prompt_matrix() -> None:
    asked = plotted(BASE.model_copy(update={"prompt": "a cat | in a hat | at night"}), Script(kind="matrix"))
    prompts = {asked.cell(unit).prompt for unit in range(asked.units)}
    assert prompts == {"a cat", "a cat, in a hat", "a cat, at night", "a cat, in a hat, at night"}
    assert plotted(BASE.model_copy(update={"prompt": "a|b"}), Script(kind="matrix")).units == 2
    with pytest.raises(BadValues, match=r"with \| between"):
        plotted(BASE, Script(kind="matrix"))


def test_prompts_from_text() -> None:
    text = 'a dog\n\n--prompt "a cow" --steps 7 --sampler_name "Euler a" --cfg_scale 3.5\n--negative_prompt fog'
    asked = plotted(BASE, Script(kind="lines", lines=text))
    first, second, third = (asked.cell(unit) for unit in range(3))
    assert (first.prompt, first.steps) == ("a dog", 2)
    assert (second.prompt, second.steps, second.sampler, second.cfg_scale) == ("a cow", 7, "Euler a", 3.5)
    assert (third.prompt, third.negative_prompt) == ("a red cat", "fog")
    for bad in ('--prompt "a', "--nothing 1", "--steps many", ""):
        with pytest.raises(BadValues):
            plotted(BASE, Script(kind="lines", lines=bad))


def test_a_cell_is_the_single_picture(tiny: Path) -> None:
    model = SD1.load(tiny, torch.device("cpu"))
    asked = plot(("CFG Scale", "1, 7"), ("Seed", "5, 6"))
    cells = draw(model, asked)
    for unit, picture in cells.items():
        assert picture.tobytes() == draw(model, asked.cell(unit))[0].tobytes()
    assert len({picture.tobytes() for picture in cells.values()}) == 4


def test_the_text_of_a_cell_is_its_own_and_the_sheet_names_the_axes() -> None:
    model = ModelInfo(name="tiny", family="sd1", path=Path(), size_bytes=1)
    asked = plot(("CFG Scale", "1, 7"), ("Steps", "2-3"))
    cell = infotext.load(infotext.dump(asked, 3, model, "1")).request
    assert (cell.cfg_scale, cell.steps, cell.seed) == (7, 3, 5)
    text = infotext.dump(asked, asked.units, model, "1")
    assert 'Script: X/Y/Z plot, X Type: CFG Scale, X Values: "1, 7", Y Type: Steps, Y Values: "2, 3"' in text
    assert infotext.load(text).notes == ()


def test_a_sheet_has_every_cell_in_its_place(tmp_path: Path) -> None:
    changes = [Change(label=label) for label in ("left", "right")]
    three = Plot(
        axes=(Axis(name="X", changes=tuple(changes)), Axis(name="Y", changes=(*changes, Change(label="最后"))))
    )
    paths: dict[int, Path] = {}
    for unit in range(5):  # the sixth was skipped
        paths[unit] = tmp_path / f"{unit}.png"
        PIL.Image.new("RGB", (64, 48), (40 * unit, 255, 0)).save(paths[unit])
    made = PIL.Image.open(io.BytesIO(sheet(three, paths.get)))
    pixels = np.asarray(made)
    left, top = made.width - 2 * 72, made.height - 3 * 56
    for unit in range(5):
        column, row = three.place(unit)
        middle = pixels[top + row * 56 + 24, left + column * 72 + 32]
        assert tuple(middle) == (40 * unit, 255, 0)
    assert tuple(pixels[top + 2 * 56 + 24, left + 72 + 32]) == (229, 225, 217)
    assert (pixels[:top].min(), pixels[:, : left - 4].min()) < (100, 100), "there is a legend"


def test_no_face_restoration_is_a_value() -> None:
    asked = plot(("Face restore", "None, GFPGAN"), faces=Faces(model="CodeFormer"))
    assert [asked.cell(unit).faces for unit in range(2)] == [None, Faces(model="GFPGAN")]


def test_the_most_that_a_cell_needs_is_planned_for() -> None:
    assert extent(plot(("Perturbed attention", "0, 3"))).prompts == 2
    assert extent(plot(("Size", "64x64, 128x96"))).width == 128
