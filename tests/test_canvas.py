"""How a picture to start from is laid out, and how the result is put back."""

from typing import Any

import numpy as np
import PIL.Image
import pytest

from pipelines.images.canvas import laid_out, latent_mask, window
from pipelines.images.fill import filled
from pipelines.images.finish import finished, recoloured
from pipelines.images.resize import RESIZES, Box
from pipelines.request import Outpaint, Soft, Start


def noise(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(levels)


def mask(width: int, height: int, box: tuple[int, int, int, int]) -> PIL.Image.Image:
    picture = PIL.Image.new("L", (width, height))
    picture.paste(255, box)
    return picture


def start(**values: Any) -> Start:
    return Start(**{"image": "a", "mask_blur": 0, **values})


def pixels(picture: PIL.Image.Image | None) -> Any:
    assert picture is not None
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("mode", RESIZES)
def test_a_picture_of_the_right_size_stays_as_it_is(mode: str) -> None:
    picture = noise(64, 48)
    found, inner = RESIZES[mode](picture, 64, 48)
    assert found.tobytes() == picture.tobytes()
    assert inner == (0, 0, 64, 48)


def test_resize_modes() -> None:
    picture = PIL.Image.new("RGB", (40, 20), "red")
    picture.paste((0, 0, 255), (20, 0, 40, 20))
    for mode in RESIZES:
        assert RESIZES[mode](picture, 64, 64).picture.size == (64, 64)
    just, crop, fill = (RESIZES[mode](picture, 64, 64) for mode in list(RESIZES)[:3])
    assert pixels(just.picture)[32, [2, 61]].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert pixels(crop.picture)[[0, 63], 2].tolist() == [[255, 0, 0]] * 2  # covers; a half of its width is cut off
    assert fill.inner == (0, 16, 64, 48)
    assert pixels(fill.picture)[0].tolist() == pixels(fill.picture)[16].tolist()  # the edge goes on


def test_the_window_around_a_mask() -> None:
    assert window(mask(100, 80, (40, 40, 50, 50)), 5, 64, 64) == (35, 35, 55, 55)
    assert window(mask(100, 80, (40, 40, 50, 50)), 5, 128, 64) == (25, 35, 65, 55)
    assert window(mask(100, 80, (40, 40, 50, 50)), 5, 64, 128) == (35, 25, 55, 65)
    assert window(mask(100, 80, (0, 0, 4, 4)), 8, 128, 64) == (0, 0, 24, 12)  # moved, not cut
    assert window(mask(100, 80, (10, 0, 20, 80)), 0, 128, 64) == (0, 0, 100, 80)  # the picture is no wider


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_what_no_mask_covers_stays_bit_for_bit(only_masked: bool, size: tuple[int, int]) -> None:
    """Of the picture as it was given, where only a part of it is painted; else of the picture at the pass's size."""
    picture, where = noise(80, 56), mask(80, 56, (20, 10, 40, 30))
    canvas = laid_out(start(mask="m", only_masked=only_masked, padding=4), picture, where, *size)
    result = finished(canvas, noise(*size, seed=1))
    before = picture if only_masked else picture.resize(size, PIL.Image.Resampling.LANCZOS)
    covered = pixels(canvas.cover) > 0
    assert result.size == before.size
    assert (pixels(result)[~covered] == pixels(before)[~covered]).all()
    assert (pixels(result)[covered] != pixels(before)[covered]).mean() > 0.9
    if only_masked:
        assert (covered == (pixels(where) > 0)).all()


def test_masks() -> None:
    picture, where = noise(64, 64), mask(64, 64, (0, 0, 32, 64))
    inverted = laid_out(start(mask="m", mask_invert=True), picture, where, 64, 64)
    assert pixels(inverted.mask)[0, [0, 40]].tolist() == [0, 255]
    drawn = PIL.Image.new("RGBA", (64, 64))
    drawn.paste((0, 0, 0, 255), (0, 0, 32, 64))  # black strokes on nothing
    assert (
        laid_out(start(mask="m"), picture, drawn, 64, 64).mask == laid_out(start(mask="m"), picture, where, 64, 64).mask
    )
    grey = where.point(lambda level: level // 3)
    assert not pixels(laid_out(start(mask="m"), picture, grey, 64, 64).mask).any()
    assert pixels(laid_out(start(mask="m", soft=Soft()), picture, grey, 64, 64).mask).max() == 85
    small = where.resize((16, 16))  # of another size: stretched
    assert pixels(laid_out(start(mask="m"), picture, small, 64, 64).mask)[0, [0, 40]].tolist() == [255, 0]
    blurred = laid_out(start(mask="m", mask_blur=4), picture, where, 64, 64)
    assert pixels(blurred.cover)[0, 31] == 255 > pixels(blurred.cover)[0, 34] > 0 == pixels(blurred.cover)[0, 50]


def test_latent_masks() -> None:
    dot = mask(64, 64, (9, 9, 11, 10))  # thinner than a latent
    assert latent_mask(dot, 8, 8, soft=False).nonzero() == (np.array([1]), np.array([1]))
    half = mask(64, 64, (0, 0, 4, 64))
    assert latent_mask(half, 8, 8, soft=True)[0].tolist() == pytest.approx([0.5] + [0] * 7, abs=0.01)


def test_an_empty_mask_changes_nothing() -> None:
    picture, nothing = noise(64, 64), PIL.Image.new("L", (64, 64))
    for values in ({}, {"only_masked": True}, {"mask_blur": 9}, {"masked_content": "fill"}):
        canvas = laid_out(start(mask="m", **values), picture, nothing, 64, 64)
        assert finished(canvas, noise(64, 64, seed=1)).tobytes() == picture.tobytes()
        assert canvas.picture.tobytes() == picture.tobytes()


def test_colours_from_around() -> None:
    picture = PIL.Image.new("RGB", (70, 50), "red")
    picture.paste((0, 0, 255), (35, 0, 70, 50))
    hole = mask(70, 50, (10, 10, 60, 40))
    damaged = picture.copy()
    damaged.paste((0, 255, 0), (10, 10, 60, 40))
    found = pixels(filled(damaged, hole))
    assert (found[pixels(hole) == 0] == pixels(picture)[pixels(hole) == 0]).all()
    assert not found[..., 1].any()  # nothing of what was there
    assert found[25, 12, 0] > 200 > 50 > found[25, 12, 2]
    assert found[25, 57, 2] > 200 > 50 > found[25, 57, 0]
    assert filled(noise(9, 9), PIL.Image.new("L", (9, 9), 255)).getextrema() == ((128, 128),) * 3


def test_outpainting() -> None:
    picture = noise(64, 48)
    grown = start(outpaint=Outpaint(left=16, down=8, overlap=4))
    canvas = laid_out(grown, picture, None, 80, 56)
    assert canvas.mask is not None
    assert pixels(canvas.mask)[:, 19].all()
    assert not pixels(canvas.mask)[:44, 20:].any()
    assert pixels(canvas.mask)[44:].all()
    result = finished(canvas, noise(80, 56, seed=1))
    assert result.crop((20, 0, 80, 44)).tobytes() == picture.crop((4, 0, 64, 44)).tobytes()
    zoomed = laid_out(start(outpaint=Outpaint(left=32, right=32, up=24, down=24)), picture, None, 64, 48)
    assert finished(zoomed, noise(64, 48)).size == (64, 48)
    both = laid_out(grown.model_copy(update={"mask": "m"}), picture, mask(64, 48, (40, 10, 50, 20)), 80, 56)
    assert both.mask is not None
    assert pixels(both.mask)[15, [10, 30, 60]].tolist() == [255, 0, 255]
    strip = laid_out(start(outpaint=Outpaint(right=32), only_masked=True, padding=16), picture, None, 64, 64)
    assert strip.ground.size == (96, 48)
    assert strip.box == Box(32, 0, 96, 48)


def test_transparent_pictures_lie_on_white() -> None:
    clear = PIL.Image.new("RGBA", (64, 64), (9, 9, 9, 0))
    assert laid_out(start(), clear, None, 64, 64).picture.getextrema() == ((255, 255),) * 3


def test_a_second_pass_has_the_canvas_in_large() -> None:
    picture, where = noise(64, 64), mask(64, 64, (8, 8, 24, 24))
    whole = laid_out(start(mask="m"), picture, where, 64, 64).at(128, 96)
    assert finished(whole, noise(128, 96)).size == (128, 96)
    part = laid_out(start(mask="m", only_masked=True, padding=0), picture, where, 64, 64).at(128, 128)
    result = finished(part, noise(128, 128, seed=1))
    assert result.size == (64, 64)
    assert (pixels(result)[pixels(where) == 0] == pixels(picture)[pixels(where) == 0]).all()


def test_colour_correction() -> None:
    picture, like = noise(64, 64), PIL.Image.new("RGB", (64, 64), (200, 120, 90))
    found = recoloured(picture, like)
    luma = [np.asarray(each.convert("L")).astype(int) for each in (picture, found)]
    assert np.corrcoef(luma[0].ravel(), luma[1].ravel())[0, 1] > 0.9
    assert pixels(found)[..., 0].mean() > pixels(found)[..., 2].mean() + 40
    same = pixels(recoloured(picture, picture)) - pixels(picture)
    assert abs(same).max() <= 1
