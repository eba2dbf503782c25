"""Draws a contact sheet: what the data teaches in the upper rows, what has to be composed in the lower ones."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from tools.starter.evaluate import load_pipeline
from tools.starter.pictures import SIDE

log = logging.getLogger(__name__)

COLUMNS = 12
LABEL = 14

TAUGHT = (
    "a red apple",
    "a smiling cat face",
    "flag of japan",
    "a rocket, 3d style",
    "a dog, 3d render",
    "a pizza, flat icon",
    "a cup of coffee",
    "a car, 3d render",
    "red heart",
    "a house",
    "a sunflower",
    "a penguin",
    "an octopus, line art",
    "a guitar",
    "a birthday cake",
    "flag of germany",
    "a rainbow",
    "a ghost",
    "a soccer ball",
    "a robot",
    "a lion, flat icon",
    "a castle",
    "a tree",
    "a crying face",
)
LATER = (
    "a wizard",
    "an astronaut",
    "a snail",
    "a princess",
    "a motorcycle",
    "a microscope",
    "a bowl of ramen",
    "a volcano",
    "flag of greece",
    "a giraffe",
    "a taco",
    "a jellyfish",
)
COMPOSED = (
    "a blue apple",
    "a cat, line art",
    "a green rocket",
    "a purple car, 3d render",
    "a pizza, silhouette",
    "a red fish, flat icon",
    "a pink house",
    "a banana on a blue background",
    "a black cat on a yellow background",
    "a blue smiling face",
    "a robot, line art",
    "a yellow heart, 3d render, on a purple background",
)


def draw_sheet(pipe: Any, prompts: Sequence[str], guidance: float, steps: int) -> Image.Image:
    """Every prompt drawn once, twelve in a row, its words below; the same on every run."""
    rows = -(-len(prompts) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for row in range(rows):
        line = prompts[row * COLUMNS : (row + 1) * COLUMNS]
        chance = [torch.Generator().manual_seed(row * COLUMNS + place) for place in range(len(line))]
        settings = {"num_inference_steps": steps, "guidance_scale": guidance, "width": SIDE, "height": SIDE}
        for place, image in enumerate(pipe(list(line), generator=chance, **settings).images):
            corner = place * SIDE, row * (SIDE + LABEL)
            sheet.paste(image, corner)
            pen.text((corner[0] + 2, corner[1] + SIDE + 1), line[place][:24], fill="black")
    return sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", default=Path("models/starter"))
    parser.add_argument("--out", type=Path, help="where to; without it sheet.png in the work folder")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=20)


def run(options: argparse.Namespace) -> None:
    out: Path = options.out or options.work / "sheet.png"
    pipe = load_pipeline(options.folder, options.device)
    draw_sheet(pipe, TAUGHT + LATER + COMPOSED, options.guidance, options.steps).save(out)
    log.info("%s", out)
