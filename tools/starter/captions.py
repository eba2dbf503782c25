"""Captions of a training picture, as people write prompts: name or alias, colour, style words, background, filler."""

import random
import re

from tools.starter.pictures import Picture

STYLE_WORDS = {
    "3d": ("3d render", "3d style", "3d icon", "glossy 3d render", "3d"),
    "flat": ("flat icon", "flat style", "flat vector illustration", "2d flat design"),
    "line": ("line art", "outline drawing", "black and white line art", "coloring page", "sketch"),
    "glyph": ("silhouette", "solid glyph icon", "simple icon"),
    "flag": ("flat icon", "flat", "flag"),
}
STYLE_SHARE = {"3d": 0.55, "flat": 0.9, "line": 1.0, "glyph": 1.0, "flag": 0.3}
"""How often the style is named: 3D is what a prompt without a style gets."""

FILLERS = (
    "masterpiece",
    "best quality",
    "highly detailed",
    "4k",
    "high quality",
    "cute",
    "beautiful",
    "centered",
)
LEADS = ("an image of ", "a picture of ", "an emoji of ", "an icon of ")
COLORS = re.compile(r"\b(red|orange|yellow|green|cyan|blue|purple|pink|black|white|brown|gray) ")


def subject(picture: Picture, aliases: tuple[str, ...], chance: random.Random) -> str:
    """The thing itself: its name or an alias, or one of its tags."""
    name = picture.name
    if aliases and chance.random() < 0.45:
        name = chance.choice(aliases)
    tags = [tag for tag in picture.tags if tag.isascii()]
    if not tags or chance.random() < 0.8:
        return name
    tag = chance.choice(tags)
    return tag if chance.random() < 0.5 else f"{name}, {tag}"


def colored(words: str, picture: Picture, chance: random.Random) -> str:
    """With its colour named: always if it differs from the usual one, else sometimes."""
    if picture.color is None:
        return words
    if picture.recolored or (picture.style == "glyph" and picture.color != "black"):
        return f"{picture.color} {COLORS.sub('', words + ' ').strip()}"
    plain = picture.style in ("3d", "flat") and not COLORS.search(words + " ")
    return f"{picture.color} {words}" if plain and chance.random() < 0.25 else words


def caption(picture: Picture, aliases: tuple[str, ...], chance: random.Random) -> str:
    """One caption, for example `a purple car, 3d render, on a blue background`."""
    words = colored(subject(picture, aliases, chance), picture, chance)
    if chance.random() < 0.5:
        words = ("an " if words[0] in "aeiou" else "a ") + words
    if chance.random() < 0.08:
        words = chance.choice(LEADS) + words
    parts = [words]
    if chance.random() < STYLE_SHARE[picture.style]:
        style = chance.choice(STYLE_WORDS[picture.style])
        parts = [f"{style} of {words}"] if chance.random() < 0.15 else [words, style]
    if picture.background:
        ground = f"{picture.background} background"
        parts.append(ground if chance.random() < 0.5 else f"on a {ground}")
    elif chance.random() < 0.1:
        parts.append("white background")
    if chance.random() < 0.1:
        parts += chance.sample(FILLERS, chance.randint(1, 2))
    return ", ".join(parts)
