"""What a model is, by the names and shapes that its makers give it: a test for each row of the tables."""

import re

import pytest

from pipelines.library.detect import Finding, detect
from pipelines.types import Kind
from tests.sparse import CLIP_L, FLUX, QWEN3_4B, SD1, SD1_UNET, T5, VAE4, VAE16, Shapes, below, header, other

UNET = "model.diffusion_model."
LINEAR = {"proj_in__weight": (320, 320)}
SD2_UNET = other(SD1_UNET, proj_in__weight=(320, 320), to_k__weight=(320, 1024))
OPEN_CLIP: Shapes = {
    "token_embedding.weight": (49408, 1024),
    "positional_embedding": (77, 1024),
    "transformer.resblocks.0.attn.in_proj_weight": (3072, 1024),
    "transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024),
}
SD2 = {**SD2_UNET, **below("first_stage_model.", VAE4), **below("cond_stage_model.model.", OPEN_CLIP)}
SDXL_UNET: Shapes = {
    f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{UNET}input_blocks.4.1.proj_in.weight": (640, 640),
    f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    f"{UNET}label_emb.0.0.weight": (1280, 2816),
}
CLIP_G = other(
    OPEN_CLIP,
    token_embedding__weight=(49408, 1280),
    c_fc__weight=(5120, 1280),
    in_proj_weight=(3840, 1280),
)
SDXL = {
    **SDXL_UNET,
    **below("first_stage_model.", VAE4),
    **below("conditioner.embedders.0.transformer.", CLIP_L),
    **below("conditioner.embedders.1.model.", CLIP_G),
}
REFINER = {
    f"{UNET}input_blocks.0.0.weight": (384, 4, 3, 3),
    f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (768, 1280),
    f"{UNET}input_blocks.9.0.op.weight": (1536, 1536, 3, 3),
    f"{UNET}label_emb.0.0.weight": (1536, 2560),
    **below("first_stage_model.", VAE4),
    **below("conditioner.embedders.0.model.", CLIP_G),
}
SD3: Shapes = {
    "x_embedder.proj.weight": (1536, 16, 2, 2),
    "pos_embed": (1, 36864, 1536),
    "joint_blocks.0.context_block.adaLN_modulation.1.weight": (9216, 1536),
    "joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536),
}
SD35_LARGE = {**SD3, "joint_blocks.0.x_block.attn.ln_q.weight": (64,)}
SD35_MEDIUM = {**SD35_LARGE, "joint_blocks.0.x_block.attn2.qkv.weight": (4608, 1536)}
FLUX_DIFFUSERS: Shapes = {
    "x_embedder.weight": (3072, 64),
    "context_embedder.weight": (3072, 4096),
    "transformer_blocks.0.attn.add_k_proj.weight": (3072, 3072),
    "single_transformer_blocks.0.proj_mlp.weight": (12288, 3072),
    "time_text_embed.guidance_embedder.linear_1.weight": (3072, 256),
}
SCHNELL = {name: shape for name, shape in FLUX.items() if not name.startswith("guidance_in")}
FLUX2: Shapes = {
    "img_in.weight": (3072, 128),
    "txt_in.weight": (3072, 7680),
    "double_stream_modulation_img.lin.weight": (18432, 3072),
    "single_stream_modulation.lin.weight": (9216, 3072),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "single_blocks.0.linear1.weight": (27648, 3072),
}
Z_IMAGE: Shapes = {
    "cap_embedder.0.weight": (2560,),
    "cap_embedder.1.weight": (3840, 2560),
    "layers.0.adaLN_modulation.0.weight": (15360, 256),
    "layers.0.attention.qkv.weight": (11520, 3840),
    "noise_refiner.0.attention.qkv.weight": (11520, 3840),
}
QWEN_IMAGE: Shapes = {
    "img_in.weight": (3072, 64),
    "txt_norm.weight": (3584,),
    "transformer_blocks.0.img_mod.1.weight": (18432, 3072),
    "transformer_blocks.0.attn.add_k_proj.weight": (3072, 3072),
}


def found(shapes: Shapes, name: str = "model.safetensors", dtype: str = "F16", **metadata: str) -> Finding:
    return detect(header(shapes, dtype, **metadata), name)


CHECKPOINTS = [
    (SD1, "sd1", ""),
    (other(SD1, input_blocks__0__0__weight=(320, 9, 3, 3)), "sd1", "inpaint"),
    (other(SD1, input_blocks__0__0__weight=(320, 8, 3, 3)), "sd1", "pix2pix"),
    (SD2, "sd2", ""),
    (other(SD2, input_blocks__0__0__weight=(320, 9, 3, 3)), "sd2", "inpaint"),
    (other(SD2, input_blocks__0__0__weight=(320, 5, 3, 3)), "sd2", "depth"),
    (SDXL, "sdxl", ""),
    (other(SDXL, input_blocks__0__0__weight=(320, 9, 3, 3)), "sdxl", "inpaint"),
    (other(SDXL, input_blocks__0__0__weight=(320, 8, 3, 3)), "sdxl", "pix2pix"),
    (REFINER, "sdxl", "refiner"),
    (SD3, "sd3", ""),
    (SD35_MEDIUM, "sd3", "3.5-medium"),
    (SD35_LARGE, "sd3", "3.5-large"),
    (FLUX, "flux", "dev"),
    (SCHNELL, "flux", "schnell"),
    (other(FLUX, img_in__weight=(3072, 384)), "flux", "fill"),
    (other(FLUX, img_in__weight=(3072, 128)), "flux", "control"),
    (FLUX_DIFFUSERS, "flux", "dev"),
    (FLUX2, "flux2", "klein-4b"),
    (other(FLUX2, txt_in__weight=(4096, 12288)), "flux2", "klein-9b"),
    ({**FLUX2, "guidance_in.in_layer.weight": (6144, 256)}, "flux2", "dev"),
    (Z_IMAGE, "z_image", "turbo"),
    (QWEN_IMAGE, "qwen_image", ""),
]


@pytest.mark.parametrize(("shapes", "family", "variant"), CHECKPOINTS)
def test_checkpoints(shapes: Shapes, family: str, variant: str) -> None:
    info = found(shapes)
    assert (info.kind, info.family, info.variant) == (Kind.CHECKPOINT, family, variant)


@pytest.mark.parametrize(("shapes", "family", "variant"), CHECKPOINTS[10:])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model.", "transformer."])
def test_a_transformer_is_known_behind_any_prefix(shapes: Shapes, family: str, variant: str, prefix: str) -> None:
    info = found(below(prefix, shapes))
    assert (info.kind, info.family, info.variant) == (Kind.CHECKPOINT, family, variant)
    assert list(info.parts) == ["transformer"]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "BF16", "Q4_K"])
def test_the_main_dtype_is_told(dtype: str) -> None:
    assert found(FLUX, dtype=dtype).dtype == dtype


def test_narrow_models_are_known_by_their_structure() -> None:
    narrow = {name: tuple(min(side, 32) if side > 9 else side for side in shape) for name, shape in SD1.items()}
    assert found(narrow).family == "sd1"
    narrow = {name: tuple(min(side, 32) if side > 9 else side for side in shape) for name, shape in SD2.items()}
    assert found(narrow).family == "sd2"
    narrow = {name: tuple(min(side, 32) if side > 9 else side for side in shape) for name, shape in SDXL.items()}
    assert (found(narrow).family, found(narrow).variant) == ("sdxl", "")


def test_the_parts_of_a_whole_checkpoint_are_weighed() -> None:
    assert list(found(SD1).parts) == ["unet", "vae", "text_encoder"]
    assert list(found(SDXL).parts) == ["unet", "vae", "text_encoder", "text_encoder_2"]
    assert list(found(REFINER).parts) == ["unet", "vae", "text_encoder_2"]
    whole = {**below(UNET, SD3), **below("text_encoders.clip_l.transformer.", CLIP_L)}
    whole |= below("text_encoders.t5xxl.transformer.", T5)
    assert list(found(whole).parts) == ["transformer", "text_encoder", "text_encoder_3"]
    whole = {**below(UNET, FLUX), **below("text_encoders.t5xxl.transformer.", T5), **below("vae.", VAE16)}
    assert list(found(whole).parts) == ["transformer", "text_encoder_2", "vae"]
    assert found(SD1).parts["text_encoder"] == 2 * (49408 * 768 + 3072 * 768 + 768 * 768 + 768 + 768)


WORDS = [
    (SD1, "dream.safetensors", {}, ("", "epsilon", 512, 7)),
    (SD2, "v2-1_768-ema-pruned.ckpt", {}, ("", "v_prediction", 768, 7)),
    (SD2, "512-base-ema.ckpt", {}, ("", "epsilon", 512, 7)),
    (SD2, "mine.safetensors", {}, ("", "v_prediction", 768, 7)),
    (SD2, "mine.safetensors", {"modelspec.prediction_type": "epsilon"}, ("", "epsilon", 512, 7)),
    (SD2, "sd_turbo.safetensors", {}, ("turbo", "epsilon", 512, 1)),
    ({**SDXL, "v_pred": ()}, "noob.safetensors", {}, ("", "v_prediction", 1024, 7)),
    (SDXL, "noobai-vpred-1.safetensors", {}, ("", "v_prediction", 1024, 7)),
    (SDXL, "sd_xl_turbo_1.0_fp16.safetensors", {}, ("turbo", "epsilon", 512, 1)),
    (SDXL, "x.safetensors", {"modelspec.title": "SDXL Lightning 4 steps"}, ("lightning", "epsilon", 1024, 1)),
    (SDXL, "Hyper/juggernaut.safetensors", {}, ("", "epsilon", 1024, 7)),
    (SD35_LARGE, "sd3.5_large_turbo.safetensors", {}, ("3.5-large-turbo", "flow", 1024, 1)),
    (SD3, "sd3_medium.safetensors", {}, ("", "flow", 1024, 4.5)),
    (FLUX, "flux1-dev-kontext_fp8_scaled.safetensors", {}, ("kontext", "flow", 1024, 1)),
    (FLUX2, "flux-2-klein-base-4b.safetensors", {}, ("klein-base-4b", "flow", 1024, 4)),
    (Z_IMAGE, "z_image_turbo_bf16.safetensors", {}, ("turbo", "flow", 1024, 1)),
    (Z_IMAGE, "z_image_bf16.safetensors", {}, ("", "flow", 1024, 4)),
    (QWEN_IMAGE, "qwen_image_edit_2509_fp8.safetensors", {}, ("edit", "flow", 1024, 4)),
]


@pytest.mark.parametrize(("shapes", "name", "metadata", "expected"), WORDS)
def test_what_shapes_cannot_tell_the_makers_words_do(
    shapes: Shapes, name: str, metadata: dict[str, str], expected: tuple[str, str, int, float]
) -> None:
    info = found(shapes, name, **metadata)
    assert (info.variant, info.prediction, info.width, info.cfg_scale) == expected


def kohya(layer: str, inside: int, outside: int = 640) -> Shapes:
    return {f"{layer}.lora_down.weight": (16, inside), f"{layer}.lora_up.weight": (outside, 16), f"{layer}.alpha": ()}


def peft(layer: str, inside: int) -> Shapes:
    return {f"{layer}.lora_A.weight": (16, inside), f"{layer}.lora_B.weight": (640, 16)}


SD_CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
LORAS = [
    (kohya(SD_CROSS, 768), "sd1", ""),
    (kohya(SD_CROSS, 1024), "sd2", ""),
    (kohya("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768), "sd1", ""),
    (kohya("lora_te_text_model_encoder_layers_22_self_attn_q_proj", 1024), "sd2", ""),
    (kohya("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048), "sdxl", ""),
    (kohya("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280), "sdxl", ""),
    (peft("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 768), "sd1", ""),
    (peft("unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k", 2048), "sdxl", ""),
    (peft("base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 1024), "sd2", ""),
    ({"unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 768)}, "sd1", ""),
    ({f"{SD_CROSS}.hada_w1_a": (640, 8), f"{SD_CROSS}.hada_w1_b": (8, 1024)}, "sd2", "loha"),
    ({f"{SD_CROSS}.lokr_w1": (8, 8), f"{SD_CROSS}.lokr_w2": (80, 96)}, "sd1", "lokr"),
    (
        {f"{SD_CROSS}.lokr_w1": (8, 8), f"{SD_CROSS}.lokr_w2_a": (80, 4), f"{SD_CROSS}.lokr_w2_b": (4, 256)},
        "sdxl",
        "lokr",
    ),
    ({f"{SD_CROSS}.weight": (640,), f"{SD_CROSS}.on_input": ()}, "sd1", "ia3"),
    ({**kohya(SD_CROSS, 768), f"{SD_CROSS}.dora_scale": (640, 1)}, "sd1", "dora"),
    ({f"{SD_CROSS}.diff": (640, 2048)}, "sdxl", "full"),
    (kohya("lora_unet_double_blocks_0_img_attn_qkv", 3072), "flux", ""),
    (kohya("lora_unet_single_blocks_0_linear1", 3072, 21504), "flux", ""),
    (peft("transformer.single_transformer_blocks.0.proj_mlp", 3072), "flux", ""),
    (peft("transformer.transformer_blocks.0.attn.add_k_proj", 3072), "flux", ""),
    (kohya("lora_unet_single_blocks_0_linear1", 3072, 27648), "flux2", ""),
    (peft("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072), "flux2", ""),
    (kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536), "sd3", ""),
    (peft("transformer.transformer_blocks.0.ff_context.net.0.proj", 1536), "sd3", ""),
    (peft("transformer.transformer_blocks.0.img_mlp.net.0.proj", 3072), "qwen_image", ""),
    (peft("diffusion_model.transformer_blocks.59.attn.add_k_proj", 3072), "qwen_image", ""),
    (peft("diffusion_model.layers.0.attention.to_q", 3840), "z_image", ""),
    (kohya("lora_unet_layers_0_feed_forward_w1", 3840), "z_image", ""),
]


@pytest.mark.parametrize(("shapes", "family", "variant"), LORAS)
def test_loras(shapes: Shapes, family: str, variant: str) -> None:
    info = found(shapes)
    assert (info.kind, info.family, info.variant) == (Kind.LORA, family, variant)
    assert info.parts == {}


CONTROL: Shapes = {
    "input_hint_block.0.weight": (16, 3, 3, 3),
    "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
}
CONTROL_DIFFUSERS: Shapes = {
    "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
    "down_blocks.1.attentions.0.proj_in.weight": (640, 640),
}
SR: Shapes = {"conv_first.weight": (64, 3, 3, 3)}
OTHERS = [
    ({"string_to_param.*": (8, 768)}, Kind.EMBEDDING, "sd1", ""),
    ({"string_to_param.*": (8, 1024)}, Kind.EMBEDDING, "sd2", ""),
    ({"emb_params": (8, 768)}, Kind.EMBEDDING, "sd1", ""),
    ({"<cat-toy>": (768,)}, Kind.EMBEDDING, "sd1", ""),
    ({"clip_l": (8, 768), "clip_g": (8, 1280)}, Kind.EMBEDDING, "sdxl", ""),
    (VAE4, Kind.VAE, "", "4ch"),
    (below("first_stage_model.", VAE4), Kind.VAE, "", "4ch"),
    (VAE16, Kind.VAE, "", "16ch"),
    ({**other(VAE4, decoder__conv_in__weight=(512, 32, 3, 3)), "bn.running_mean": (128,)}, Kind.VAE, "flux2", "32ch"),
    ({"decoder.middle.0.residual.0.gamma": (384, 1, 1, 1)}, Kind.VAE, "qwen_image", "qwen"),
    (CLIP_L, Kind.TEXT_ENCODER, "", "clip_l"),
    (other(CLIP_L, fc1__weight=(5120, 1280)), Kind.TEXT_ENCODER, "", "clip_g"),
    (CLIP_G, Kind.TEXT_ENCODER, "", "clip_g"),
    (OPEN_CLIP, Kind.TEXT_ENCODER, "", "clip_h"),
    (T5, Kind.TEXT_ENCODER, "", "t5xxl"),
    ({"token_embd.weight": (32128, 4096), "enc.blk.0.attn_q.weight": (4096, 4096)}, Kind.TEXT_ENCODER, "", "t5xxl"),
    (QWEN3_4B, Kind.TEXT_ENCODER, "", "qwen3_4b"),
    (other(QWEN3_4B, embed_tokens__weight=(151936, 4096)), Kind.TEXT_ENCODER, "", "qwen3_8b"),
    (
        {
            "token_embd.weight": (151936, 2560),
            "blk.0.attn_q.weight": (4096, 2560),
            "blk.0.attn_q_norm.weight": (128,),
            "blk.0.ffn_gate.weight": (9728, 2560),
        },
        Kind.TEXT_ENCODER,
        "",
        "qwen3_4b",
    ),
    (
        {
            "model.embed_tokens.weight": (152064, 3584),
            "model.layers.0.self_attn.q_proj.weight": (3584, 3584),
            "model.layers.0.self_attn.q_proj.bias": (3584,),
            "model.layers.0.mlp.gate_proj.weight": (18944, 3584),
            "visual.blocks.0.attn.qkv.weight": (3840, 1280),
        },
        Kind.TEXT_ENCODER,
        "",
        "qwen2.5_vl_7b",
    ),
    (
        {
            "model.embed_tokens.weight": (131072, 5120),
            "model.layers.0.self_attn.q_proj.weight": (4096, 5120),
            "model.layers.0.mlp.gate_proj.weight": (32768, 5120),
        },
        Kind.TEXT_ENCODER,
        "",
        "mistral_small_24b",
    ),
    (CONTROL, Kind.CONTROLNET, "sd1", ""),
    (below("control_model.", CONTROL), Kind.CONTROLNET, "sd1", ""),
    (other(CONTROL, **LINEAR), Kind.CONTROLNET, "sd2", ""),
    ({**CONTROL_DIFFUSERS, "add_embedding.linear_1.weight": (1280, 2816)}, Kind.CONTROLNET, "sdxl", ""),
    (
        {**CONTROL_DIFFUSERS, "add_embedding.linear_1.weight": (1280, 2816), "task_embedding": (6, 320)},
        Kind.CONTROLNET,
        "sdxl",
        "union",
    ),
    (
        {"controlnet_x_embedder.weight": (3072, 64), "controlnet_blocks.0.weight": (3072, 3072)},
        Kind.CONTROLNET,
        "flux",
        "",
    ),
    ({"lora_controlnet": (), "input_blocks.0.0.weight": (320, 4, 3, 3)}, Kind.CONTROLNET, "", "control_lora"),
    ({"control_layers.0.adaLN_modulation.0.weight": (15360, 256)}, Kind.CONTROLNET, "z_image", ""),
    ({"conv_in.weight": (320, 192, 3, 3), "body.0.block1.weight": (320, 320, 3, 3)}, Kind.T2I_ADAPTER, "sd1", ""),
    ({"conv_in.weight": (320, 768, 3, 3), "body.0.block1.weight": (320, 320, 3, 3)}, Kind.T2I_ADAPTER, "sdxl", ""),
    ({"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)}, Kind.IP_ADAPTER, "sd1", ""),
    (
        {"image_proj.latents": (1, 16, 1280), "ip_adapter.1.to_k_ip.weight": (640, 2048)},
        Kind.IP_ADAPTER,
        "sdxl",
        "plus",
    ),
    (
        {"image_proj.proj.0.weight": (1024, 512), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        Kind.IP_ADAPTER,
        "sd1",
        "faceid",
    ),
    ({**SR, "body.0.rdb1.conv1.weight": (32, 64, 3, 3)}, Kind.UPSCALER, "", "esrgan"),
    ({"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}, Kind.UPSCALER, "", "esrgan"),
    ({**SR, "RRDB_trunk.0.RDB1.conv1.weight": (32, 64, 3, 3)}, Kind.UPSCALER, "", "esrgan"),
    ({f"body.{i}.weight": (64, 64, 3, 3) for i in range(3)}, Kind.UPSCALER, "", "compact"),
    ({**SR, "layers.0.residual_group.blocks.0.attn.qkv.weight": (540, 180)}, Kind.UPSCALER, "", "swinir"),
    (
        {**SR, "layers.0.residual_group.overlap_attn.relative_position_bias_table": (1521, 6)},
        Kind.UPSCALER,
        "",
        "hat",
    ),
    ({**SR, "layers.0.blocks.0.attn.attns.0.rpe_biases": (961, 2)}, Kind.UPSCALER, "", "dat"),
    (
        {"stylegan_decoder.style_mlp.1.weight": (512, 512), "conv_body_first.weight": (32, 3, 1, 1)},
        Kind.FACE_RESTORER,
        "",
        "gfpgan",
    ),
    (
        {"quantize.embedding.weight": (1024, 256), "idx_pred_layer.1.weight": (1024, 512)},
        Kind.FACE_RESTORER,
        "",
        "codeformer",
    ),
]


@pytest.mark.parametrize(("shapes", "kind", "family", "variant"), OTHERS)
def test_all_the_others(shapes: Shapes, kind: Kind, family: str, variant: str) -> None:
    info = found(shapes)
    assert (info.kind, info.family, info.variant) == (kind, family, variant)


def test_a_vae_of_sdxl_is_known_by_its_name_alone() -> None:
    assert found(VAE4, "sdxl_vae.safetensors").family == "sdxl"
    assert found(VAE4, "vae-ft-mse-840000-ema-pruned.safetensors").family == ""


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            {"patch.0.weight": (9, 9), "head.bias": (9,)},
            r"2 tensors, .* MiB, most of it F16: patch\.0\.weight, head\.bias",
        ),
        ({**FLUX, "distilled_guidance_layer.in_proj.bias": (9,)}, "Chroma"),
        ({"blocks.0.cross_attn.q.weight": (9, 9), "head.modulation": (1, 2, 9)}, "Wan"),
        ({**SDXL_UNET, f"{UNET}input_blocks.1.0.time_stack.in_layers.0.weight": (9,)}, "Stable Video"),
        (kohya("blocks.0.self_attn.q", 5120), "LoRA for a family"),
        ({}, "0 tensors"),
    ],
)
def test_an_unknown_file_is_listed_with_what_was_seen(shapes: Shapes, words: str) -> None:
    info = found(shapes)
    assert info.kind == Kind.UNKNOWN
    assert re.search(words, info.detail)
