"""The table of signatures: what a network is, by the names and shapes of its tensors. The first row that fits counts.

Names and shapes decide, not widths, wherever they can: pruned, narrow and quantised relatives are known as well.
"""

from typing import NamedTuple

from pipelines.library.look import Test, at_least, both, dimensions, either, has, lacks, like, part, side
from pipelines.types import Kind


class Signature(NamedTuple):
    """A row: a network of this kind passes all of the tests."""

    kind: Kind
    family: str
    variant: str
    tests: tuple[Test, ...]


def _draws(family: str, variant: str, *tests: Test) -> Signature:
    return Signature(Kind.CHECKPOINT, family, variant, tests)


UNET = either(has("input_blocks.0.0.weight"), both(has("conv_in.weight"), part("\ndown_blocks.")))
UNET_IN = r"^(input_blocks\.0\.0|conv_in)\.weight$"
CROSS = r"attn2\.to_k\.weight$"
POOLED = either(has("label_emb.0.0.weight"), has("add_embedding.linear_1.weight"))
XL = both(UNET, POOLED)
"""SDXL tells its U-Net the picture's size; SD 1 and 2 do not."""

LINEAR = either(dimensions(r"proj_in\.weight$", 2), side(CROSS, 1, 1024))
"""Transformers of SD 2 are entered through a matrix, those of SD 1 through a convolution of 1x1."""

REFINER = either(has("input_blocks.9.0.op.weight"), has("down_blocks.3.resnets.0.conv1.weight"), side(CROSS, 1, 1280))
MMDIT = either(
    has("joint_blocks.0.context_block.adaLN_modulation.1.weight"),
    both(has("pos_embed.proj.weight", "context_embedder.weight"), part("\ntransformer_blocks.0.")),
)
FLUX = either(
    both(has("img_in.weight"), part("\ndouble_blocks.0.img_attn."), part("\nsingle_blocks.0.linear1.")),
    both(has("x_embedder.weight", "context_embedder.weight"), part("\nsingle_transformer_blocks.0.")),
)
FLUX_IN = r"^(img_in|x_embedder)\.weight$"
GUIDED = either(part("\nguidance_in."), part("guidance_embedder."))
FLUX2 = either(part("\ndouble_stream_modulation_img."), part("single_stream_modulation.lin"))
FLUX2_TEXT = r"^(txt_in|context_embedder)\.weight$"
Z_IMAGE = both(part("\nlayers.0.adaLN_modulation.0."), either(part("\ncap_embedder."), part("\nnoise_refiner.")))
QWEN = both(has("txt_norm.weight"), part("\ntransformer_blocks.0.img_mod.1."))

DENOISERS = (
    _draws("sdxl", "inpaint", XL, side(UNET_IN, 1, 9)),
    _draws("sdxl", "pix2pix", XL, side(UNET_IN, 1, 8)),
    _draws("sdxl", "refiner", XL, REFINER),
    _draws("sdxl", "", XL),
    _draws("sd2", "inpaint", UNET, LINEAR, side(UNET_IN, 1, 9)),
    _draws("sd2", "pix2pix", UNET, LINEAR, side(UNET_IN, 1, 8)),
    _draws("sd2", "depth", UNET, LINEAR, side(UNET_IN, 1, 5)),
    _draws("sd2", "", UNET, LINEAR),
    _draws("sd1", "inpaint", UNET, side(UNET_IN, 1, 9)),
    _draws("sd1", "pix2pix", UNET, side(UNET_IN, 1, 8)),
    _draws("sd1", "", UNET),
    _draws("sd3", "3.5-medium", MMDIT, either(part(".x_block.attn2."), part("transformer_blocks.0.attn2."))),
    _draws("sd3", "3.5-large", MMDIT, either(part(".attn.ln_q."), part(".attn.norm_q."))),
    _draws("sd3", "", MMDIT),
    _draws("flux2", "dev", FLUX2, GUIDED),
    _draws("flux2", "klein-9b", FLUX2, at_least(FLUX2_TEXT, 1, 12288)),
    _draws("flux2", "klein-4b", FLUX2),
    _draws("flux", "fill", FLUX, side(FLUX_IN, 1, 384)),
    _draws("flux", "control", FLUX, side(FLUX_IN, 1, 128)),
    _draws("flux", "dev", FLUX, GUIDED),
    _draws("flux", "schnell", FLUX),
    _draws("z_image", "", Z_IMAGE),
    _draws("qwen_image", "", QWEN),
)
"""What draws pictures; asked about the names without `model.diffusion_model.` and the like."""

CONTROL = either(part("input_hint_block.0."), part("controlnet_cond_embedding.conv_in."))
CONTROL_DIT = either(part("controlnet_blocks.0."), part("controlnet_x_embedder."))
BIG_FACE = either(part("stylegan_decoder"), part("\nfinal_linear."))
PLUS = part("image_proj.latents")
WIDE_IP = either(side(r"to_k_ip\.weight$", 1, 2048), has("ip_adapter.61.to_k_ip.weight"))
TEXT = r"(text_model\.)?encoder\.layers\.0\.mlp\.fc1\.weight$"
OPEN_CLIP = either(part("transformer.resblocks.0.attn.in_proj_weight"), part("transformer.resblocks.0.mlp.c_fc."))
OPEN_CLIP_WIDTH = r"transformer\.resblocks\.0\.mlp\.c_fc\.weight$"
T5 = either(part("encoder.block.0.layer.0.SelfAttention.q."), part("\nenc.blk.0.attn_q."))
LLM = either(part("layers.0.mlp.gate_proj."), part("\nblk.0.ffn_gate."))
LLM_WIDTH = r"(embed_tokens|token_embd)\.weight$"
QWEN3 = both(LLM, either(part("layers.0.self_attn.q_norm."), part("\nblk.0.attn_q_norm.")))
QWEN25 = both(LLM, either(part("layers.0.self_attn.q_proj.bias"), part("\nblk.0.attn_q.bias")))
VAE = both(part("decoder.conv_in."), either(part("decoder.mid.block_1."), part("decoder.mid_block.resnets.0.")))
LATENT = r"decoder\.conv_in\.weight$"
RRDB = either(part(".rdb1.conv1.weight"), part(".RDB1.conv1.weight"), part(".RDB1.conv1.0.weight"))
SR = part("conv_first.weight")
"""Upscalers begin with it, nearly all of them."""


def _row(kind: Kind, family: str, variant: str, *tests: Test) -> Signature:
    return Signature(kind, family, variant, tests)


OTHERS = (
    # ControlNets, before checkpoints: they hold half a U-Net
    _row(
        Kind.CONTROLNET, "z_image", "", part("\ncontrol_layers.0."), part("control_all_x_embedder", "adaLN_modulation")
    ),
    _row(Kind.CONTROLNET, "qwen_image", "", CONTROL_DIT, part("\ntxt_norm.", "img_mod.")),
    _row(Kind.CONTROLNET, "sd3", "", CONTROL_DIT, part("pos_embed_input.", "pos_embed.proj.", "joint_blocks.")),
    _row(Kind.CONTROLNET, "flux", "union", CONTROL_DIT, part("controlnet_mode_embedder.")),
    _row(Kind.CONTROLNET, "flux", "", CONTROL_DIT),
    _row(Kind.CONTROLNET, "", "control_lora", has("lora_controlnet")),
    _row(Kind.CONTROLNET, "sdxl", "union", CONTROL, part("task_embedding", "control_add_embedding.")),
    _row(Kind.CONTROLNET, "sdxl", "", CONTROL, part("label_emb.0.0.", "add_embedding.linear_1.")),
    _row(Kind.CONTROLNET, "sd2", "", CONTROL, LINEAR),
    _row(Kind.CONTROLNET, "sd1", "", CONTROL),
    # adapters
    _row(Kind.IP_ADAPTER, "flux", "", part("ip_adapter_double_stream_k_proj", "single_blocks.0.processor.ip_adapter")),
    _row(Kind.IP_ADAPTER, "sdxl", "plus", part("to_k_ip."), PLUS, WIDE_IP),
    _row(Kind.IP_ADAPTER, "sdxl", "faceid", part("to_k_ip."), part("image_proj.proj.0."), WIDE_IP),
    _row(Kind.IP_ADAPTER, "sdxl", "", part("to_k_ip."), WIDE_IP),
    _row(Kind.IP_ADAPTER, "sd1", "plus", part("to_k_ip."), PLUS),
    _row(Kind.IP_ADAPTER, "sd1", "faceid", part("to_k_ip."), part("image_proj.proj.0.")),
    _row(Kind.IP_ADAPTER, "sd1", "", part("to_k_ip.")),
    _row(Kind.T2I_ADAPTER, "sdxl", "", part("body.0."), part("conv_in."), side(r"conv_in\.weight$", 1, 768, 256)),
    _row(
        Kind.T2I_ADAPTER,
        "sd1",
        "",
        like(r"body\.\d+\.(block1|in_conv|resnets\.\d+\.block1)\.weight$"),
        part("conv_in."),
    ),
    # face restorers, before upscalers: GFPGAN holds one's names
    _row(Kind.FACE_RESTORER, "", "gfpgan", BIG_FACE, part("condition_scale", "conv_body_first.")),
    _row(Kind.FACE_RESTORER, "", "codeformer", part("quantize.embedding.weight"), part("idx_pred_layer.1.weight")),
    _row(
        Kind.FACE_RESTORER, "", "restoreformer", part("quantize.embedding."), part("decoder.up.0.", "encoder.down.0.")
    ),
    # upscalers
    _row(Kind.UPSCALER, "", "hat", SR, part("overlap_attn.relative_position_bias_table")),
    _row(Kind.UPSCALER, "", "dat", SR, like(r"layers\.\d+\.blocks\.\d+\.attn\.(attns\.|temperature|attn_mask)")),
    _row(Kind.UPSCALER, "", "swinir", SR, like(r"layers\.\d+\.residual_group\.blocks\.\d+\.attn\.")),
    _row(Kind.UPSCALER, "", "esrgan", RRDB),
    _row(Kind.UPSCALER, "", "span", part("block_1.c1_r.sk.weight")),
    _row(Kind.UPSCALER, "", "plksr", like(r"^feats\.\d+\.(lk|channe_mixer|channel_mixer)\.")),
    _row(Kind.UPSCALER, "", "omnisr", part("residual_layer.0.residual_layer.")),
    _row(Kind.UPSCALER, "", "compact", has("body.0.weight", "body.1.weight", "body.2.weight"), lacks("conv_in.weight")),
    _row(Kind.UPSCALER, "", "rcan", part("body.0.body.0.body.0."), part("\nhead.0.")),
    # VAEs
    _row(Kind.VAE, "qwen_image", "qwen", part("decoder.middle.0.residual.0.gamma")),
    _row(Kind.VAE, "qwen_image", "qwen", VAE, dimensions(LATENT, 5)),
    _row(Kind.VAE, "flux2", "32ch", VAE, either(side(LATENT, 1, 32), part("bn.running_mean"))),
    _row(Kind.VAE, "", "16ch", VAE, side(LATENT, 1, 16)),
    _row(Kind.VAE, "", "4ch", VAE, side(LATENT, 1, 4)),
    # text encoders
    _row(Kind.TEXT_ENCODER, "", "umt5xxl", T5, side(r"(shared|token_embd)\.weight$", 0, 256384)),
    _row(Kind.TEXT_ENCODER, "", "t5xxl", T5),
    _row(Kind.TEXT_ENCODER, "", "qwen3_8b", QWEN3, at_least(LLM_WIDTH, 1, 4096)),
    _row(Kind.TEXT_ENCODER, "", "qwen3_1.7b", QWEN3, side(LLM_WIDTH, 1, 2048)),
    _row(Kind.TEXT_ENCODER, "", "qwen3_0.6b", QWEN3, side(LLM_WIDTH, 1, 1024)),
    _row(Kind.TEXT_ENCODER, "", "qwen3_4b", QWEN3),
    _row(Kind.TEXT_ENCODER, "", "qwen2.5_vl_3b", QWEN25, side(LLM_WIDTH, 1, 2048)),
    _row(Kind.TEXT_ENCODER, "", "qwen2.5_vl_7b", QWEN25),
    _row(Kind.TEXT_ENCODER, "", "gemma2_2b", LLM, part("pre_feedforward_layernorm", "post_ffw_norm")),
    _row(Kind.TEXT_ENCODER, "", "llama3_8b", LLM, side(LLM_WIDTH, 0, 128256, 128320)),
    _row(Kind.TEXT_ENCODER, "", "mistral_small_24b", LLM),
    _row(Kind.TEXT_ENCODER, "", "clip_g", OPEN_CLIP, either(side(OPEN_CLIP_WIDTH, 1, 1280), part("resblocks.31."))),
    _row(Kind.TEXT_ENCODER, "", "clip_h", OPEN_CLIP, either(side(OPEN_CLIP_WIDTH, 1, 1024), part("resblocks.22."))),
    _row(Kind.TEXT_ENCODER, "", "clip_l", OPEN_CLIP),
    _row(Kind.TEXT_ENCODER, "", "clip_g", like(TEXT), part("token_embedding."), part("encoder.layers.31.")),
    _row(Kind.TEXT_ENCODER, "", "clip_g", like(TEXT), part("token_embedding."), side(TEXT, 1, 1280)),
    _row(Kind.TEXT_ENCODER, "", "clip_h", like(TEXT), part("token_embedding."), part("encoder.layers.22.")),
    _row(Kind.TEXT_ENCODER, "", "clip_h", like(TEXT), part("token_embedding."), side(TEXT, 1, 1024)),
    _row(Kind.TEXT_ENCODER, "", "clip_l", like(TEXT), part("token_embedding.")),
    _row(Kind.TEXT_ENCODER, "", "clip_l", part("\nv.blk.0."), part("\nt.blk.0.")),
)
"""Everything but checkpoints and adapters of weights; asked about the names as they stand in the file."""

FOREIGN = (
    ("Stable Video Diffusion", either(part(".time_stack."), part("temporal_transformer_blocks."))),
    ("AnimateDiff motion", part("motion_modules.")),
    ("Chroma", part("distilled_guidance_layer.")),
    ("Wan", both(part("head.modulation"), part("blocks.0.cross_attn."))),
    ("HunyuanVideo", part("txt_in.individual_token_refiner.")),
    ("LTX-Video", part("\npatchify_proj.", ".patchify_proj.")),
    ("AuraFlow", part("double_layers.0.attn.w1q.")),
    ("HiDream", part("double_stream_blocks.0.block.adaLN")),
    ("Lumina 2", both(part("cap_embedder.0."), part("layers.0.adaLN_modulation.1."))),
    ("Sana", part("blocks.0.cross_attn.q_linear.")),
    ("Flux 3", part("early_stream_modulations.")),
    ("Qwen-Image 2", part("txt_in.text_norm.")),
    ("Krea 2", part("txtfusion.projector.")),
    ("Stable Cascade", part("clip_txt_mapper.", "channelwise.0.")),
    ("Mochi", part("blocks.0.attn.qkv_x.")),
    ("Cosmos", part("net.x_embedder.proj.1.", "\nx_embedder.proj.1.")),
    ("SD x4 upscaler", both(part("input_blocks.0.0.weight"), side(r"input_blocks\.0\.0\.weight$", 1, 7))),
    ("TAESD preview decoder", both(has("1.weight", "3.conv.0.weight"), lacks("conv_first.weight"))),
    ("TAESD preview decoder", part("\ntaesd_decoder.", "decoder.layers.2.conv.0.")),
    ("CLIP vision", both(part("vision_model.encoder.layers.0."), lacks("text_model.final_layer_norm.weight"))),
    ("Flux Redux", part("redux_up.")),
    ("SAM segmentation", part("image_encoder.neck.")),
)
"""Known by sight, but of no use here: the name is told to the user."""
