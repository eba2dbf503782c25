"""Step 1: fetches the MIT-licensed npm packages and makes the training pictures: pictures.npy, pictures.json."""

import argparse
import json
import logging
import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import TypeAdapter

from tools.starter.pictures import (
    HUES,
    PAINTS,
    SIDE,
    WHITE,
    Picture,
    Pixels,
    dominant_hue,
    draw_icon,
    draw_svg,
    lay_on,
    line_art,
    recolor,
)

log = logging.getLogger(__name__)

PACKAGES = {
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fluent-emoji-high-contrast": "1.2.6",
    "flag-icons": "7.5.0",
    "emojibase-data": "17.0.0",
}
"""All under the MIT licence."""

GROUP_WEIGHTS = {0: 1.0, 1: 0.35, 3: 1.0, 4: 1.0, 5: 0.6, 6: 0.6, 7: 0.6, 8: 0.25}
"""emojibase's groups: smileys, people, animals, food, travel, activities, objects, symbols."""

PEOPLE = ("hand", "body", "person-role", "person-fantasy")
SYMBOLS = ("zodiac", "arrow", "geometric", "warning", "transport-sign", "religion")
GENDERED = re.compile(r"\b(man|woman|men|women)\b")
PICTURES = TypeAdapter(tuple[Picture, ...])

Made = Iterator[tuple[Picture, Pixels]]


def fetch(folder: Path) -> None:
    """Has npm install the packages into `folder`/node_modules."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}')
    wanted = [f"{name}@{version}" for name, version in PACKAGES.items()]
    subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *wanted], cwd=folder, check=True)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(name: str) -> str:
    """One spelling of an emoji's code points for all packages: `2764-fe0f` and `2764` are the same."""
    return name.lower().replace("-fe0f", "").lstrip("0")


@dataclass(frozen=True)
class Emoji:
    """One emoji and its drawings: a 3D render's path, the inside of a flat and of a one-colour SVG."""

    name: str
    tags: tuple[str, ...]
    weight: float
    render: Path | None
    flat: str | None
    glyph: str | None


def is_wanted(name: str, group: int, subgroup: str) -> bool:
    """Things, animals and faces; few people and signs, for a picture of 128 pixels shows them badly."""
    if "o’clock" in name or "thirty" in name:
        return False
    if group == 1:
        return subgroup.startswith(PEOPLE) and not GENDERED.search(name)
    return group in GROUP_WEIGHTS and (group != 8 or subgroup in SYMBOLS)


def read_emoji(modules: Path) -> Iterator[Emoji]:
    """The emoji to draw, from the packages in node_modules."""
    subgroups = read_json(modules / "emojibase-data/meta/groups.json")["subgroups"]
    flat, glyph = modules / "@iconify-json/fluent-emoji-flat", modules / "@iconify-json/fluent-emoji-high-contrast"
    flat_icons, flat_names = read_json(flat / "icons.json")["icons"], read_json(flat / "chars.json")
    glyph_icons, glyph_names = read_json(glyph / "icons.json")["icons"], read_json(glyph / "chars.json")
    renders = {code_of(path.stem): path for path in (modules / "@lobehub/fluent-emoji-3d/assets").iterdir()}
    for entry in read_json(modules / "emojibase-data/en/data.json"):
        name, group = entry["label"].replace("“", "").replace("”", "").lower(), entry.get("group")
        if group is None or not is_wanted(name, group, subgroups[str(entry["subgroup"])]):
            continue
        code = code_of(entry["hexcode"])
        yield Emoji(
            name=name,
            tags=tuple(entry.get("tags", [])[:8]),
            weight=GROUP_WEIGHTS[group],
            render=renders.get(code),
            flat=flat_icons[flat_names[code]]["body"] if code in flat_names else None,
            glyph=glyph_icons[glyph_names[code]]["body"] if code in glyph_names else None,
        )


@dataclass
class Studio:
    """Makes the pictures of emoji and flags; what is left to chance depends on `seed` and the order of calls."""

    seed: int = 0
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def of_emoji(self, emoji: Emoji) -> Made:
        if emoji.render:
            image = Image.open(emoji.render).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            yield from self.colored(np.asarray(image), Picture(**self.known(emoji), style="3d"), recolors=2)
        if emoji.flat:
            flat = Picture(**self.known(emoji, share=0.5), style="flat")
            yield from self.colored(draw_icon(emoji.flat), flat, recolors=1)
            line = Picture(**self.known(emoji, share=0.35), style="line")
            yield line, lay_on(draw_icon(line_art(emoji.flat)), WHITE)
        if emoji.glyph:
            for color in ("black", self.chance.choice(list(HUES))):
                glyph = Picture(**self.known(emoji, share=0.12), style="glyph", color=color)
                yield glyph, lay_on(draw_icon(emoji.glyph.replace("currentColor", PAINTS[color])), WHITE)

    @staticmethod
    def known(emoji: Emoji, share: float = 1.0) -> dict[str, Any]:
        return {"name": emoji.name, "tags": emoji.tags, "weight": emoji.weight * share}

    def colored(self, pixels: Pixels, picture: Picture, recolors: int) -> Made:
        """As it is, on a coloured background, and `recolors` times in another colour if it has one."""
        hue, word = dominant_hue(pixels)
        picture = picture.model_copy(update={"color": word})
        yield picture, lay_on(pixels, WHITE)
        ground = self.chance.choice(list(PAINTS))
        changes = {"background": ground, "weight": picture.weight * 0.2}
        yield picture.model_copy(update=changes), lay_on(pixels, PAINTS[ground])
        if word:
            others = [color for color in [*HUES, "black"] if color != word]
            for target in self.chance.sample(others, recolors):
                changes = {"color": target, "recolored": True, "weight": picture.weight * 0.15}
                yield picture.model_copy(update=changes), lay_on(recolor(pixels, hue, target), WHITE)

    def of_flags(self, modules: Path) -> Made:
        """The flags of ISO countries at 120 x 90 pixels in a thin grey frame on white."""
        for country in read_json(modules / "flag-icons/country.json"):
            if not country.get("iso"):
                continue
            svg = (modules / "flag-icons" / country["flag_4x3"]).read_text(encoding="utf-8")
            flag = Image.fromarray(draw_svg(svg, 256, 192)).resize((120, 90), Image.Resampling.LANCZOS)
            canvas = Image.new("RGB", (SIDE, SIDE), WHITE)
            canvas.paste((205, 205, 205), (3, 18, 125, 110))
            canvas.paste(flag.convert("RGB"), (4, 19))
            name = country["name"].lower()
            yield Picture(name=f"flag of {name}", tags=("flag", name), style="flag", weight=0.4), np.asarray(canvas)


def load_pictures(work: Path) -> tuple[tuple[Picture, ...], Pixels]:
    """What is known of the pictures, and their pixels (N, 128, 128, 3), which stay on disk."""
    return PICTURES.validate_json((work / "pictures.json").read_bytes()), np.load(work / "pictures.npy", mmap_mode="r")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--npm", type=Path, help="a folder with node_modules, if npm has been run already")


def run(options: argparse.Namespace) -> None:
    packages: Path = options.npm or options.work / "npm"
    if not (packages / "node_modules").is_dir():
        fetch(packages)
    modules, studio = packages / "node_modules", Studio()
    made = [each for emoji in read_emoji(modules) for each in studio.of_emoji(emoji)] + list(studio.of_flags(modules))
    np.save(options.work / "pictures.npy", np.stack([pixels for _, pixels in made]))
    (options.work / "pictures.json").write_bytes(PICTURES.dump_json(tuple(picture for picture, _ in made)))
    log.info("%d pictures of %d concepts", len(made), len({picture.name for picture, _ in made}))
