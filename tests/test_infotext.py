"""The text in a picture: what we write A1111's tools read, and what they wrote we read."""

from pathlib import Path

import pytest

from pipelines import infotext
from pipelines.errors import PipelineError
from pipelines.request import (
    Control,
    Faces,
    GenerationRequest,
    Guidance,
    Hires,
    Noise,
    Outpaint,
    Refiner,
    Sampling,
    Soft,
    Start,
)
from pipelines.types import ModelInfo

MODEL = ModelInfo(name="tiny", family="sd1", path=Path(), size_bytes=1, width=64, height=64, sha256="ab" * 32)
REQUEST = GenerationRequest(prompt="a cat", model="tiny", width=64, height=72, seed=7, steps=9, cfg_scale=6.5)


def test_the_order_and_the_words_are_those_of_a1111() -> None:
    text = infotext.dump(REQUEST.model_copy(update={"negative_prompt": "dog"}), 2, MODEL, "1.0")
    assert text == (
        "a cat\nNegative prompt: dog\nSteps: 9, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 6.5, Seed: 9,"
        " Size: 64x72, Model hash: ababababab, Model: tiny, Version: Inkstone 1.0"
    )


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"prompt": "a, b: c", "negative_prompt": "one\ntwo"},
        {"prompt": ""},
        {"prompt": "line one\nline two"},
        {"model": 'x, "y": z'},
        {"prompt": "猫，水墨画", "model": "模型"},
    ],
)
def test_round_trip(update: dict[str, str]) -> None:
    request = REQUEST.model_copy(update=update)
    model = MODEL.model_copy(update={"name": request.model})
    assert infotext.load(infotext.dump(request, 0, model, "1.0")).request == request


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "found"),
    [
        ("a cat\nSteps: 20, Sampler: Euler", "a cat\nSteps: 20, Sampler: Euler", "", {}),  # two pairs are prompt text
        (
            "a\nNegative prompt: b\nc\nSteps: 1, Seed: 2, Size: 8x8",
            "a",
            "b\nc",
            {"Steps": "1", "Seed": "2", "Size": "8x8"},
        ),
        (
            'a\nSteps: 1, Seed: 2, Lora hashes: "x: 1, y: 2"',
            "a",
            "",
            {"Steps": "1", "Seed": "2", "Lora hashes": "x: 1, y: 2"},
        ),
        ("a\r\nSteps: 1, Seed: 2, Size: 8x8\r\n", "a", "", {"Steps": "1", "Seed": "2", "Size": "8x8"}),
        ("", "", "", {}),
    ],
)
def test_pairs(text: str, prompt: str, negative: str, found: dict[str, str]) -> None:
    assert infotext.pairs(text) == (prompt, negative, found)


def test_values_that_do_not_fit_are_named() -> None:
    with pytest.raises(PipelineError, match="do not fit"):
        infotext.load("a\nSteps: many, Seed: 2, Size: 8x8")


FULL = REQUEST.model_copy(
    update={
        "clip_skip": 2,
        "emphasis": "No norm",
        "tiling": "x",
        "noise": Noise(rng="NV", variation_seed=3, variation_strength=0.2, resize_from=(512, 768), delta=31337),
        "sampling": Sampling(eta=0.5, s_churn=1, s_tmin=0.1, s_tmax=9, s_noise=1.01, rho=5, discard_penultimate=True),
        "guidance": Guidance(rescale=0.7, start=0.1, end=0.9, min_sigma=2, apg=0.5, pag=3, token_merging=0.4),
        "hires": Hires(
            upscaler="4x-UltraSharp",
            width=128,
            height=144,
            steps=5,
            denoising_strength=0.35,
            sampler="Euler a",
            schedule="Karras",
            cfg_scale=4,
            prompt="more, detail: yes",
            negative_prompt="less",
            model="other",
        ),
        "refiner": Refiner(model="fine", switch_at=0.7),
        "faces": Faces(model="GFPGANv1.4.pth"),
    }
)


def test_every_feature_comes_back_from_the_text() -> None:
    read = infotext.load(infotext.dump(FULL, 0, MODEL, "1.0"))
    assert read.request == FULL
    assert read.notes == ()
    assert read.model_hash == "ababababab"


def test_each_image_has_its_own_seeds() -> None:
    again = infotext.load(infotext.dump(FULL, 2, MODEL, "1.0")).request
    assert (again.seed, again.noise.variation_seed) == (7, 5), "with a variation only the variation seed grows"
    plain = FULL.model_copy(update={"noise": Noise()})
    assert infotext.load(infotext.dump(plain, 2, MODEL, "1.0")).request.seed == 9


def test_what_is_not_in_the_text_is_said() -> None:
    started = REQUEST.model_copy(
        update={
            "start": Start(image="sha256:1", denoising_strength=0.4, mask="m", mask_blur=9, only_masked=True),
            "controls": (Control(model="canny", image="x", module="canny"),),
        }
    )
    text = infotext.dump(started, 0, MODEL, "1.0")
    assert "Denoising strength: 0.4, Mask blur: 9, Inpaint area: Only masked" in text
    assert 'ControlNet 0: "Module: canny, Model: canny, Weight: 1' in text
    read = infotext.load(text)
    assert read.request == REQUEST
    assert "from another picture" in read.notes[0]
    assert "ControlNet" in read.notes[1]


def test_parts_of_parts_are_written() -> None:
    start = Start(image="sha256:1", mask="m", soft=Soft(bias=2), outpaint=Outpaint(left=64), mask_weight=0.5)
    text = infotext.dump(REQUEST.model_copy(update={"start": start}), 0, MODEL, "1.0")
    assert "Conditional mask weight: 0.5, Soft inpainting schedule bias: 2, Soft inpainting preservation" in text
    assert "Outpaint left: 64" in text
    assert "another picture" in infotext.load(text).notes[0]


A1111 = """masterpiece, (red hair:1.2) <lora:add_detail:0.5>
Negative prompt: EasyNegative, (worst quality:1.4)
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234567890, Size: 512x768, \
Model hash: 879db523c3, Model: dreamshaper_8, VAE hash: 735e4c3a44, VAE: vae-ft-mse.safetensors, \
Variation seed: 12, Variation seed strength: 0.1, Denoising strength: 0.4, Clip skip: 2, ENSD: 31337, RNG: CPU, \
Hires upscale: 2, Hires steps: 15, Hires upscaler: Latent (nearest-exact), Hires sampler: Use same sampler, \
Lora hashes: "add_detail: 7c6bad76eb54", TI hashes: "EasyNegative: c74b4e810b03", Emphasis: No norm, Eta: 0.67, \
NGMS: 1, Refiner: sd_xl_refiner [7440042bbd], Refiner switch at: 0.8, Dynamic thresholding enabled: True, \
Version: v1.10.1""".replace("\\\n", "")


def test_a_picture_of_a1111_is_read() -> None:
    read = infotext.load(A1111)
    asked = read.request
    assert (asked.steps, asked.sampler, asked.schedule, asked.cfg_scale) == (28, "DPM++ 2M", "Karras", 7)
    assert (asked.seed, asked.width, asked.height, asked.model) == (1234567890, 512, 768, "dreamshaper_8")
    assert (asked.clip_skip, asked.vae, asked.emphasis) == (2, "vae-ft-mse.safetensors", "No norm")
    assert asked.noise == Noise(variation_seed=12, variation_strength=0.1, delta=31337)
    assert asked.hires == Hires(upscaler="Latent (nearest-exact)", steps=15, denoising_strength=0.4)
    assert asked.refiner == Refiner(model="sd_xl_refiner [7440042bbd]")
    assert (asked.sampling.eta, asked.guidance.min_sigma) == (0.67, 1)
    assert read.notes == ("Not used: Dynamic thresholding enabled.",)
    assert read.model_hash == "879db523c3"


def test_samplers_have_one_name() -> None:
    read = infotext.load(
        "a cat\nSteps: 20, Sampler: DPM++ 2M Karras, Seed: 1, Hires sampler: k_euler_a, Hires steps: 5"
    )
    assert (read.request.sampler, read.request.schedule) == ("DPM++ 2M", "Karras")
    assert read.request.hires is not None
    assert (read.request.hires.sampler, read.request.hires.schedule) == ("Euler a", "")
    read = infotext.load("a cat\nSteps: 20, Sampler: Magic, Schedule type: SGMUniform, Seed: 1")
    assert (read.request.sampler, read.request.schedule) == (GenerationRequest().sampler, "SGM Uniform")
    assert read.notes[0].startswith("There is no sampler named 'Magic'. Choose one of: DPM++ 2M,")
