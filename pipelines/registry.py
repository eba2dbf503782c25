"""Which checkpoints are there? A scan of the models folders, by content and not by folder name. No torch."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from pipelines.errors import BadModel, ModelNotFound
from pipelines.types import Frozen, ModelInfo, check_side

log = logging.getLogger(__name__)

CARD = "inkstone.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Signature(NamedTuple):
    """A row of the table below: what a diffusers folder says about itself -> the family that can run it."""

    family: str
    pipeline: str
    unet: dict[str, Any]


SIGNATURES = (Signature("sd1", "StableDiffusionPipeline", {"in_channels": 4, "out_channels": 4}),)


class Card(Frozen):
    """The optional file inkstone.json beside model_index.json."""

    cfg_scale: float = Field(default=ModelInfo.model_fields["cfg_scale"].default, ge=0, le=30)


class Registry:
    """The checkpoints by name. Read from many threads; `scan` and `hash_all` swap whole tables."""

    def __init__(self, folders: Iterable[Path], hashes: Path | None = None) -> None:
        """`hashes`: a file that remembers the SHA-256 sums, since computing one reads gigabytes."""
        self._folders = tuple(folder.resolve() for folder in folders)
        self._models: dict[str, ModelInfo] = {}
        self._file = hashes
        self._hashes: dict[str, str] = _read_hashes(hashes)  # path, size and mtime of a weights file -> its sum
        self._lock = threading.Lock()

    def scan(self) -> None:
        """Look again. Of two checkpoints with the same name the one in the earlier folder counts."""
        found: dict[str, ModelInfo] = {}
        for root in self._folders:
            for index in sorted(root.rglob("model_index.json")):
                try:
                    info = self._with_hash(identify(index.parent, root))
                except (BadModel, OSError) as error:
                    log.warning("Skipped %s: %s", index.parent, error)
                else:
                    found.setdefault(info.name, info)
        with self._lock:
            self._models = found

    def hash_all(self) -> None:
        """Compute the missing SHA-256 sums: seconds for large files, so call it in a thread."""
        for info in self.all():
            if info.sha256:
                continue
            try:
                key = _key(info)
                with (info.path / "unet" / WEIGHTS).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                log.warning("%s cannot be hashed: %s", info.name, error)
                continue
            with self._lock:
                self._hashes[key] = digest
                if self._models.get(info.name) == info:
                    self._models[info.name] = info.model_copy(update={"sha256": digest})
            if self._file:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.write_text(json.dumps(self._hashes, indent=0))

    def all(self) -> list[ModelInfo]:
        with self._lock:
            return list(self._models.values())

    def get(self, name: str) -> ModelInfo:
        """The checkpoint of this name; the first one for an empty name."""
        models = self.all()
        if not models:
            raise ModelNotFound(f"There is no checkpoint in {' or '.join(map(str, self._folders))}. Put one there.")
        for info in models:
            if name in ("", info.name):
                return info
        raise ModelNotFound(f"There is no checkpoint named {name!r}. There are: {', '.join(m.name for m in models)}.")

    def _with_hash(self, info: ModelInfo) -> ModelInfo:
        return info.model_copy(update={"sha256": self._hashes.get(_key(info))})


def identify(folder: Path, root: Path) -> ModelInfo:
    """What a diffusers folder holds, from its small JSON files alone."""
    pipeline = _read(folder / "model_index.json").get("_class_name", "")
    unet = _read(folder / "unet" / "config.json")
    vae = _read(folder / "vae" / "config.json")
    for row in SIGNATURES:
        if row.pipeline == pipeline and all(unet.get(key) == value for key, value in row.unet.items()):
            if not (folder / "unet" / WEIGHTS).is_file():
                raise BadModel(f"unet/{WEIGHTS} is missing; weights in other files are not read yet.")
            side = _side(unet, vae)
            return ModelInfo(
                name=folder.relative_to(root).as_posix().removeprefix("Stable-diffusion/"),
                family=row.family,
                path=folder,
                size_bytes=sum(file.stat().st_size for file in folder.rglob("*.safetensors")),
                width=side,
                height=side,
                cfg_scale=_card(folder).cfg_scale,
            )
    raise BadModel(f"{pipeline or 'It'} is no kind of model that this version can run.")


def _side(unet: dict[str, Any], vae: dict[str, Any]) -> int:
    """Of the pictures that it was trained on, in pixels: the latent's side times what the VAE shrinks by."""
    try:
        return check_side(int(unet.get("sample_size") or 64) * 2 ** (len(vae.get("block_out_channels") or "1234") - 1))
    except (TypeError, ValueError) as error:
        raise BadModel(f"Its picture size cannot be read: {error}.") from error


def _card(folder: Path) -> Card:
    """What the model's maker wants it to be used with, if they wrote it down."""
    if not (folder / CARD).exists():
        return Card()
    try:
        return Card.model_validate(_read(folder / CARD))
    except ValidationError as error:
        raise BadModel(f"{CARD} does not fit: {error}.") from error


def _key(info: ModelInfo) -> str:
    weights = info.path / "unet" / WEIGHTS
    status = weights.stat()
    return f"{weights}:{status.st_size}:{status.st_mtime_ns}"


def _read_hashes(file: Path | None) -> dict[str, str]:
    """A cache: what cannot be read is computed anew."""
    try:
        found = json.loads(file.read_text("utf-8")) if file and file.exists() else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"{file.parent.name}/{file.name} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise BadModel(f"{file.name} does not hold a JSON object.")
    return content
