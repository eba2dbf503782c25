"""Pictures to be followed, brought to the size of the result. Masks are white where something counts."""

import PIL.Image

from pipelines.request import ResizeMode

FEW_COLOURS = 200
"""A picture with no more is a map of areas or lines: between its colours there is nothing."""

Size = tuple[int, int]
"""Width and height in pixels."""


def as_mask(picture: PIL.Image.Image) -> PIL.Image.Image:
    """L. Drawn on a transparent ground, what is opaque counts; else what is bright."""
    return picture.getchannel("A") if picture.mode == "RGBA" else picture.convert("L")


def resized(picture: PIL.Image.Image, size: Size) -> PIL.Image.Image:
    if picture.size == size:
        return picture
    colours = picture.getcolors(FEW_COLOURS)
    larger = size[0] * size[1] > picture.width * picture.height
    if colours and (larger or len(colours) > 2):  # lines would break if every other pixel was left out
        return picture.resize(size, PIL.Image.Resampling.NEAREST)
    return picture.resize(size, PIL.Image.Resampling.LANCZOS)


def scale_of(picture: Size, size: Size, mode: ResizeMode) -> tuple[float, float]:
    """By what width and height grow."""
    x, y = size[0] / picture[0], size[1] / picture[1]
    if mode == "Crop and resize":
        return max(x, y), max(x, y)
    return (min(x, y), min(x, y)) if mode == "Resize and fill" else (x, y)


def fitted(picture: PIL.Image.Image, size: Size, mode: ResizeMode) -> PIL.Image.Image:
    """At this size. What is to be filled takes the colour that is most usual at the picture's edge."""
    if picture.size == size:
        return picture
    x, y = scale_of(picture.size, size, mode)
    scaled = resized(picture, (max(1, round(picture.width * x)), max(1, round(picture.height * y))))
    place = ((size[0] - scaled.width) // 2, (size[1] - scaled.height) // 2)
    if mode != "Resize and fill":
        left, top = -place[0], -place[1]
        return scaled.crop((left, top, left + size[0], top + size[1]))
    ground = PIL.Image.new(picture.mode, size, _edge_colour(scaled))
    ground.paste(scaled, place)
    return ground


def resolution_for(picture: Size, size: Size, mode: ResizeMode) -> int:
    """Of a preprocessor, so that its map has as many pixels as the result shows of it: 'pixel perfect'."""
    x, y = size[0] / picture[0], size[1] / picture[1]
    scale = min(x, y) if mode == "Resize and fill" else max(x, y)
    return max(64, round(scale * min(picture)))


def _edge_colour(picture: PIL.Image.Image) -> tuple[int, ...] | int:
    width, height = picture.size
    edge = PIL.Image.new(picture.mode, (2 * (width + height), 1))
    edge.paste(picture.crop((0, 0, width, 1)), (0, 0))
    edge.paste(picture.crop((0, height - 1, width, height)), (width, 0))
    for i, left in enumerate((0, width - 1)):
        column = picture.crop((left, 0, left + 1, height)).transpose(PIL.Image.Transpose.ROTATE_90)
        edge.paste(column, (2 * width + i * height, 0))
    medians = [sorted(band.tobytes())[edge.width // 2] for band in edge.split()]
    return medians[0] if len(medians) == 1 else tuple(medians)
