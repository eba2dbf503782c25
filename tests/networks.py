"""Small networks of every kind with random weights, and a call for each: what placement and attention must bear."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.loading.parts import Part

Call = Callable[[nn.Module], Tensor]


def unet() -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    network: nn.Module = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=4,
        attention_head_dim=4,
    )
    return network


def vae() -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    network: nn.Module = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return network


def clip() -> nn.Module:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    network: nn.Module = CLIPTextModel(
        CLIPTextConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=99)
    )
    return network


def t5() -> nn.Module:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    config = T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    network: nn.Module = T5EncoderModel(config)
    return network


def flux() -> nn.Module:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    network: nn.Module = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return network


def sd3() -> nn.Module:
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    network: nn.Module = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return network


def z_image() -> nn.Module:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel

    network: nn.Module = ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 12, 12],
        axes_lens=[64, 32, 32],
    )
    return network


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def call_unet(network: nn.Module) -> Tensor:
    out: Tensor = network(numbers(2, 4, 8, 8), torch.tensor([7, 7]), numbers(2, 5, 32))[0]
    return out


def call_vae(network: nn.Module) -> Tensor:
    out: Tensor = network.decode(numbers(1, 4, 8, 8), return_dict=False)[0]  # type: ignore[operator]
    return out


def call_text(network: nn.Module) -> Tensor:
    out: Tensor = network(torch.arange(14).reshape(2, 7))[0]
    return out


def call_flux(network: nn.Module) -> Tensor:
    ids: dict[str, Any] = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
    given = {"hidden_states": numbers(1, 16, 16), "encoder_hidden_states": numbers(1, 5, 32)}
    out: Tensor = network(**given, pooled_projections=numbers(1, 32), timestep=torch.ones(1), **ids)[0]
    return out


def call_sd3(network: nn.Module) -> Tensor:
    out: Tensor = network(numbers(1, 4, 8, 8), numbers(1, 5, 32), numbers(1, 32), torch.ones(1))[0]
    return out


def call_z_image(network: nn.Module) -> Tensor:
    out: Tensor = network([numbers(4, 1, 8, 8)], torch.ones(1) / 2, [numbers(5, 32)])[0][0]
    return out


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], Call]] = {
    "unet": ("unet", unet, call_unet),
    "vae": ("vae", vae, call_vae),
    "clip": ("text_encoder", clip, call_text),
    "t5": ("text_encoder_2", t5, call_text),
    "flux": ("transformer", flux, call_flux),
    "sd3": ("transformer", sd3, call_sd3),
    "z_image": ("transformer", z_image, call_z_image),
}
"""Kind -> (name of the part, how to build it, how to call it)."""


def part(kind: str, home: torch.dtype = torch.float32, dtype: torch.dtype = torch.float32) -> Part:
    name, build, _ = NETWORKS[kind]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    module = build().eval().requires_grad_(False).to(home)
    torch.set_rng_state(state)
    size = sum(weight.nbytes for weight in module.parameters())
    return Part(name=name, module=module, dtype=dtype, key=kind, size_bytes=size)


@torch.inference_mode()
def run(found: Part, kind: str) -> Tensor:
    return NETWORKS[kind][2](found.module)
