"""From files to networks: sizes out of shapes, nothing read twice, and no weight made up."""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.errors import BadModel
from pipelines.families.sd1 import SCALE, SD1
from pipelines.families.sdxl import SDXL
from pipelines.loading.arena import cast
from pipelines.loading.checkpoint import Opened, content, draft, drafts, dtype_for, emptied, fill, load_parts
from pipelines.loading.manager import OneDtype
from pipelines.loading.parts import Part, Recipe
from pipelines.loading.recipes.clip import clip
from pipelines.loading.recipes.ldm import UNET, unet_config, vae
from pipelines.loading.weights import Pages, open_weights
from pipelines.types import ModelInfo
from tests.checkpoints import FULL, SSD, TINY, save, save_checkpoint, shapes_of, unet_shapes, vae_shapes
from tests.tiny import info

CPU = torch.device("cpu")
FP32, FP16 = (OneDtype(dtype, dtype, dtype) for dtype in (torch.float32, torch.float16))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("loading") / "sd1.safetensors")


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def weights(part: Part) -> Iterator[Tensor]:
    yield from part.module.state_dict().values()


@pytest.mark.parametrize("family", FULL)
def test_full_networks_are_known_by_their_shapes(family: str) -> None:
    """Every name and every shape of the module that is built, and the sizes that shapes alone cannot tell."""
    unet = FULL[family].unet
    tensors = on_meta(unet_shapes(unet))
    config = unet_config(tensors)
    assert config["block_out_channels"] == unet.channels
    assert config["cross_attention_dim"] == unet.context
    assert config["attention_head_dim"] == (tuple(c // 64 for c in unet.channels) if unet.linear else 8)
    assert config.get("projection_class_embeddings_input_dim", 0) == unet.sized
    with torch.device("meta"):
        module = UNET.build(config)
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    assert {name: tensor.shape for name, tensor in UNET.convert(tensors, config).items()} == wanted


def test_a_pruned_relative_of_sdxl() -> None:
    tensors = on_meta(unet_shapes(SSD))
    config = unet_config(tensors)
    assert config["reverse_transformer_layers_per_block"] == ((4, 4, 10), (2, 1, 1), 1)
    assert config["mid_block_type"] == "UNetMidBlock2D"
    with torch.device("meta"):
        module = UNET.build(config)
    assert module.state_dict().keys() == UNET.convert(tensors, config).keys()


def test_vaes_of_other_families() -> None:
    """16 channels and no layer between, as in SD 3 and Flux."""
    tensors = on_meta(vae_shapes((32, 32, 64, 64), latent=16, quantised=False))
    recipe = vae(1.5305, 0.0609)
    config = recipe.config(tensors)
    with torch.device("meta"):
        module: Any = recipe.build(config)
    assert module.state_dict().keys() == recipe.convert(tensors, config).keys()
    assert (module.config.latent_channels, module.config.scaling_factor) == (16, 1.5305)
    assert module.config.shift_factor == 0.0609


def test_text_encoders_that_are_projected_without_a_projection() -> None:
    """SD 3's files leave out one that changes nothing."""
    recipe = clip(("",), projected=True)
    names = {f"text_model.{name}": tensor for name, tensor in on_meta_clip().items()}
    assert torch.equal(recipe.convert(names, {})["text_projection.weight"], torch.eye(32))


def on_meta_clip() -> dict[str, Tensor]:
    shapes = shapes_of(TINY["sd1"])
    prefix = "cond_stage_model.transformer.text_model."
    return on_meta({name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)})


def test_loads_are_cast_once_into_memory_of_their_own(sd1: Path) -> None:
    for part in load_parts(SD1.RECIPES, info(sd1), CPU, FP32).values():
        assert part.memory is not None
        start, stop = part.memory.data_ptr(), part.memory.data_ptr() + len(part.memory)
        assert all(tensor.dtype == torch.float32 for tensor in weights(part))
        assert all(start <= tensor.data_ptr() < stop for tensor in weights(part))
        assert all(tensor.data_ptr() % 64 == 0 for tensor in weights(part))
        assert part.size_bytes <= len(part.memory)
        assert not part.module.training
        assert not any(weight.requires_grad for weight in part.module.parameters())


def test_weights_of_the_right_type_stay_in_the_file(sd1: Path) -> None:
    for part in load_parts(SD1.RECIPES, info(sd1), CPU, FP16).values():
        lying = [tensor for tensor in weights(part) if tensor.data_ptr() % 64 == 0]
        assert part.memory is None or len(part.memory) < 2000, "only what lies at odd places is copied"
        assert len(lying) == len(list(weights(part)))
        assert part.dtype == torch.float16
        assert {tensor.dtype for tensor in weights(part)} == {torch.float16}


def test_weights_at_odd_places_are_copied(sd1: Path, tmp_path: Path) -> None:
    """By one byte more in the header all weights move; pictures shall not."""
    from safetensors.torch import load_file, save_file

    save_file(load_file(sd1), tmp_path / "odd.safetensors", {"note": "x"})
    for part in load_parts(SD1.RECIPES, info(tmp_path / "odd.safetensors"), CPU, FP16).values():
        assert all(tensor.data_ptr() % 64 == 0 for tensor in weights(part))


def test_a_card_gets_weights_as_they_are_in_the_file(sd1: Path) -> None:
    """So half the bytes cross the bus, and no copy is made here."""
    for part in load_parts(SD1.RECIPES, info(sd1), torch.device("cuda:0"), FP32).values():
        assert part.memory is None
        assert part.dtype == torch.float32
        assert {(tensor.dtype, tensor.device) for tensor in weights(part)} == {(torch.float16, CPU)}


def test_each_kind_of_network_has_its_type() -> None:
    dtypes = OneDtype(text_encoder=torch.float16, unet=torch.bfloat16, vae=torch.float32)
    asked = ("unet", "transformer", "vae", "text_encoder", "text_encoder_3")
    assert [dtype_for(part, dtypes) for part in asked] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
        torch.float16,
        torch.float16,
    ]


def test_weights_in_eight_bits_are_widened(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "eight.safetensors", dtype=torch.float8_e4m3fn)
    part = load_parts(SD1.RECIPES, info(path), CPU, FP32)["unet"]
    found = open_weights(path)["model.diffusion_model.input_blocks.0.0.weight"].float()
    assert torch.equal(part.module.state_dict()["conv_in.weight"], found)


def test_other_things_in_a_file_are_left_alone(tmp_path: Path) -> None:
    shapes = shapes_of(TINY["sd1"])
    extra = {"model_ema.decay": (), "model_ema.diffusion_modeltime_embed0bias": (4,), "betas": (1000,), "v_pred": ()}
    path = save(tmp_path / "more.safetensors", {**shapes, **extra, "cond_stage_model.logit_scale": ()})
    assert load_parts(SD1.RECIPES, info(path), CPU, FP32).keys() == SD1.RECIPES.keys()


def test_old_text_encoders_lack_a_prefix(tmp_path: Path) -> None:
    shapes = {name.replace(".text_model.", "."): shape for name, shape in shapes_of(TINY["sd1"]).items()}
    path = save(tmp_path / "old.safetensors", shapes)
    assert load_parts(SD1.RECIPES, info(path), CPU, FP32).keys() == SD1.RECIPES.keys()


def test_old_names_in_folders_of_vaes(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(tiny / "vae" / "diffusion_pytorch_model.safetensors")
    old = dict(tensors)
    for name in tensors:
        for now, before in new.items():
            if f".attentions.0.{now}." in name:
                old[name.replace(now, before)] = old.pop(name)
    assert old.keys() != tensors.keys()
    folder = tmp_path / "model" / "vae"
    folder.mkdir(parents=True)
    save_file(old, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text((tiny / "vae" / "config.json").read_text())
    part = load_parts({"vae": vae(SCALE)}, info(folder.parent), CPU, FP32)["vae"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in part.module.state_dict().items())


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_files_of_a_vae_alone(tmp_path: Path, sd1: Path, layout: str) -> None:
    from safetensors.torch import save_file

    whole = load_parts(SD1.RECIPES, info(sd1), CPU, FP16)["vae"]
    prefix = "first_stage_model."
    found = {n.removeprefix(prefix): t.clone() for n, t in open_weights(sd1).items() if n.startswith(prefix)}
    if layout == "diffusers":
        found = {name: tensor.clone() for name, tensor in whole.module.state_dict().items()}
    save_file(found, tmp_path / "vae.safetensors")
    companion = info(tmp_path / "vae.safetensors")
    alone = load_parts({"vae": vae(SCALE)}, info(sd1, companions={"vae": companion}), CPU, FP16)["vae"]
    assert alone.key == whole.key


def test_content_is_known_again_in_any_file(sd1: Path, tmp_path: Path) -> None:
    """The same text encoder and VAE in another file have the same key, others do not."""
    other = tmp_path / "renamed.safetensors"
    other.write_bytes(sd1.read_bytes())
    first, second = (load_parts(SD1.RECIPES, info(path), CPU, FP16) for path in (sd1, other))
    assert first["vae"].key == second["vae"].key
    assert first["text_encoder"].key == second["text_encoder"].key
    third = load_parts(SD1.RECIPES, info(save_checkpoint(tmp_path / "b.safetensors", seed=1)), CPU, FP16)
    fourth = load_parts(SD1.RECIPES, info(sd1), CPU, FP32)
    assert first["vae"].key not in (third["vae"].key, fourth["vae"].key)


def test_a_load_reads_nothing_before_all_is_checked(sd1: Path) -> None:
    found = drafts(SD1.RECIPES, Opened(info(sd1)), CPU, FP32)
    assert all(tensor.is_meta for part in found for tensor in part.module.parameters())


def test_memory_is_filled_again(sd1: Path, tmp_path: Path) -> None:
    """The next network of the same size lies where the last one lay, and the last one has no weights any more."""
    other = info(save_checkpoint(tmp_path / "b.safetensors", seed=1))
    old = load_parts(SD1.RECIPES, info(sd1), CPU, FP32)["unet"]
    place = old.module.state_dict()["conv_in.weight"].data_ptr()
    opened = Opened(other)
    part = draft(UNET, opened.source("unet", UNET), torch.float32, mapped=False)
    new = fill(part, emptied(old), "key", opened.pages(), lambda _: None)
    fresh = load_parts({"unet": UNET}, other, CPU, FP32)["unet"]
    assert new.module.state_dict()["conv_in.weight"].data_ptr() == place
    assert all(torch.equal(t, fresh.module.state_dict()[name]) for name, t in new.module.state_dict().items())
    assert all(weight.is_meta for weight in old.module.parameters())
    assert old.memory is None


def test_memory_is_given_back(sd1: Path) -> None:
    import weakref

    part = load_parts({"unet": UNET}, info(sd1), CPU, FP32)["unet"]
    memory = part.memory
    assert memory is not None
    seen = weakref.ref(memory)
    del part, memory
    gc.collect()
    assert seen() is None


def spoilt(tmp_path: Path, **changes: tuple[int, ...] | None) -> Path:
    shapes = dict(shapes_of(TINY["sd1"]))
    for name, shape in changes.items():
        if shape is None:
            del shapes[name]
        else:
            shapes[name] = shape
    return save(tmp_path / "spoilt.safetensors", shapes)


GAPS: dict[str, tuple[str, tuple[int, ...] | None, str]] = {
    "a gap in the U-Net": ("model.diffusion_model.output_blocks.3.0.in_layers.2.bias", None, "U-Net"),
    "no entrance to the U-Net": ("model.diffusion_model.input_blocks.0.0.weight", None, "input_blocks.0.0.weight"),
    "a U-Net of another size": ("model.diffusion_model.out.0.weight", (7,), "U-Net"),
    "a gap in the VAE": ("first_stage_model.decoder.conv_out.bias", None, "VAE"),
    "no entrance to the VAE": ("first_stage_model.encoder.conv_in.weight", None, "encoder.conv_in.weight"),
    "a gap in the text encoder": (
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.bias",
        None,
        "text encoder",
    ),
    "no words": ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", None, "text encoder"),
}


@pytest.mark.parametrize("fault", GAPS)
def test_gaps_are_told_with_the_network_and_a_name(tmp_path: Path, fault: str) -> None:
    name, shape, words = GAPS[fault]
    path = spoilt(tmp_path, **{name: shape})
    with pytest.raises(BadModel, match=words) as raised:
        load_parts(SD1.RECIPES, info(path), CPU, FP32)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("prefix", "part"), [("first_stage_model.", "VAE"), ("cond_stage_model.", "text encoder")])
def test_what_a_file_lacks_is_named_with_its_place(tmp_path: Path, prefix: str, part: str) -> None:
    shapes = {name: shape for name, shape in shapes_of(TINY["sd1"]).items() if not name.startswith(prefix)}
    path = save(tmp_path / "half.safetensors", shapes)
    with pytest.raises(BadModel, match=rf"half\.safetensors lacks its {part}.* Put a file with one into models/"):
        load_parts(SD1.RECIPES, info(path), CPU, FP32)


def test_another_family_is_no_match(sd1: Path) -> None:
    with pytest.raises(BadModel, match="lacks its text encoder"):
        load_parts(SDXL.RECIPES, info(sd1), CPU, FP32)


def test_what_tick_raises_ends_a_load(sd1: Path) -> None:
    seen: list[int] = []

    def stop(size_bytes: int) -> None:
        seen.append(size_bytes)
        if len(seen) > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_parts(SD1.RECIPES, info(sd1), CPU, FP32, stop)


def test_hashes_do_not_depend_on_the_order(sd1: Path) -> None:
    source = Opened(info(sd1)).source("vae", vae(SCALE))
    part = draft(vae(SCALE), source, torch.float32, mapped=False)
    turned = replace(part, state=dict(reversed(list(part.state.items()))))
    assert content(part, lambda _: None) == content(turned, lambda _: None)


def test_settings_that_are_no_settings(tiny: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "unet" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(BadModel, match=r"unet/config\.json does not hold a JSON object"):
        load_parts(SD1.RECIPES, info(folder), CPU, FP32)


def test_recipes_without_settings_read_the_shapes_of_folders(tiny: Path) -> None:
    seen: list[int] = []

    def config(tensors: Any) -> dict[str, Any]:
        seen.append(len(tensors))
        settings: dict[str, Any] = json.loads((tiny / "vae" / "config.json").read_text())
        return {name: value for name, value in settings.items() if not name.startswith("_")}

    original = vae(SCALE)
    recipe = Recipe(original.prefixes, config, original.build, original.convert)
    assert load_parts({"vae": recipe}, info(tiny), CPU, FP32)["vae"].module is not None
    assert seen


def test_models_info_of_a_single_part(tmp_path: Path, sd1: Path) -> None:
    """A file whose listing says that a VAE is all of it."""
    from safetensors.torch import save_file

    prefix = "first_stage_model."
    found = {n.removeprefix(prefix): t.clone() for n, t in open_weights(sd1).items() if n.startswith(prefix)}
    save_file(found, tmp_path / "vae.safetensors")
    listed = ModelInfo(name="vae", family="", path=tmp_path / "vae.safetensors", size_bytes=0, parts={"vae": 1})
    assert load_parts({"vae": vae(SCALE)}, listed, CPU, FP16).keys() == {"vae"}
    assert Pages([]).let_go(torch.zeros(3)) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("there", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("here", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (700, 900), ()])
def test_casting_in_pieces_rounds_as_torch_does(there: torch.dtype, here: torch.dtype, shape: tuple[int, ...]) -> None:
    bits = torch.randint(-(2**15), 2**15, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    weights = bits.view(there) if there.itemsize == 2 else bits.float().to(there)
    for given in (weights, weights.mT) if shape else (weights,):
        wanted = torch.empty(given.shape, dtype=here).copy_(given)
        found = cast(given, into=torch.empty(given.shape, dtype=here))
        assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
        assert torch.equal(found.isnan(), wanted.isnan())
