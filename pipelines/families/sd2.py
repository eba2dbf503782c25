"""Stable Diffusion 2.x: SD 1 with open_clip's text encoder, of which the last layer is left out."""

from collections.abc import Mapping
from typing import ClassVar

from pipelines.families.clip import OPEN_CLIP_PAD, Layer
from pipelines.families.sd1 import SCALE, SD1
from pipelines.loading.parts import Family, Recipe
from pipelines.loading.recipes.clip import clip
from pipelines.loading.recipes.ldm import UNET, vae

PREFIXES = ("cond_stage_model.model.", "cond_stage_model.transformer.", "")


class SD2(SD1):
    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "unet": UNET,
        "vae": vae(SCALE),
        "text_encoder": clip(PREFIXES, penultimate=True),
    }
    PAD = OPEN_CLIP_PAD
    LAYER = Layer(least=2, left_out=1)


FAMILY = Family(SD2.RECIPES, SD2)
