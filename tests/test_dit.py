"""The diffusion transformers: one contract for all families, and the same pictures as diffusers' own pipelines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

from pipelines.errors import BadModel
from pipelines.families import flux, flux2, qwen, sd3, zimage
from pipelines.families.base import Cond, Reading
from pipelines.families.flow import PaddedCond, from_patches, patches
from pipelines.loading.parts import Family, Part, Recipe
from pipelines.prompt import parse
from pipelines.request import GenerationRequest
from pipelines.samplers import SAMPLERS, ImageNoise, sigmas_for
from pipelines.tokenizers import bundled
from pipelines.tokenizers.clip import clip
from pipelines.types import ModelInfo
from tests import tiny_dit
from tests.drawing import draw
from tests.tiny_dit import Weights
from tests.walking import solve

CPU = torch.device("cpu")
PROMPT, NEGATIVE = "a photo of a cat, 12 whiskers", "rain"
WIDTH, HEIGHT, STEPS = 96, 64, 4


def load(name: str, recipe: Recipe, weights: Mapping[str, Tensor]) -> Part:
    """A part in fp32, by way of its recipe alone: what lies under the first prefix that occurs."""
    prefix = next(prefix for prefix in recipe.prefixes if any(key.startswith(prefix) for key in weights))
    tensors = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    config = recipe.config(tensors)
    with torch.device("meta"):
        module = recipe.build(config)
    module.load_state_dict(dict(recipe.convert(tensors, config)), assign=True)
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    module.eval().requires_grad_(False)
    return Part(name, module, torch.float32, name, 0)


@dataclass(frozen=True)
class Row:
    family: Family
    weights: Mapping[str, Callable[[], Weights]]
    """Of each part, in its makers' layout."""
    variant: str = ""


FLUX_PARTS = {"text_encoder": tiny_dit.clip, "text_encoder_2": tiny_dit.t5, "vae": tiny_dit.vae}
SD3_PARTS = {
    "text_encoder": lambda: tiny_dit.clip(projected=True),
    "text_encoder_2": lambda: tiny_dit.clip(projected=True),
    "text_encoder_3": tiny_dit.t5,
    "vae": tiny_dit.vae,
}
QWEN3 = {"text_encoder": lambda: tiny_dit.qwen(3)}
ROWS = {
    "flux": Row(flux.FLUX, {"transformer": tiny_dit.flux, **FLUX_PARTS}),
    "flux-schnell": Row(flux.FLUX, {"transformer": lambda: tiny_dit.flux(guidance=False), **FLUX_PARTS}, "schnell"),
    "flux-fill": Row(flux.FLUX, {"transformer": lambda: tiny_dit.flux(fill=True), **FLUX_PARTS}, "fill"),
    "sd3": Row(sd3.SD3_FAMILY, {"transformer": lambda: tiny_dit.sd3(dual=False), **SD3_PARTS}),
    "sd3.5": Row(sd3.SD3_FAMILY, {"transformer": tiny_dit.sd3, **SD3_PARTS}),
    "flux2": Row(
        flux2.FLUX2, {"transformer": tiny_dit.flux2, "vae": lambda: tiny_dit.vae(32, statistics=True), **QWEN3}
    ),
    "z-image": Row(zimage.Z_IMAGE, {"transformer": tiny_dit.z_image, "vae": tiny_dit.vae, **QWEN3}),
    "z-image-turbo": Row(zimage.Z_IMAGE, {"transformer": tiny_dit.z_image, "vae": tiny_dit.vae, **QWEN3}, "turbo"),
    "qwen-image": Row(
        qwen.QWEN_IMAGE,
        {
            "transformer": tiny_dit.qwen_image,
            "vae": tiny_dit.qwen_vae,
            "text_encoder": lambda: tiny_dit.qwen(2),
        },
    ),
}


def info(row: Row) -> ModelInfo:
    return ModelInfo(name="tiny", family="", variant=row.variant, path=Path("tiny"), size_bytes=0)


@cache
@torch.inference_mode(False)  # all tests share it: one that draws must not make weights that no other can load
def made(name: str) -> Any:
    row = ROWS[name]
    parts = {part: load(part, row.family.parts[part], weights()) for part, weights in row.weights.items()}
    return row.family.model(parts, info(row), CPU)


@pytest.fixture(params=ROWS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Any:
    return made(name)


def asked(**values: Any) -> GenerationRequest:
    settings = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "width": WIDTH, "height": HEIGHT, "steps": STEPS}
    return GenerationRequest(**{"sampler": "Euler", "seed": 5, "cfg_scale": 1, **settings, **values})


# The contract: what `generate` wants of every family


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M"])
def test_every_sampler_draws(model: Any, sampler: str) -> None:
    request = asked(sampler=sampler, steps=2, cfg_scale=3)
    drawn = draw(model, request)[0]
    assert drawn.size == (WIDTH, HEIGHT)


def test_odd_sizes_have_their_size(model: Any) -> None:
    request = asked(width=72, height=104, steps=1)
    assert draw(model, request)[0].size == (72, 104)


@torch.inference_mode()
def test_two_passes_are_one(model: Any) -> None:
    """Where memory is short, prompt and negative prompt go one after another: each still padded for the longer one."""
    both = model.encode([parse(f"{PROMPT}, on a hill behind the old house"), parse("")])
    noise = ImageNoise(model.latent_shape(WIDTH, HEIGHT), [1], CPU)()
    whole = model.predict(torch.cat([noise, noise]), 0.8, both)
    for row in (0, 1):
        alone = model.predict(noise, 0.8, both.take([row]))
        torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_batch_is_its_single_pictures(model: Any) -> None:
    """Prompts of different lengths stay apart, whatever they are filled up with."""
    both = model.encode([parse(PROMPT), parse(NEGATIVE)])
    noise = ImageNoise(model.latent_shape(WIDTH, HEIGHT), [1, 2], CPU)()
    together = model.predict(noise, 0.7, both)
    for i, prompt in enumerate((PROMPT, NEGATIVE)):
        alone = model.predict(noise[i : i + 1], 0.7, model.encode([parse(prompt)]))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)


@torch.inference_mode()
def test_fill_encodes_its_empty_picture_once() -> None:
    model = made("flux-fill")
    seen: list[int] = []
    hook = model.vae.encoder.register_forward_hook(lambda module, inputs, output: seen.append(1))
    cond = model.encode([parse(PROMPT)])
    for side in (64, 64, 80, 80):
        noise = ImageNoise(model.latent_shape(side, 64), [1], CPU)()
        model.predict(noise, 0.7, cond)
    hook.remove()
    assert len(seen) == 2


@torch.inference_mode()
def test_the_prompt_counts(model: Any) -> None:
    noise = ImageNoise(model.latent_shape(WIDTH, HEIGHT), [1], CPU)()
    one, other = (model.predict(noise, 0.9, model.encode([parse(prompt)])) for prompt in (PROMPT, NEGATIVE))
    assert not torch.allclose(one, other, atol=1e-4)


@torch.inference_mode()
def test_encode_and_decode_are_each_other_s_reverse(model: Any) -> None:
    """The scale on the way in is the inverse of that on the way out."""
    latent = torch.randn(1, *model.latent_shape(WIDTH, HEIGHT), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.from_vae(model.to_vae(latent)), latent, atol=1e-5)
    shape = model.to_latent(torch.rand(1, 3, HEIGHT, WIDTH)).shape
    assert shape == latent.shape


@torch.inference_mode()
def test_repeated_conditions_keep_their_rows(model: Any) -> None:
    cond = model.encode([parse(PROMPT), parse(NEGATIVE)]).repeated(2)
    assert torch.equal(cond.tokens[0], cond.tokens[1])
    assert not torch.equal(cond.tokens[1], cond.tokens[2])
    if isinstance(cond, PaddedCond):
        assert cond.lengths[0] == cond.lengths[1] > cond.lengths[2] == cond.lengths[3]


# The decisive test: the same latents as diffusers' pipelines


DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "flux": DYNAMIC,
    "flux-fill": DYNAMIC,
    "flux-schnell": {"shift": 1.0},
    "sd3": {"shift": 3.0},
    "sd3.5": {"shift": 3.0},
    "flux2": DYNAMIC,
    "z-image": {"shift": 6.0},
    "z-image-turbo": {"shift": 3.0},
    "qwen-image": {
        "use_dynamic_shifting": True,
        "shift": 1.0,
        "max_image_seq_len": 8192,
        "max_shift": 0.9,
        "shift_terminal": 0.02,
    },
}
"""What lies in the scheduler folders of the published models."""


def pipeline(name: str, kind: Any, model: Any, **more: Any) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULERS[name])
    pipe = kind(transformer=model.transformer, vae=model.vae, scheduler=scheduler, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def t5_tokenizer() -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=bundled.t5(), pad_token="<pad>", eos_token="</s>")


def qwen_tokenizer(ending: str = "") -> Any:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=bundled.qwen(),
        pad_token="<|endoftext|>",
        chat_template=template + "{{ '<|im_start|>assistant\n" + ending + "' }}",
        padding_side="right",
    )


def clip_tokenizer(pad: str) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=clip().tokenizer, pad_token=pad, model_max_length=77, eos_token="<|endoftext|>"
    )


def stock_flux(name: str, model: Any, noise: Tensor) -> tuple[Any, Callable[[], Tensor]]:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    parts = model.parts
    pipe = pipeline(
        name,
        FluxPipeline,
        model,
        text_encoder=parts["text_encoder"].module,
        text_encoder_2=parts["text_encoder_2"].module,
        tokenizer=clip_tokenizer("<|endoftext|>"),
        tokenizer_2=t5_tokenizer(),
    )
    call = {"guidance_scale": 3.5, "max_sequence_length": model.reader.tokens, "latents": patches(noise), **SHAPE}
    return pipe.encode_prompt(PROMPT, None, max_sequence_length=model.reader.tokens)[:2], lambda: from_patches(
        pipe(prompt=PROMPT, **call).images, *noise.shape[-2:]
    )


SHAPE = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": STEPS, "output_type": "latent"}


def stock_fill(name: str, model: Any, noise: Tensor) -> tuple[Any, Callable[[], Tensor]]:
    from diffusers.pipelines.flux.pipeline_flux_fill import FluxFillPipeline

    pipe = pipeline(
        name, FluxFillPipeline, model, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None
    )
    cond = model.encode([parse(PROMPT)])
    call = {"prompt_embeds": cond.tokens, "pooled_prompt_embeds": cond.pooled, "latents": patches(noise)}
    masked = {"image": torch.zeros(1, 3, HEIGHT, WIDTH), "mask_image": torch.ones(1, 1, HEIGHT, WIDTH)}
    return (cond.tokens, cond.pooled), lambda: from_patches(
        pipe(guidance_scale=30.0, **call, **masked, **SHAPE).images, *noise.shape[-2:]
    )


def stock_sd3(name: str, model: Any, noise: Tensor) -> tuple[Any, Callable[[], Tensor]]:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

    parts = model.parts
    pipe = pipeline(
        name,
        StableDiffusion3Pipeline,
        model,
        text_encoder=parts["text_encoder"].module,
        text_encoder_2=parts["text_encoder_2"].module,
        text_encoder_3=parts["text_encoder_3"].module,
        tokenizer=clip_tokenizer("<|endoftext|>"),
        tokenizer_2=clip_tokenizer("!"),
        tokenizer_3=t5_tokenizer(),
    )
    told = pipe.encode_prompt(PROMPT, PROMPT, PROMPT, do_classifier_free_guidance=False)
    return (told[0], told[2]), lambda: pipe(prompt=PROMPT, latents=noise, guidance_scale=1, **SHAPE).images


def stock_flux2(name: str, model: Any, noise: Tensor) -> tuple[Any, Callable[[], Tensor]]:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline

    encoder, tokenizer = model.parts["text_encoder"].module, qwen_tokenizer("<think>\n\n</think>\n\n")
    pipe = pipeline(name, Flux2KleinPipeline, model, text_encoder=encoder, tokenizer=tokenizer, is_distilled=True)
    layers = (1, 2, 3)
    told, _ = pipe.encode_prompt(PROMPT, text_encoder_out_layers=layers)
    packed = pipe._patchify_latents(noise)
    call = {"text_encoder_out_layers": layers, "guidance_scale": 1.0, "latents": packed, **SHAPE}
    return (told, None), lambda: model.from_vae(pipe(prompt=PROMPT, **call).images)


def stock_z_image(name: str, model: Any, noise: Tensor) -> tuple[Any, Callable[[], Tensor]]:
    from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline

    encoder = model.parts["text_encoder"].module
    pipe = pipeline(name, ZImagePipeline, model, text_encoder=encoder, tokenizer=qwen_tokenizer())
    told, _ = pipe.encode_prompt(PROMPT, device=CPU, do_classifier_free_guidance=False)
    return (told[0][None], None), lambda: pipe(prompt=PROMPT, latents=noise, guidance_scale=0, **SHAPE).images


def stock_qwen(name: str, model: Any, noise: Tensor) -> tuple[Any, Callable[[], Tensor]]:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

    encoder = model.parts["text_encoder"].module
    pipe = pipeline(name, QwenImagePipeline, model, text_encoder=encoder, tokenizer=qwen_tokenizer())
    told, _ = pipe._get_qwen_prompt_embeds(PROMPT)
    return (told, None), lambda: from_patches(
        pipe(prompt_embeds=told, true_cfg_scale=1, latents=patches(noise), **SHAPE).images, *noise.shape[-2:]
    )


STOCK = {
    "flux": stock_flux,
    "flux-schnell": stock_flux,
    "flux-fill": stock_fill,
    "sd3": stock_sd3,
    "sd3.5": stock_sd3,
    "flux2": stock_flux2,
    "z-image": stock_z_image,
    "z-image-turbo": stock_z_image,
    "qwen-image": stock_qwen,
}


@torch.inference_mode()
def test_latents_are_those_of_diffusers(name: str, model: Any) -> None:
    """The same modules, prompt and noise: their pipeline's Euler steps and our loop's end at the same place."""
    shape = model.latent_shape(WIDTH, HEIGHT)
    start = ImageNoise(shape, [5], CPU)()
    (tokens, pooled), draw = STOCK[name](name, model, start)
    cond: Cond = model.encode([parse(PROMPT)])
    assert torch.allclose(cond.tokens, tokens, atol=1e-4)
    if pooled is not None:
        assert cond.pooled is not None
        assert torch.allclose(cond.pooled, pooled, atol=1e-4)
    sigmas = sigmas_for(SAMPLERS["Euler"], "Automatic", STEPS, model.levels.fitted(shape, STEPS))
    ours = solve("Euler", sigmas, start, lambda x, s: model.predict(x, s, cond))
    theirs = draw()
    assert theirs.std() > 0.1
    assert torch.allclose(ours, theirs.reshape(ours.shape), atol=1e-4, rtol=1e-4)


# Files


CONVERTERS = {
    "sd3": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "sd3.5": single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    "flux2": single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    "z-image": single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_views_hold_what_diffusers_converts(name: str) -> None:
    weights = ROWS[name].weights["transformer"]()
    recipe = ROWS[name].family.parts["transformer"]
    ours, theirs = recipe.convert(weights, recipe.config(weights)), CONVERTERS[name](dict(weights))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_flux_of_any_width_is_cut_like_flux_of_the_one_that_diffusers_knows() -> None:
    """Full height, one column: what diffusers' converter cuts at 3072 is what ours cuts at the file's own width."""
    full = tiny_dit.flux(width=3072, columns=1)
    recipe = flux.FLUX.parts["transformer"]
    ours = recipe.convert(full, {"packed": {}})
    theirs = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(dict(full))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    narrow = recipe.convert(tiny_dit.flux(width=64), {"packed": {}})
    assert {key: len(tensor) for key, tensor in ours.items() if len(tensor) % 3072 == 0} == {
        key: len(tensor) * 48 for key, tensor in narrow.items() if len(ours[key]) % 3072 == 0
    }


def test_conversion_copies_nothing_but_the_last_modulation(name: str) -> None:
    weights = ROWS[name].weights["transformer"]()
    recipe = ROWS[name].family.parts["transformer"]
    theirs = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    converted = recipe.convert(weights, recipe.config(weights))
    copied = {key for key, tensor in converted.items() if tensor.untyped_storage().data_ptr() not in theirs}
    assert all("norm_out" in key or "norm1_context" in key for key in copied)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_files_load_under_either_prefix(tmp_path: Path, name: str, prefix: str) -> None:
    weights = ROWS[name].weights["transformer"]()
    path = tiny_dit.save_single(tmp_path / "tiny.safetensors", weights, prefix=prefix)
    part = load("transformer", ROWS[name].family.parts["transformer"], load_file(path))
    for key, tensor in part.module.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.allclose(tensor.float(), made(name).transformer.state_dict()[key], atol=0.05), key


def test_a_file_in_the_layout_of_diffusers_loads_as_it_is(name: str) -> None:
    expected = made(name).transformer.state_dict()
    part = load("transformer", ROWS[name].family.parts["transformer"], expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in part.module.state_dict().items())


def test_qwen_s_vae_loads_from_the_layout_of_wan() -> None:
    recipe = qwen.QWEN_IMAGE.parts["vae"]
    ours, expected = load("vae", recipe, tiny_dit.wan_vae()), made("qwen-image").vae.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.module.state_dict().items())


HALF = torch.bfloat16


@torch.inference_mode()
def test_half_precision_is_kept_inside_and_left_at_the_border(name: str) -> None:
    """Every part in bfloat16; x0 is in full precision, and not far from what full precision says."""
    row = ROWS[name]
    parts = {part: load(part, row.family.parts[part], weights()) for part, weights in row.weights.items()}
    halves = {key: Part(key, part.module.to(HALF), HALF, key, 0) for key, part in parts.items()}
    half, full = row.family.model(halves, info(row), CPU), made(name)
    noise = ImageNoise(full.latent_shape(WIDTH, HEIGHT), [1], CPU)()
    cond = half.encode([parse(PROMPT)])
    assert cond.tokens.dtype == HALF
    ours, exact = half.predict(noise, 0.7, cond), full.predict(noise, 0.7, full.encode([parse(PROMPT)]))
    assert ours.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), dim=0) > 0.9
    assert half.decode(ours[0]).size == (WIDTH, HEIGHT)


def test_what_is_missing_is_named(name: str) -> None:
    weights = ROWS[name].weights["transformer"]()
    lost = next(key for key in weights if key.startswith(("x_embedder", "img_in")))
    del weights[lost]
    with pytest.raises(BadModel, match="incomplete"):
        ROWS[name].family.parts["transformer"].config(weights)


def test_sd3_does_without_t5() -> None:
    parts = {name: part for name, part in made("sd3").parts.items() if name != "text_encoder_3"}
    model: Any = sd3.SD3_FAMILY.model(parts, info(ROWS["sd3"]), CPU)
    cond = model.encode([parse(PROMPT)])
    assert cond.tokens.shape[1] == 77 + 256
    assert not cond.tokens[:, 77:].any()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_weights_multiply_the_features_of_their_words(name: str) -> None:
    reading = Reading(emphasis="No norm")
    plain, heavy = (made(name).encode([parse(text)], reading).tokens for text in ("a red cat", "a (red:1.5) cat"))
    ratio = (heavy[0] / plain[0])[plain[0].abs().sum(-1) > 0].nanmedian(-1).values
    assert 0 < int(torch.isclose(ratio, torch.tensor(1.5), atol=1e-3).sum()) <= 3
    assert int(torch.isclose(ratio, torch.tensor(1.0), atol=1e-3).sum()) == len(ratio) - int((ratio > 1.4).sum())


@torch.inference_mode()
@pytest.mark.parametrize("name", ["flux2", "z-image", "qwen-image"])
def test_chat_models_do_not_read_weights_and_say_so(name: str) -> None:
    plain, heavy = (made(name).encode([parse(prompt)]) for prompt in ("a red cat", "a (red:1.5) cat"))
    assert torch.equal(plain.tokens, heavy.tokens)
    assert not plain.notes
    assert "Weights in a prompt mean nothing to Qwen" in heavy.notes[0]


@torch.inference_mode()
@pytest.mark.parametrize("name", ROWS)
def test_what_is_cut_off_is_told(name: str) -> None:
    """Of a prompt in which every word is a token of its own."""
    model = made(name)
    words = " ".join(f"cat{'s' * (n % 2)}" for n in range(model.reader.tokens - 60))
    assert not model.encode([parse(words)]).notes
    cond = model.encode([parse(f"{words} {words}, and a dog"), parse("rain")])
    assert len(cond.notes) == 1
    assert f"reads {model.reader.tokens} tokens of a prompt. Not read: “cat" in cond.notes[0]


@torch.inference_mode()
def test_sd3_reads_chunks_with_clip() -> None:
    model = made("sd3")
    both = model.encode([parse("a cat BREAK a dog"), parse("rain")])
    assert both.tokens.shape[1] == 2 * 77 + 256
    alone = model.encode([parse("a cat"), parse("a dog")])
    assert torch.allclose(both.tokens[0, : 2 * 77], alone.tokens[:, :77].flatten(0, 1), atol=1e-5)
    assert both.pooled is not None
    assert alone.pooled is not None
    assert torch.allclose(both.pooled[0], alone.pooled[0], atol=1e-5)


@pytest.mark.parametrize(("name", "channels"), [("flux", 128), ("flux2", 128)])
def test_models_that_cannot_be_run_say_so(name: str, channels: int) -> None:
    parts = dict(made(name).parts)
    weights = ROWS[name].weights["transformer"]()
    if name == "flux":  # control: a second picture beside the latent
        weights["img_in.weight"] = torch.zeros(64, channels)
    else:  # dev: told a guidance, and prompts by Mistral
        weights["guidance_in.in_layer.weight"] = torch.zeros(64, 256)
        weights["guidance_in.out_layer.weight"] = torch.zeros(64, 64)
    parts["transformer"] = load("transformer", ROWS[name].family.parts["transformer"], weights)
    with pytest.raises(BadModel, match="cannot be run yet"):
        ROWS[name].family.model(parts, info(ROWS[name]), CPU)
