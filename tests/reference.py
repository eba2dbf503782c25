"""What diffusers itself makes of a single file of `tests/checkpoints.py`: the small folder of settings that it wants,
written down by hand, and its pipeline."""

import json
from pathlib import Path
from typing import Any

from tests.checkpoints import FULL, PLACES, TINY, VOCABULARY, Arch, Clip

PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}
SCALES = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sdxl-refiner": 0.13025}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "linspace",
}


def pipeline(path: Path, configs: Path, family: str, full: bool = False, **options: Any) -> Any:
    """diffusers' own, from the single file at `path`; `configs` is a folder for what it wants beside it."""
    import diffusers

    if not configs.exists():
        save_configs(configs, family, full)
    kind = getattr(diffusers, PIPELINES[family])
    pipe = kind.from_single_file(path, config=str(configs), local_files_only=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_configs(folder: Path, family: str, full: bool = False) -> None:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    from pipelines.tokenizers.clip import bundled

    arch = (FULL if full else TINY)[family]
    encoders = ["text_encoder", "text_encoder_2"] if family != "sdxl-refiner" else ["text_encoder_2"]
    index: dict[str, Any] = {
        "_class_name": PIPELINES[family],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _put(folder / "unet" / "config.json", {"_class_name": "UNet2DConditionModel", **unet_config(arch)})
    _put(folder / "vae" / "config.json", {"_class_name": "AutoencoderKL", **vae_config(arch, SCALES[family])})
    _put(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    for name, encoder in zip(encoders, arch.clips, strict=False):
        projected = encoder.open_clip and family != "sd2"
        kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        number = name.removeprefix("text_encoder")
        index |= {name: ["transformers", kind], f"tokenizer{number}": ["transformers", "CLIPTokenizer"]}
        _put(folder / name / "config.json", clip_config(encoder, kind, last_left_out=family == "sd2"))
        tokenizer = CLIPTokenizer(dict(bundled()[0]), list(bundled()[1]), model_max_length=77)
        tokenizer.save_pretrained(folder / f"tokenizer{number}")
        if encoder.open_clip:
            _pad_with_zero(folder / f"tokenizer{number}" / "tokenizer_config.json")
    if family in ("sd1", "sd2"):
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    else:
        index["force_zeros_for_empty_prompt"] = False
    if family == "sdxl-refiner":
        index |= {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    _put(folder / "model_index.json", index)


def _pad_with_zero(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "!"}))


def _put(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def unet_config(arch: Arch) -> dict[str, Any]:
    unet = arch.unet
    attended = [bool(depth) for depth in unet.depths]
    heads = [max(1, width // 64) for width in unet.channels] if unet.linear else 8
    depths = [depth or 1 for depth in unet.depths]
    if not attended[-1]:
        depths[-1] = unet.middle
    config: dict[str, Any] = {
        "in_channels": unet.inputs,
        "block_out_channels": unet.channels,
        "down_block_types": ["CrossAttnDownBlock2D" if it else "DownBlock2D" for it in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if it else "UpBlock2D" for it in reversed(attended)],
        "layers_per_block": 2,
        "transformer_layers_per_block": depths,
        "cross_attention_dim": unet.context,
        "attention_head_dim": heads,
        "use_linear_projection": unet.linear,
        "sample_size": 8,
    }
    if unet.sized:
        sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        config |= {**sizes, "projection_class_embeddings_input_dim": unet.sized}
    return config


def vae_config(arch: Arch, scale: float) -> dict[str, Any]:
    return {
        "block_out_channels": arch.vae,
        "down_block_types": ["DownEncoderBlock2D"] * len(arch.vae),
        "up_block_types": ["UpDecoderBlock2D"] * len(arch.vae),
        "latent_channels": 4,
        "layers_per_block": 2,
        "scaling_factor": scale,
        "sample_size": 64,
    }


def clip_config(clip: Clip, kind: str, last_left_out: bool) -> dict[str, Any]:
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": VOCABULARY,
        "hidden_size": clip.width,
        "intermediate_size": 4 * clip.width,
        "num_hidden_layers": clip.layers - last_left_out,
        "num_attention_heads": max(1, clip.width // 64),
        "max_position_embeddings": PLACES,
        "hidden_act": "gelu" if clip.open_clip else "quick_gelu",
        "projection_dim": clip.width,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
    }
