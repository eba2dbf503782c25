"""Flow models from the files that people have: the denoiser in one, text encoders and VAE in others, or all in one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from pipelines.families.base import LoadedModel
from pipelines.loading.manager import ModelManager
from pipelines.prompt import parse
from pipelines.request import GenerationRequest
from pipelines.types import Format, ModelInfo
from tests import tiny_dit
from tests.drawing import draw
from tests.tiny_dit import Weights, save_gguf, save_single

CPU = torch.device("cpu")


def one_part(path: Path, part: str, family: str) -> ModelInfo:
    kind = Format.GGUF if path.suffix == ".gguf" else Format.SAFETENSORS
    size = path.stat().st_size
    return ModelInfo(name=path.name, family=family, format=kind, path=path, size_bytes=size, parts={part: size})


def model_of(transformer: Path, family: str, companions: dict[str, Path]) -> ModelInfo:
    found = {part: one_part(path, part, family) for part, path in companions.items()}
    return one_part(transformer, "transformer", family).model_copy(update={"companions": found})


def load(info: ModelInfo) -> LoadedModel:
    return ModelManager(CPU).get(info, lambda status: None)


def drawn(model: LoadedModel) -> bytes:
    request = GenerationRequest(prompt="a cat", width=64, height=64, steps=2, cfg_scale=1, seed=1, sampler="Euler")
    return draw(model, request)[0].tobytes()


COMPANIONS: dict[str, dict[str, Callable[[], Weights]]] = {
    "flux": {"text_encoder": tiny_dit.clip, "text_encoder_2": tiny_dit.t5, "vae": tiny_dit.vae},
    "sd3": {
        "text_encoder": lambda: tiny_dit.clip(projected=True),
        "text_encoder_2": lambda: tiny_dit.clip(projected=True),
        "text_encoder_3": tiny_dit.t5,
        "vae": tiny_dit.vae,
    },
    "flux2": {"text_encoder": lambda: tiny_dit.qwen(3), "vae": lambda: tiny_dit.vae(32, statistics=True)},
    "z_image": {"text_encoder": lambda: tiny_dit.qwen(3), "vae": tiny_dit.vae},
    "qwen_image": {"text_encoder": lambda: tiny_dit.qwen(2), "vae": tiny_dit.qwen_vae},
}


def companions(folder: Path, family: str) -> dict[str, Path]:
    makers = COMPANIONS[family].items()
    return {part: save_single(folder / f"{part}.safetensors", maker()) for part, maker in makers}


@pytest.mark.parametrize("family", COMPANIONS)
def test_a_denoiser_with_its_companions_draws(tmp_path: Path, family: str) -> None:
    transformer = save_single(tmp_path / "tiny.safetensors", tiny_dit.TRANSFORMERS[family]())
    model = load(model_of(transformer, family, companions(tmp_path, family)))
    assert drawn(model) == drawn(model)


@pytest.mark.parametrize("kind", ["fp8", "scaled", "gguf"])
def test_packed_denoisers_draw_nearly_the_same(tmp_path: Path, kind: str) -> None:
    weights, others = tiny_dit.flux(), companions(tmp_path, "flux")
    whole = load(model_of(save_single(tmp_path / "whole.safetensors", weights), "flux", others))
    makers: dict[str, Callable[[], Path]] = {
        "fp8": lambda: save_single(tmp_path / "fp8.safetensors", weights, torch.float8_e4m3fn),
        "scaled": lambda: tiny_dit.save_as_is(tmp_path / "scaled.safetensors", tiny_dit.scaled_fp8(weights)),
        "gguf": lambda: save_gguf(tmp_path / "tiny.gguf", weights, GGMLQuantizationType.Q8_0),
    }
    packed = load(model_of(makers[kind](), "flux", others))
    x = torch.randn(1, *packed.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, exact = (model.predict(x, 0.8, model.encode([parse("a cat")])).flatten() for model in (packed, whole))
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=0) > 0.97


def test_packed_weights_are_mapped_from_the_file(tmp_path: Path) -> None:
    """A GGUF file of 12 GB must not become 12 GB of memory beside the file's pages."""
    path = save_gguf(tmp_path / "tiny.gguf", tiny_dit.flux(), GGMLQuantizationType.Q8_0)
    model = load(model_of(path, "flux", companions(tmp_path, "flux")))
    maps = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line
    ]
    spans = [(int(start, 16), int(end, 16)) for start, end in maps]
    packed = [
        p
        for n, p in model.parts["transformer"].module.named_parameters()
        if n.endswith(".packed") and "norm_out" not in n
    ]
    assert packed
    assert all(any(start <= p.data_ptr() < end for start, end in spans) for p in packed)


def test_all_in_one(tmp_path: Path) -> None:
    """SD 3 as Stability ships it with its encoders inside, under their prefixes."""
    prefixes = {
        "model.diffusion_model.": tiny_dit.sd3,
        "text_encoders.clip_l.transformer.": lambda: tiny_dit.clip(projected=True),
        "text_encoders.clip_g.transformer.": lambda: tiny_dit.clip(projected=True),
        "text_encoders.t5xxl.transformer.": tiny_dit.t5,
        "first_stage_model.": tiny_dit.vae,
    }
    together = {prefix + name: t for prefix, maker in prefixes.items() for name, t in maker().items()}
    path = save_single(tmp_path / "all.safetensors", together)
    parts = dict.fromkeys(("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"), 1)
    info = one_part(path, "transformer", "sd3").model_copy(update={"parts": parts})
    apart = load(model_of(save_single(tmp_path / "t.safetensors", tiny_dit.sd3()), "sd3", companions(tmp_path, "sd3")))
    assert drawn(load(info)) == drawn(apart)
