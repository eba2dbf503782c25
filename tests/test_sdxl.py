"""SDXL and its refiner: two text encoders, a pooled prompt, and sizes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.families.sdxl import SDXL, Refiner
from pipelines.loading.manager import ModelManager
from pipelines.prompt import parse
from tests.checkpoints import SSD, TINY, save, save_checkpoint, shapes_of, unet_shapes
from tests.reference import pipeline
from tests.test_sd1 import assert_same
from tests.tiny import info

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sdxl") / "dream.safetensors", "sdxl")


@pytest.fixture(scope="module")
def model(single: Path) -> SDXL:
    return SDXL.load(single, CPU)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("refiner") / "refiner.safetensors", "sdxl-refiner")


def seen_by(model: SDXL, x: torch.Tensor, prompts: list[str]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    hook = model.unet.register_forward_pre_hook(lambda m, args, kwargs: found.append(kwargs), with_kwargs=True)
    with torch.inference_mode():
        model.predict(x, 1.0, model.encode([parse(prompt) for prompt in prompts]).sided(1))
    hook.remove()
    return found[0]


def test_a_single_file_is_what_diffusers_makes_of_it(single: Path, tmp_path: Path) -> None:
    pipe = pipeline(single, tmp_path / "configs", "sdxl", torch_dtype=torch.float32)
    pipe.save_pretrained(tmp_path / "folder")
    for path in (single, tmp_path / "folder"):
        ours = SDXL.load(path, CPU)
        assert_same(ours, pipe)
        with torch.inference_mode():
            found = ours.encode([parse("a photo of a cat"), parse("rain")])
            tokens, away, pooled, pooled_away = pipe.encode_prompt("a photo of a cat", negative_prompt="rain")
        assert found.pooled is not None
        assert torch.allclose(found.tokens, torch.cat([tokens, away]), atol=1e-6)
        assert torch.allclose(found.pooled, torch.cat([pooled, pooled_away]), atol=1e-6)


def test_the_refiner_is_what_diffusers_makes_of_it(refiner: Path, tmp_path: Path) -> None:
    pipe = pipeline(refiner, tmp_path / "configs", "sdxl-refiner", torch_dtype=torch.float32)
    ours = Refiner.load(refiner, CPU)
    assert_same(ours, pipe)


def test_the_network_is_told_the_size_of_the_picture(model: SDXL) -> None:
    told = seen_by(model, torch.randn(2, 4, 8, 16), ["a cat", ""])
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[64, 128, 0, 0, 64, 128]] * 2
    assert told["added_cond_kwargs"]["text_embeds"].shape == (2, 64)
    assert told["encoder_hidden_states"].shape == (2, 77, 96)


def test_an_empty_negative_prompt_is_read_like_any_other(model: SDXL) -> None:
    """As in A1111; diffusers' pipeline puts zeros there, which is another picture."""
    cond = model.encode([parse("a cat"), parse("")])
    assert cond.pooled is not None
    assert bool((cond.tokens[1] != 0).any())
    assert bool((cond.pooled[1] != 0).any())


def test_long_prompts_are_pooled_by_their_first_chunk(model: SDXL) -> None:
    long = "cat " * 100
    both = model.encode([parse(long), parse("a dog")])
    assert both.tokens.shape == (2, 2 * 77, 96)
    first = model.encode([parse("cat " * 75)])
    assert both.pooled is not None
    assert first.pooled is not None
    assert torch.allclose(both.pooled[0], first.pooled[0], atol=1e-6)
    assert torch.allclose(both.tokens[0, :77], first.tokens[0], atol=1e-6)


def test_the_refiner_is_told_marks_for_beauty(refiner: Path) -> None:
    listed = info(refiner, "sdxl", "refiner")
    model = ModelManager(CPU).get(listed, lambda status: None)
    assert isinstance(model, Refiner)
    told = seen_by(model, torch.randn(2, 4, 8, 16), ["a cat", "rain"])
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[64, 128, 0, 0, 6.0], [64, 128, 0, 0, 2.5]]
    assert told["added_cond_kwargs"]["text_embeds"].shape == (2, 64)
    assert told["encoder_hidden_states"].shape == (2, 77, 64)
    assert model.parts.keys() == {"unet", "vae", "text_encoder_2"}


@pytest.mark.parametrize(("inputs", "kind"), [(9, "inpaint"), (8, "pix2pix")])
def test_variants_with_more_channels(tmp_path: Path, inputs: int, kind: str) -> None:
    model = SDXL.load(save_checkpoint(tmp_path / "model.safetensors", "sdxl", inputs=inputs), CPU)
    assert model.kind == kind
    if kind == "inpaint":
        with torch.inference_mode():
            assert model.predict(torch.randn(1, 4, 8, 8), 1.0, model.encode([parse("")])).shape == (1, 4, 8, 8)


def test_a_pruned_relative_draws(tmp_path: Path) -> None:
    shapes = {n: s for n, s in shapes_of(TINY["sdxl"]).items() if not n.startswith("model.")}
    shapes |= {f"model.diffusion_model.{name}": shape for name, shape in unet_shapes(SSD).items()}
    model = SDXL.load(save(tmp_path / "ssd.safetensors", shapes), CPU)
    with torch.inference_mode():
        assert model.predict(torch.randn(1, 4, 8, 8), 1.0, model.encode([parse("a cat")])).isfinite().all()


def test_a_model_for_v_up_to_pure_noise(tmp_path: Path, single: Path) -> None:
    path = save(tmp_path / "v.safetensors", {**shapes_of(TINY["sdxl"]), "ztsnr": (), "v_pred": ()})
    listed = info(path, "sdxl").model_copy(update={"prediction": "v_prediction"})
    model = ModelManager(CPU).get(listed, lambda status: None)
    assert isinstance(model, SDXL)
    assert model.levels.high > 1000
    assert SDXL.load(single, CPU).levels.high == pytest.approx(14.6146, rel=1e-4)
