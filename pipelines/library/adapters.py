"""The table of LoRAs and their relatives, and of embeddings: for which family were they made?"""

from collections.abc import Callable
from typing import NamedTuple

from pipelines.library.look import Look, Test, both, either, has, like, part, under

METHODS: tuple[tuple[str, Test], ...] = (
    ("loha", part(".hada_w1_a", ".hada_w1_b")),
    ("lokr", part(".lokr_w1", ".lokr_w2")),
    ("ia3", part(".on_input\n")),
    ("oft", part(".oft_blocks", ".oft_diag", ".oft_R.")),
    ("dora", part(".dora_scale", ".lora_magnitude_vector")),
    ("glora", part(".a1.weight\n")),
    ("", part(".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", "_lora.down.", ".lora.up.")),
    ("", part(".lora_linear_layer.", ".lora_A\n", ".lora_down\n")),
    ("full", part(".diff\n", ".diff_b\n")),
)
"""How the change of the weights is written down; the first that fits is the variant. LoRA itself is the empty one."""


class Width(NamedTuple):
    """How wide a layer's input is, by each method's names: from the tensor with this ending."""

    ending: str
    of: Callable[[Look, str], int]


def _last(look: Look, name: str) -> int:
    shape = look.shape(name)
    return shape[1] if len(shape) > 1 else 0


def _kron(look: Look, name: str) -> int:
    """LoKr: the change is a Kronecker product of two matrices, either of which may be a product itself."""
    base = name.rpartition(".")[0]
    left = look.shape(f"{base}.lokr_w1") or look.shape(f"{base}.lokr_w1_b")
    right = look.shape(f"{base}.lokr_w2") or look.shape(f"{base}.lokr_w2_b")
    return left[1] * right[1] if len(left) > 1 and len(right) > 1 else 0


INPUTS = (
    Width(r"(?:lora_down|lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down)(?:\.weight)?$", _last),
    Width(r"hada_w1_b$", _last),
    Width(r"lokr_w[12](?:_a)?$", _kron),
    Width(r"diff$", _last),
)


def input_width(look: Look, layer: str) -> int:
    """Of the first layer whose name ends like this; 0 if there is none."""
    for width in INPUTS:
        name, _ = look.first(rf"{layer}[._](?:processor\.)?{width.ending}")
        if name:
            return width.of(look, name)
    return 0


def wide(layer: str, *sizes: int) -> Test:
    return lambda look: input_width(look, layer) in sizes


def _nine_fold(look: Look) -> bool:
    """FLUX.2's single blocks make 9 times their width at once (gated MLP of 3), those of Flux.1 7 times."""
    if "single_blocks" not in look.text:
        return False
    down, shape = look.first(r"single_blocks[._]\d+[._]linear1\.lora_(down|A)\.weight$")
    up = look.shape(down.replace("lora_down", "lora_up").replace("lora_A", "lora_B"))
    return len(shape) > 1 and len(up) > 1 and up[0] >= 8 * shape[1]


CROSS = r"attn2[._](?:processor[._])?to_k(?:_lora)?"
JOINT = part("add_k_proj", "to_add_out", "norm1_context", "ff_context")
SD_LINEAR = like(r"proj_in\.(lora_down|lora_A)\.weight$")


def _matrix(look: Look) -> bool:
    return SD_LINEAR(look) and len(look.first(r"proj_in\.(lora_down|lora_A)\.weight$")[1]) == 2


FAMILIES: tuple[tuple[str, Test], ...] = (
    ("flux2", either(part("to_qkv_mlp_proj", "stream_modulation"), _nine_fold)),
    ("flux", part("single_blocks", "single_transformer_blocks", "double_blocks")),
    ("z_image", part("noise_refiner", "context_refiner")),
    ("z_image", part(".attention.to_q.", "_attention_to_q.", ".attention.qkv.", "_attention_qkv.")),
    ("z_image", part(".feed_forward.w1.", "_feed_forward_w1.")),
    ("qwen_image", part("img_mod", "img_mlp", "txt_mlp", "txt_mod")),
    ("qwen_image", both(JOINT, like(r"transformer_blocks[._](3[89]|[45]\d)[._]"))),
    ("sd3", part("joint_blocks")),
    ("sd3", both(JOINT, either(wide("attn[._]to_q", 1536, 2432), part("ff_context", "norm1_context")))),
    ("flux", both(JOINT, like(r"transformer_blocks[._](\d|1[0-8])[._]attn"))),
    ("sdxl", either(part("lora_te2_", "text_encoder_2."), wide(CROSS, 2048, 1280))),
    ("sdxl", like(r"attentions[._]\d+[._]transformer_blocks[._][1-9]")),
    ("sdxl", like(r"put_blocks[._]\d+[._]1[._]transformer_blocks[._][1-9]")),
    ("sdxl", part("\nlora_unet_input_blocks_", "\nlora_unet_output_blocks_", "\nlora_te1_")),
    ("sd2", wide(CROSS, 1024)),
    ("sd1", wide(CROSS, 768)),
    ("sd2", like(r"encoder[._]layers[._](1[2-9]|2\d)[._]")),
    ("sd2", wide(r"layers[._]\d+[._]self_attn[._]q_proj", 1024)),
    ("sd2", _matrix),
    ("sd1", part("attn2", "attn1", "lora_unet_down_blocks", "lora_unet_mid_block", "\nunet.")),
    ("sd1", either(under("lora_te_", "text_encoder."), part("self_attn_q_proj", "self_attn.q_proj"))),
)
"""The first that fits. Widths only where names say nothing. Patterns begin with plain letters: so searching is fast."""


def find_lora(look: Look) -> tuple[str, str] | None:
    """(family, variant) of a LoRA, LoHa, LoKr, ...; the family is empty where it is none of ours."""
    variant = next((name for name, test in METHODS if test(look)), None)
    if variant is None:
        return None
    return next((family for family, test in FAMILIES if test(look)), ""), variant


MOST_VECTORS = 512
WIDTHS = {768: "sd1", 1024: "sd2", 1280: "sdxl", 2048: "sdxl"}


def find_embedding(look: Look) -> str | None:
    """The family of a textual inversion: A1111's, diffusers' or kohya's layout."""
    if has("clip_l", "clip_g")(look):
        return "sdxl"
    name = _embedding_name(look)
    shape = look.shape(name)
    if not name or len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] > MOST_VECTORS):
        return None
    return WIDTHS.get(shape[-1], "sd1")


def _embedding_name(look: Look) -> str:
    for name in look.tensors:
        if name.startswith("string_to_param.") or name == "emb_params":
            return name
    (name, *others) = look.tensors or ("",)
    alone = not others and not name.endswith((".weight", ".bias"))
    return name if alone and look.shape(name)[-1:] and look.shape(name)[-1] in WIDTHS else ""
