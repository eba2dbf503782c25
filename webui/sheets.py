"""The one picture of a plot: all its cells in rows and columns, with a legend. Made of the files in outputs/."""

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import PIL.Image
from PIL import ImageDraw, ImageFont

from pipelines.plot import Plot

MOST_PIXELS = 100 * 2**20
"""Above this, the cells are shrunk."""
GAP = 8
PAPER, INK, QUIET = "#ffffff", "#26231f", "#e5e1d9"
FONTS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "wqy-zenhei.ttc", "DejaVuSans.ttf", "arial.ttf")
"""Those that know more than Latin letters first; Pillow brings one of its own for machines without any."""

Find = Callable[[int], Path | None]
"""The file of a unit; None for one that was skipped."""


def sheet(plot: Plot, find: Find) -> bytes:
    """A PNG: columns are X, rows Y, and one such table below another for each Z. Cells that are missing stay grey."""
    width, height = _cell(plot, find)
    columns, rows, tables = plot.shape
    size = max(14, round(min(width, height) / 16))
    x, y, z = (_labels(plot, axis) for axis in range(3))
    left = _widest(y, size) if any(y) else 0
    top = size * 2 if any(x) else 0
    title = size * 2 if any(z) else 0
    table = title + top + rows * (height + GAP)
    paper = PIL.Image.new("RGB", (left + columns * (width + GAP), tables * table), PAPER)
    pen = ImageDraw.Draw(paper)
    for number in range(tables):
        _write(pen, z[number], (left, number * table, columns * (width + GAP), title), size)
        for column in range(columns):
            _write(pen, x[column], (left + column * (width + GAP), number * table + title, width, top), size)
        for row in range(rows):
            _write(pen, y[row], (0, number * table + title + top + row * (height + GAP), left, height), size)
    for unit in range(plot.size):
        column, row, number = (*plot.place(unit), 0, 0)[:3]
        at = left + column * (width + GAP), number * table + title + top + row * (height + GAP)
        _paste(paper, pen, find(unit), at, (width, height))
    data = io.BytesIO()
    paper.save(data, "PNG", compress_level=4)
    return data.getvalue()


def _cell(plot: Plot, find: Find) -> tuple[int, int]:
    """The largest sides of all pictures, or less where the sheet would become too large."""
    width = height = 1
    for path in filter(None, map(find, range(plot.size))):
        with PIL.Image.open(path) as picture:
            width, height = max(width, picture.width), max(height, picture.height)
    scale = min(1.0, (MOST_PIXELS / (plot.size * width * height)) ** 0.5)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _labels(plot: Plot, axis: int) -> list[str]:
    return [change.label for change in plot.axes[axis].changes] if axis < len(plot.axes) else [""]


def _paste(
    paper: PIL.Image.Image, pen: ImageDraw.ImageDraw, path: Path | None, at: tuple[int, int], size: tuple[int, int]
) -> None:
    if path is None:
        pen.rectangle((*at, at[0] + size[0] - 1, at[1] + size[1] - 1), fill=QUIET)
        return
    with PIL.Image.open(path) as picture:
        shown = picture.convert("RGB")
        if shown.width > size[0] or shown.height > size[1]:
            shown.thumbnail(size, PIL.Image.Resampling.LANCZOS)
        paper.paste(shown, (at[0] + (size[0] - shown.width) // 2, at[1] + (size[1] - shown.height) // 2))


def _widest(labels: list[str], size: int) -> int:
    return min(size * 16, max(round(_font(size).getlength(label)) for label in labels)) + size


def _write(pen: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int], size: int) -> None:
    """In the middle of left, top, width, height; smaller, then cut, where there is no room."""
    left, top, width, height = box
    while size > 10 and _font(size).getlength(text) > width - 4:
        size -= 1
    while text and _font(size).getlength(text) > width - 4:
        text = text.removesuffix("…")[:-1] + "…" if len(text) > 1 else ""
    pen.text((left + width / 2, top + height / 2), text, fill=INK, font=_font(size), anchor="mm")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
