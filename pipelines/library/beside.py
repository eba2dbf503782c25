"""What A1111's `.yaml` beside a checkpoint says: whether it predicts the noise or v, which its shapes do not tell.

Only a few words of it are looked at; what it names (`target: ldm...`) is never imported.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipelines.library.detect import Finding, native
from pipelines.types import Kind

log = logging.getLogger(__name__)

LONGEST = 64 * 1024
"""In bytes. Stability's own have about 2,000."""


class Row(NamedTuple):
    """If the word at this place, key by key, is like this -> that."""

    place: str
    pattern: str
    says: str


PARAMETERS = "model.params"
SCALING = f"{PARAMETERS}.denoiser_config.params.scaling_config.target"

PREDICTIONS = (
    Row(f"{PARAMETERS}.parameterization", r"v", "v_prediction"),
    Row(f"{PARAMETERS}.parameterization", r"eps", "epsilon"),
    Row(SCALING, r"sgm\..*\.VScaling\w*", "v_prediction"),
    Row(SCALING, r"sgm\..*\.EpsScaling\w*", "epsilon"),
    Row("model.target", r"ldm\..*", "epsilon"),  # what such a class does that is told nothing
)
"""The first that fits. The classes are CompVis' and Stability's: github.com/Stability-AI/stablediffusion, configs."""

FAMILIES = (
    Row(f"{PARAMETERS}.unet_config.params.context_dim", "768", "sd1"),
    Row(f"{PARAMETERS}.unet_config.params.context_dim", "1024", "sd2"),
    Row(f"{PARAMETERS}.network_config.params.context_dim", "1024", "sd2"),
    Row(f"{PARAMETERS}.network_config.params.context_dim", "1280|2048", "sdxl"),
)
"""Only to see that it was written for such a model: the shapes of the weights know better."""


def told(found: Finding, file: Path) -> Finding:
    """The checkpoint with what the file says, if it says something that can be used."""
    if found.kind != Kind.CHECKPOINT or found.prediction == "flow":
        return found
    try:
        prediction = _prediction(_read(file), found.family)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        log.warning("%s beside the checkpoint is not used: %s", file, str(error).partition("\n")[0])
        return found
    return native(found._replace(prediction=prediction)) if prediction else found


def _read(file: Path) -> object:
    """Dictionaries, lists and texts: this loader makes nothing else, whatever a file asks for."""
    if file.stat().st_size > LONGEST:
        raise ValueError(f"it is longer than {LONGEST:,} bytes")
    return yaml.load(file.read_bytes(), Loader=yaml.BaseLoader)


def _prediction(content: object, family: str) -> str:
    """Empty: it does not say. Raises ValueError if it is of another kind of model."""
    made_for = _first(FAMILIES, content)
    if made_for not in ("", family):
        raise ValueError(f"it is for {made_for} and the checkpoint is {family}")
    return _first(PREDICTIONS, content)


def _first(rows: tuple[Row, ...], content: object) -> str:
    return next((row.says for row in rows if re.fullmatch(row.pattern, _word(content, row.place))), "")


def _word(content: Any, place: str) -> str:
    for key in place.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, str) else ""
