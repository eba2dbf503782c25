"""Stable Diffusion 1.x: the mathematics around the modules, and what is said about broken folders."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import BadModel, ModelNotFound, PipelineError
from pipelines.families.sd1 import SD1
from pipelines.families.unet import FullPrecision
from pipelines.loading.checkpoint import load_parts
from pipelines.prompt import parse
from tests.checkpoints import save_checkpoint
from tests.reference import pipeline
from tests.tiny import info, save_sd1

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, CPU)


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "broken")


def test_everything_is_loaded_for_the_device(model: SD1) -> None:
    for part in (model.unet, model.vae, model.text_encoder):
        assert not part.training
        assert {(weight.dtype, weight.device) for weight in part.parameters()} == {(torch.float32, CPU)}
        assert not any(weight.requires_grad for weight in part.parameters())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_predict_takes_the_noise_out(tiny: Path, tmp_path: Path, prediction: str) -> None:
    """Were the network right about what it predicts, x0 would come out exactly: here it is made to be right."""
    model = SD1.load(save_sd1(tmp_path / "model", prediction), CPU)
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def oracle(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> tuple[torch.Tensor]:
        seen.append((inputs[0], inputs[1]))
        alpha, spread = 1 / math.sqrt(1 + 3.0**2), 3.0 / math.sqrt(1 + 3.0**2)
        return (noise if prediction == "epsilon" else alpha * noise - spread * x0,)

    model.unet.register_forward_hook(oracle)
    found = model.predict(x0 + 3.0 * noise, 3.0, model.encode([parse("a cat")]))
    assert torch.allclose(found, x0, atol=1e-5)
    scaled, step = seen[0]
    assert torch.allclose(scaled, (x0 + 3.0 * noise) / math.sqrt(10))
    assert model.levels.sigma(float(step[0])) == pytest.approx(3.0, rel=1e-5)


def test_pictures_are_those_of_diffusers(tiny: Path) -> None:
    """The same prompt, seed, steps and guidance through diffusers' own pipeline, to the last picture."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    from pipelines.request import GenerationRequest
    from tests.drawing import draw

    model = SD1.load(tiny, CPU)
    request = GenerationRequest(
        prompt="a cat", negative_prompt="rain", width=64, height=96, steps=8, seed=3, sampler="Euler", schedule="Karras"
    )
    ours = draw(model, request)[0]
    pipe = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None, dtype=torch.float32)
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, use_karras_sigmas=True, timestep_spacing="linspace"
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a cat",
        negative_prompt="rain",
        width=64,
        height=96,
        num_inference_steps=8,
        guidance_scale=7.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert ours.size == theirs.size == (64, 96)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1


def test_plain_prompts_are_encoded_as_transformers_does(model: SD1) -> None:
    words = model.tokenizer
    rows = [[words.begin, *words.ids(text)] for text in ("a cat", "")]
    ids = torch.tensor([[*row, *[words.end] * (77 - len(row))] for row in rows])
    ours = model.encode([parse("a cat"), parse("")]).tokens
    assert torch.allclose(ours, model.text_encoder(ids)[0], atol=1e-6)


def test_weights_scale_features(model: SD1) -> None:
    """Here the mean of the features is 0 up to rounding, as the last norm makes it: nothing can be brought back."""
    plain, weighted = model.encode([parse("a cat"), parse("a (cat:1.5)")]).tokens
    assert torch.allclose(weighted[2:5], plain[2:5] * 1.5)  # begin, a, c, a, t, end, ...
    assert torch.equal(weighted[:2], plain[:2])
    assert torch.equal(weighted[5:], plain[5:])


def test_weights_keep_the_mean(tiny: Path) -> None:
    model = SD1.load(tiny, CPU)
    model.text_encoder.final_layer_norm.bias.fill_(0.2)
    plain, weighted = model.encode([parse("a cat"), parse("a (cat:1.5)")]).tokens
    assert float(weighted.mean()) == pytest.approx(float(plain.mean()), rel=1e-4)
    ratio = (weighted / plain).median(1).values
    assert float(ratio[0]) < 1
    assert float(ratio[2]) == pytest.approx(1.5 * float(ratio[0]), rel=1e-4)


def test_long_prompts_take_further_chunks(model: SD1) -> None:
    """Nothing is cut off, and the shorter prompt is filled up with an empty chunk."""
    both = model.encode([parse("a" * 10 + " b" * 90), parse("c")]).tokens
    assert both.shape == (2, 2 * 77, 32)
    empty = model.encode([parse("")]).tokens[0]
    assert torch.allclose(both[1, 77:], empty, atol=1e-6)
    tail = model.encode([parse("b " * 25)]).tokens[0]
    assert torch.allclose(both[0, 77:], tail, atol=1e-6)
    assert model.encode([parse("b " * 75)]).tokens.shape[1] == 77


def test_any_text_has_finite_features(model: SD1) -> None:
    for text in ("日本 🎉 é", "<|endoftext|>", "\x00\n\t", "(a:100) (b:-100)", "(((((a)))))"):
        assert model.encode([parse(text)]).tokens.isfinite().all()


def test_latents_go_both_ways(model: SD1) -> None:
    assert model.latent_shape(64, 128) == (4, 16, 8)
    latent = model.to_latent(torch.rand(2, 3, 128, 64))
    assert latent.shape == (2, 4, 16, 8)
    assert model.decode(latent[0]).size == (64, 128)


def test_invalid_numbers_are_no_black_picture(model: SD1) -> None:
    with pytest.raises(PipelineError, match="NaN"):
        model.decode(torch.full((4, 8, 8), math.nan))


def test_a_model_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nothing at"):
        SD1.load(tmp_path / "gone", CPU)


def spoil_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def drop_a_weight(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file, {"format": "pt"})


UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
FAULTS: dict[str, Callable[[Path], object]] = {
    "no U-Net": lambda folder: shutil.rmtree(folder / "unet"),
    "no weights": lambda folder: (folder / UNET).unlink(),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "empty tokenizer": lambda folder: empty(folder / "tokenizer"),
    "no schedule": lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
    "spoilt schedule": lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text("{"),
    "a list for a schedule": lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text("[]"),
    "unknown prediction": lambda folder: spoil_json(
        folder / "scheduler" / "scheduler_config.json", prediction_type="sample"
    ),
    "spoilt settings": lambda folder: (folder / "unet" / "config.json").write_text("no json"),
    "truncated U-Net": lambda folder: cut(folder / UNET),
    "truncated VAE": lambda folder: cut(folder / VAE),
    "truncated text encoder": lambda folder: cut(folder / TEXT),
    "empty weights": lambda folder: (folder / VAE).write_bytes(b""),
    "text for weights": lambda folder: (folder / TEXT).write_text("version https://git-lfs.github.com/spec/v1"),
    "a U-Net with a gap": lambda folder: drop_a_weight(folder / UNET),
    "a VAE with a gap": lambda folder: drop_a_weight(folder / VAE),
    "a text encoder with a gap": lambda folder: drop_a_weight(folder / TEXT),
    "a U-Net of another size": lambda folder: spoil_json(folder / "unet" / "config.json", block_out_channels=[16, 64]),
    "a VAE of another size": lambda folder: spoil_json(
        folder / "vae" / "config.json", block_out_channels=[8, 8, 8, 32]
    ),
    "a text encoder of another size": lambda folder: spoil_json(
        folder / "text_encoder" / "config.json", intermediate_size=64
    ),
    "an inpainting U-Net": lambda folder: spoil_json(folder / "vae" / "config.json", latent_channels=9),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_folders_are_told_in_a_sentence(broken: Path, fault: str) -> None:
    FAULTS[fault](broken)
    with pytest.raises(BadModel) as raised:
        SD1.load(broken, CPU)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sd1") / "dream.safetensors")


def test_a_single_file_is_what_diffusers_makes_of_it(single: Path, tmp_path: Path) -> None:
    """To the last bit: text features, the U-Net's output and the picture. And the same again as a folder."""
    pipe = pipeline(single, tmp_path / "configs", "sd1", torch_dtype=torch.float32)
    pipe.save_pretrained(tmp_path / "folder")
    for path in (single, tmp_path / "folder"):
        ours = SD1.load(path, CPU)
        assert_same(ours, pipe)
        ids = pipe.tokenizer(["a photo of a cat"], padding="max_length", return_tensors="pt").input_ids
        with torch.inference_mode():
            assert torch.equal(ours.encode([parse("a photo of a cat")]).tokens, pipe.text_encoder(ids)[0])


def assert_same(ours: Any, pipe: Any) -> None:
    """Every weight, one pass of the U-Net, and the way back to pixels."""
    for name, part in ours.parts.items():
        theirs = getattr(pipe, name).state_dict()
        found = part.module.state_dict()
        assert found.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[weight]) for weight, tensor in found.items())
        getattr(pipe, name).requires_grad_(False)  # with gradients, torch picks other kernels on some processors
    x = torch.randn(2, ours.unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    told = {"encoder_hidden_states": torch.randn(2, 77, ours.unet.config.cross_attention_dim)}
    if ours.SIZED:
        sizes = ours.unet.config.projection_class_embeddings_input_dim
        count = 5 if ours.unet.config.cross_attention_dim == 64 else 6
        pooled = torch.randn(2, sizes - count * 256)
        told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.ones(2, count) * 64}  # type: ignore[assignment]
    with torch.inference_mode():
        assert torch.equal(ours.unet(x, 500, **told).sample, pipe.unet(x, 500, **told).sample)
        latent = torch.randn(1, 4, 8, 8)
        assert torch.equal(ours.vae.decode(latent).sample, pipe.vae.decode(latent).sample)


def test_the_bundled_tokenizer_is_that_of_clip(single: Path) -> None:
    tokenizer = SD1.load(single, CPU).tokenizer
    assert len(tokenizer) == 49408
    assert (tokenizer.begin, tokenizer.end, tokenizer.comma) == (49406, 49407, 267)
    assert tokenizer.ids("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.ids("hello world") == [3306, 1002]
    assert tokenizer.tokenizer.token_to_id("!") == 0


def test_a_model_for_inpainting_paints_everything_on_grey(tmp_path: Path) -> None:
    model = SD1.load(save_checkpoint(tmp_path / "inpaint.safetensors", inputs=9), CPU)
    assert model.kind == "inpaint"
    assert model.latent_shape(64, 64) == (4, 8, 8)
    seen: list[torch.Tensor] = []
    model.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        found = model.predict(torch.randn(2, 4, 8, 8), 1.0, model.encode([parse("a cat"), parse("")]))
        grey = model.to_latent(torch.full((1, 3, 64, 64), 0.5))
    assert found.shape == (2, 4, 8, 8)
    assert torch.equal(seen[0][:, 4:5], torch.ones(2, 1, 8, 8))
    assert torch.equal(seen[0][:, 5:], grey.expand(2, -1, -1, -1))


def test_a_model_that_changes_pictures_says_so(tmp_path: Path) -> None:
    model = SD1.load(save_checkpoint(tmp_path / "pix2pix.safetensors", inputs=8), CPU)
    assert model.kind == "pix2pix"
    with pytest.raises(PipelineError, match=r"changes a picture .* give it one to start from"):
        model.predict(torch.randn(1, 4, 8, 8), 1.0, model.encode([parse("a cat")]))


def test_the_listing_says_what_a_single_file_predicts(single: Path) -> None:
    parts = load_parts(SD1.RECIPES, info(single), CPU, FullPrecision())
    assert SD1(parts, info(single), CPU).prediction == "epsilon"
    listed = info(single).model_copy(update={"prediction": "v_prediction"})
    assert SD1(parts, listed, CPU).prediction == "v_prediction"
