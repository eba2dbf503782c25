"""diffusers folders: model_index.json says what is inside, each network's config.json what it is, headers how large."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from pipelines.errors import BadModel
from pipelines.frozen import Frozen
from pipelines.library.detect import Finding, native, refine
from pipelines.library.headers.pickles import read as read_pickle
from pipelines.library.headers.safetensors import read as read_safetensors
from pipelines.library.network_folder import read_json, weight_files
from pipelines.request import check_side
from pipelines.types import Kind

INDEX = "model_index.json"
CARD = "inkstone.json"
NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
DRAWS = ("unet", "transformer")


class Card(Frozen):
    """The optional file inkstone.json beside model_index.json."""

    cfg_scale: float | None = Field(default=None, ge=0, le=30)


class Row(NamedTuple):
    """A class of diffusers with this in its config.json -> family and variant."""

    network: str
    config: Mapping[str, Any]
    family: str
    variant: str = ""


XL = {"addition_embed_type": "text_time"}
LINEAR = {"use_linear_projection": True}
UNET, FLUX2 = "UNet2DConditionModel", "Flux2Transformer2DModel"

ROWS = (
    Row(UNET, {**XL, "in_channels": 9}, "sdxl", "inpaint"),
    Row(UNET, {**XL, "in_channels": 8}, "sdxl", "pix2pix"),
    Row(UNET, {**XL, "in_channels": 4, "projection_class_embeddings_input_dim": 2560}, "sdxl", "refiner"),
    Row(UNET, {**XL, "in_channels": 4}, "sdxl"),
    Row(UNET, {**LINEAR, "in_channels": 9}, "sd2", "inpaint"),
    Row(UNET, {**LINEAR, "in_channels": 8}, "sd2", "pix2pix"),
    Row(UNET, {**LINEAR, "in_channels": 5}, "sd2", "depth"),
    Row(UNET, {**LINEAR, "in_channels": 4}, "sd2"),
    Row(UNET, {"in_channels": 9}, "sd1", "inpaint"),
    Row(UNET, {"in_channels": 8}, "sd1", "pix2pix"),
    Row(UNET, {"in_channels": 4, "out_channels": 4}, "sd1"),
    Row("SD3Transformer2DModel", {"num_layers": 38}, "sd3", "3.5-large"),
    Row("SD3Transformer2DModel", {"qk_norm": "rms_norm"}, "sd3", "3.5-medium"),
    Row("SD3Transformer2DModel", {}, "sd3"),
    Row("FluxTransformer2DModel", {"in_channels": 384}, "flux", "fill"),
    Row("FluxTransformer2DModel", {"in_channels": 128}, "flux", "control"),
    Row("FluxTransformer2DModel", {"guidance_embeds": True}, "flux", "dev"),
    Row("FluxTransformer2DModel", {}, "flux", "schnell"),
    Row(FLUX2, {"guidance_embeds": False, "joint_attention_dim": 12288}, "flux2", "klein-9b"),
    Row(FLUX2, {"guidance_embeds": False}, "flux2", "klein-4b"),
    Row(FLUX2, {}, "flux2", "dev"),
    Row("ZImageTransformer2DModel", {}, "z_image"),
    Row("QwenImageTransformer2DModel", {}, "qwen_image"),
)


def identify(folder: Path) -> Finding:
    """What a diffusers folder holds. Raises BadModel and OSError."""
    index = read_json(folder / INDEX)
    pipeline = str(index.get("_class_name", ""))
    part = next((name for name in DRAWS if _given(index, name)), "")
    if not part:
        raise BadModel(f"{pipeline or 'It'} is no kind of model that this version can run.")
    config = read_json(folder / part / "config.json")
    network = str(config.get("_class_name") or index[part][1])
    row = next((row for row in ROWS if row.network == network and _fits(row, config)), None)
    if row is None:
        raise BadModel(f"{pipeline or 'It'} with a {network} is no kind of model that this version can run.")
    sizes, dtype = _networks(folder, index)
    prediction = str(_scheduler(folder).get("prediction_type") or ("epsilon" if part == "unet" else "flow"))
    found = Finding(Kind.CHECKPOINT, row.family, row.variant, prediction, sizes, dtype)
    found = native(refine(found, {"modelspec.title": pipeline}, folder.name))
    if part == "unet":
        side = _side(config, read_json(folder / "vae" / "config.json"), found.width)
        found = found._replace(width=side, height=side)
    card = _card(folder)
    return found if card.cfg_scale is None else found._replace(cfg_scale=card.cfg_scale)


def denoiser_of(folder: Path) -> list[Path]:
    """The weights by which a diffusers folder is known."""
    part = next((name for name in DRAWS if (folder / name).is_dir()), DRAWS[0])
    return weight_files(folder / part)


def _given(index: Mapping[str, Any], name: str) -> bool:
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)


def _fits(row: Row, config: Mapping[str, Any]) -> bool:
    return all(config.get(key) == value for key, value in row.config.items())


def _networks(folder: Path, index: Mapping[str, Any]) -> tuple[dict[str, int], str]:
    """Bytes of each network, and the dtype of the one that draws."""
    sizes: dict[str, int] = {}
    dtypes: dict[str, str] = {}
    for part in NETWORKS:
        if not _given(index, part):
            continue
        sizes[part] = 0
        for file in weight_files(folder / part):
            read = read_safetensors if file.suffix == ".safetensors" else read_pickle
            try:
                header = read(file)
            except BadModel as error:
                raise BadModel(f"{part}/{file.name}: {error}") from error
            sizes[part] += header.size_bytes
            largest = max(header.tensors.values(), key=lambda tensor: prod(tensor.shape), default=None)
            dtypes.setdefault(part, largest.dtype if largest else "")
    return sizes, next((dtypes[part] for part in DRAWS if part in dtypes), "")


def _scheduler(folder: Path) -> dict[str, Any]:
    file = folder / "scheduler" / "scheduler_config.json"
    return read_json(file) if file.is_file() else {}


def _side(unet: Mapping[str, Any], vae: Mapping[str, Any], native_side: int) -> int:
    """Of the pictures that it was trained on, in pixels: the latent's side times what the VAE shrinks by."""
    size = unet.get("sample_size")
    if not size:
        return native_side
    try:
        return check_side(int(size) * 2 ** (len(vae.get("block_out_channels") or "1234") - 1))
    except (TypeError, ValueError) as error:
        raise BadModel(f"Its picture size cannot be read: {error}.") from error


def _card(folder: Path) -> Card:
    """What the model's maker wants it to be used with, if they wrote it down."""
    if not (folder / CARD).exists():
        return Card()
    try:
        return Card.model_validate(read_json(folder / CARD))
    except ValidationError as error:
        raise BadModel(f"{CARD} does not fit: {error}.") from error
