"""From a unit's picture to its hint: sizes, masks, and the preprocessors that need no weights."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from pipelines.control.annotators.table import ANNOTATORS, preprocess
from pipelines.control.annotators.types import Array, Settings
from pipelines.control.hints import Hint, hint_for, settings_for
from pipelines.control.pictures import fitted, resolution_for
from pipelines.control.preprocessors import MODULES, UNION_TYPES, module_named, setting, union_type
from pipelines.control.restraints import blurred, restrained
from pipelines.control.units import Unit
from pipelines.errors import UnknownChoice
from pipelines.families.sd1 import SD1
from pipelines.request import Control, GenerationRequest, Start
from pipelines.scene import Scene
from tests.controls import FullKit, half, info, picture, scene_of
from tests.networks import numbers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def kit(tiny: Path) -> FullKit:
    wide = PIL.Image.new("RGB", (200, 100), "blue")
    wide.paste("red", (0, 0, 100, 100))
    seen_through = PIL.Image.new("RGBA", (64, 96), (0, 0, 0, 0))
    pictures = {"one": picture(seed=1), "wide": wide, "half": half(), "clear": seen_through}
    return FullKit(SD1.load(tiny, CPU), {}, pictures)


def hint(kit: FullKit, control: Control, **request: Any) -> Hint:
    asked = GenerationRequest(width=64, height=96, steps=2, controls=(control,), **request)
    return hint_for(scene_of(kit, asked), control)


def by(name: str, given: PIL.Image.Image, a: float | None = None, b: float | None = None) -> np.ndarray[Any, Any]:
    module = module_named(name).module
    settings = Settings(setting(module.a, a), setting(module.b, b), CPU, lambda variant: None, print)
    return np.asarray(preprocess(module, given, 64, settings))


def test_without_a_preprocessor_the_picture_is_taken_as_it_is(kit: FullKit) -> None:
    found = hint(kit, Control(image="one")).pixels
    assert torch.equal(found * 255, torch.from_numpy(np.array(kit.images["one"])).permute(2, 0, 1)[None].float())
    assert hint(kit, Control(image="clear")).pixels.min() == 1  # on white


def test_resize_modes() -> None:
    wide = PIL.Image.new("RGB", (200, 100), "blue")
    wide.paste("red", (90, 0, 110, 100))
    squeezed, cut, filled = (
        np.asarray(fitted(wide, (50, 50), mode)) for mode in ("Just resize", "Crop and resize", "Resize and fill")
    )
    assert squeezed.shape == cut.shape == filled.shape == (50, 50, 3)
    reds = [(each[25, :, 0] > 128).sum() for each in (squeezed, cut, filled)]
    assert reds == [4, 10, 4]
    assert (filled[0] == (0, 0, 255)).all()  # the usual colour of the edge
    assert resolution_for((200, 100), (50, 50), "Crop and resize") == 64
    assert resolution_for((200, 100), (512, 512), "Crop and resize") == 512
    assert resolution_for((200, 100), (512, 512), "Resize and fill") == 256
    larger = fitted(half(), (128, 192), "Just resize")
    assert larger.getcolors() == [(64 * 192, 0), (64 * 192, 255)]  # nothing between the colours of a map


def test_masked_pixels_are_marked_for_inpainting_only(kit: FullKit) -> None:
    found = hint(kit, Control(image="one", mask="half", module="inpaint_only"))
    assert found.mask is not None
    assert (found.pixels[..., :32] == -1).all()
    assert torch.equal(found.pixels[..., 32:], found.picture[..., 32:])
    assert hint(kit, Control(image="one", mask="half")).pixels.min() >= 0


def test_a_unit_without_a_picture_follows_the_one_to_start_from(kit: FullKit) -> None:
    start = Start(image="wide", resize_mode="Crop and resize", mask="half")
    found = hint(kit, Control(module="inpaint"), start=start)
    assert found.mask is not None
    assert (found.pixels[..., :32] == -1).all()
    whole = start.model_copy(update={"only_masked": True, "padding": 0, "mask_blur": 0})
    part, own = (hint(kit, Control(image=image, resize_mode="Just resize"), start=whole) for image in (None, "wide"))
    assert torch.equal(part.pixels, own.pixels)  # both the left half, as it is painted


def test_a_map_is_made_once(kit: FullKit, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(picture: Array, settings: Settings) -> Array:
        calls.append(1)
        return picture

    monkeypatch.setitem(ANNOTATORS, "invert", counted)
    for _ in range(2):
        hint(kit, Control(image="one", module="invert"))
    assert calls == [1]


def test_what_stands_in_for_another_is_said(kit: FullKit) -> None:
    hint(kit, Control(image="one", module="lineart_anime"))
    assert kit.notes[-1] == "The preprocessor lineart_anime is not here: lineart_standard is used instead."
    assert module_named("INVERT (from white bg & black line)").module.name == "invert"
    with pytest.raises(UnknownChoice, match="Choose one of: none, canny"):
        module_named("kanny")


def test_every_module_works_and_has_one_name_each() -> None:
    names = [name for row in MODULES for name in (row.name, *row.labels, *row.instead_of)]
    assert len(set(names)) == len(names)
    assert ANNOTATORS.keys() == {row.name for row in MODULES}
    for row in (row for row in MODULES if not row.file):
        found = by(row.name, picture(64, 96))
        assert (found.dtype, found.shape[2]) == (np.uint8, 3), row.name


def test_lines() -> None:
    drawing = PIL.Image.new("RGB", (128, 128), "white")
    drawing.paste("black", (40, 0, 44, 128))
    for name in ("canny", "lineart_standard", "scribble_xdog", "lines"):
        found = by(name, drawing)[:, :, 0]
        columns = found.max(axis=0) > 100
        assert columns[15:27].any(), name
        assert not columns[:12].any(), name
        assert not columns[30:].any(), name
    assert not by("canny", drawing, 250, 255)[:, 40:].any()
    assert by("threshold", drawing, 127).mean() > 200
    assert by("invert", drawing).mean() < 50


def test_tones() -> None:
    wide = PIL.Image.new("RGB", (200, 100), "blue")
    assert by("tile_resample", wide, 2).shape == (50, 100, 3)
    assert (by("shuffle", picture(128, 128)) == by("shuffle", picture(128, 128))).all()
    grey = PIL.Image.new("RGB", (64, 64), (64, 64, 64))
    assert by("recolor_intensity", grey, 0.5)[0, 0, 0] == pytest.approx(128, abs=2)
    assert np.asarray(by("blur_gaussian", half().convert("RGB"), 20)).std() < np.asarray(half()).std()


def test_settings_stay_in_their_range() -> None:
    canny = module_named("canny").module
    assert [setting(canny.a, value) for value in (None, -1, 0, 50, 999)] == [100, 100, 1, 50, 255]
    assert setting(None, 7) == 0


def test_union_types_follow_from_the_preprocessor() -> None:
    found = {row.name: union_type("", row) for row in MODULES if row.type in ("Canny", "Lineart", "Tile", "Inpaint")}
    assert (found["canny"].sdxl, found["canny"].flux) == (3, 0)
    assert (found["tile_resample"].sdxl, found["tile_resample"].flux) == (6, 1)
    assert (found["blur_gaussian"].flux, found["inpaint"].sdxl) == (3, 7)
    none = module_named("none").module
    assert union_type("openpose", none) == UNION_TYPES[0]
    assert union_type("Soft Edge", none).name == "Soft Edge"
    with pytest.raises(UnknownChoice, match="Depth"):
        union_type("", none)


def scene_and_unit(kit: FullKit, control: Control) -> tuple[Scene, Unit]:
    asked = GenerationRequest(width=64, height=96, steps=2, controls=(control,))
    scene = scene_of(kit, asked)
    module = module_named(control.module).module
    return scene, Unit(control, module, info(Path("net")), hint_for(scene, control), soft=False)


@torch.inference_mode()
def test_inpaint_only_keeps_what_is_not_masked(kit: FullKit) -> None:
    scene, unit = scene_and_unit(kit, Control(image="one", mask="half", module="inpaint_only"))
    found = restrained(scene, [unit], lambda x, sigma: x)(torch.zeros(1, 4, 12, 8), 1.0)
    assert not found[..., :4].any()
    assert torch.equal(found[..., 4:], kit.model().to_latent(unit.hint.picture)[..., 4:])


@torch.inference_mode()
def test_colours_are_those_of_the_picture(kit: FullKit) -> None:
    """As long as the unit counts; of what is finer, more with sharpness."""
    scene, unit = scene_and_unit(kit, Control(image="one", module="tile_colorfix", end=0.5))
    x = numbers(1, 4, 12, 8)
    fix = restrained(scene, [unit], lambda x, sigma: x)
    colours = blurred(kit.model().to_latent(unit.hint.picture), 1)
    assert torch.allclose(fix(x, scene.sigmas[0]) - x, colours - blurred(x, 1), atol=1e-5)
    assert torch.equal(fix(x, scene.sigmas[1]), x)
    scene, unit = scene_and_unit(kit, Control(image="one", module="tile_colorfix+sharp", threshold_b=2))
    sharp = restrained(scene, [unit], lambda x, sigma: x)(x, scene.sigmas[0])
    assert torch.allclose(sharp, colours + (x - blurred(x, 1)) * 1.5, atol=1e-5)


def test_files_of_preprocessors_are_looked_up_in_the_job(kit: FullKit) -> None:
    settings = settings_for(kit, CPU, module_named("canny").module, None, None)
    assert settings.file("depth") is None
