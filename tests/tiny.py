"""A Stable Diffusion 1 with random weights of 1 MB: the real code paths, no download, made in a second."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from pipelines.device import choose_device
from pipelines.families.base import LoadedModel
from pipelines.loading.manager import ModelManager
from pipelines.request import GenerationRequest
from pipelines.samplers import Denoise
from pipelines.scene import WrapDenoise
from pipelines.session import Session
from pipelines.types import Format, ModelInfo

NONE: Mapping[str, ModelInfo] = {}

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}


def save_sd1(folder: Path, prediction: str = "epsilon") -> Path:
    """Write the model into `folder`, in diffusers' layout, and give the folder back."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    state = torch.get_rng_state()
    torch.manual_seed(0)
    vocabulary = save_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=vocabulary,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        projection_dim=32,
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=4,
        attention_head_dim=4,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=64,
    ).save_pretrained(folder / "vae")
    torch.set_rng_state(state)
    scheduler = {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


def save_tokenizer(folder: Path) -> int:
    """CLIP's tokenizer over the 256 bytes, without merges, so that any text can be encoded. Gives its size."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [], model_max_length=77).save_pretrained(folder)
    return len(tokens)


def info(path: Path, family: str = "sd1", variant: str = "", companions: Mapping[str, ModelInfo] = NONE) -> ModelInfo:
    """Of a folder, or of a single file such as `tests.checkpoints.save_checkpoint` writes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return ModelInfo(
        name=path.name,
        family=family,
        variant=variant,
        format=Format.DIFFUSERS if path.is_dir() else Format.SAFETENSORS,
        path=path,
        size_bytes=sum(file.stat().st_size for file in files if file.is_file()),
        width=64,
        height=64,
        companions=dict(companions),
    )


def boot(settings: Mapping[str, JsonValue]) -> Session:
    """For workers in tests: "warm", the folder of a tiny model; "device"; "step_seconds", a pause in every step."""
    device = choose_device(str(settings.get("device") or "cpu"))
    warm = settings.get("warm")
    pause = float(str(settings.get("step_seconds") or 0))
    return Session(
        ModelManager(device),
        device,
        wrappers=(slowed(pause),) if pause else (),
        warm=info(Path(str(warm))) if warm else None,
    )


def slowed(seconds: float) -> WrapDenoise:
    """A denoiser with a pause before each step, so that a test can interrupt it."""

    def wrap(denoise: Denoise, model: LoadedModel, request: GenerationRequest) -> Denoise:
        def slow(x: Tensor, sigma: float) -> Tensor:
            time.sleep(seconds)
            return denoise(x, sigma)

        return slow

    return wrap
