"""LoRAs on whole models: the same as peft's, whatever the layout of the file, and gone without a trace afterwards."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipelines.adapters import reading
from pipelines.adapters import wardrobe as module
from pipelines.adapters.names import book_of, find
from pipelines.errors import BadModel, ModelNotFound
from pipelines.families.base import LoadedModel
from pipelines.families.sd1 import SD1
from pipelines.families.sdxl import SDXL
from pipelines.kit import SoloKit
from pipelines.loading.parts import Part
from pipelines.memory import leaves
from pipelines.memory.placement import apply
from pipelines.memory.planner import Level, Plan
from pipelines.prompt import LoraUse, parse
from pipelines.request import GenerationRequest, Hires
from pipelines.types import Kind, ModelInfo
from tests.checkpoints import TINY, save_checkpoint, shapes_of
from tests.drawing import draw
from tests.loras import KOHYA, Draw, Weights, kohya, low_rank, save
from tests.reference import pipeline
from tests.test_dit import ROWS, load
from tests.tiny_dit import flux

CPU = torch.device("cpu")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LAYERS = (
    *(*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv_shortcut", "time_emb_proj"),
    *("downsamplers.0.conv", "q_proj", "out_proj", "fc1"),
)
XL = {**KOHYA, "text_encoder": "lora_te1_"}
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Shelf(SoloKit):
    """A kit with a folder of LoRAs."""

    def __init__(self, model: LoadedModel, folder: Path) -> None:
        super().__init__(model)
        self._folder = folder

    def file(self, kind: Kind, name: str) -> ModelInfo:
        path = self._folder / f"{name}.safetensors"
        if not path.is_file():
            raise ModelNotFound(f"There is no {kind} named {name!r}.")
        return ModelInfo(name=path.name, kind=kind, family="", path=path, size_bytes=path.stat().st_size)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> SD1:
    return SD1.load(save_checkpoint(tmp_path_factory.mktemp("sd1") / "dream.safetensors"), CPU)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> SDXL:
    return SDXL.load(save_checkpoint(tmp_path_factory.mktemp("xl") / "dream.safetensors", "sdxl"), CPU)


@pytest.fixture
def kit(sd1: SD1, tmp_path: Path) -> Shelf:
    """SD 1 and two LoRAs, a and b."""
    for seed, name in enumerate("ab"):
        save(tmp_path / f"{name}.safetensors", kohya(networks(sd1), LAYERS, of_rank(4, 2.0), seed))
    return Shelf(sd1, tmp_path)


def networks(model: Any) -> dict[str, nn.Module]:
    return {name: part.module for name, part in model.parts.items() if name != "vae"}


def of_rank(rank: int, alpha: float) -> Callable[[nn.Module, Draw], Weights]:
    return lambda layer, draw: {**low_rank(layer, rank, draw), "alpha": torch.tensor(alpha)}


@torch.inference_mode()
def seen(kit: SoloKit, *uses: LoraUse) -> tuple[Tensor, Tensor]:
    """What the text encoders and the U-Net make of it."""
    model: Any = kit.model()
    with kit.wardrobe.dressed(model, uses, kit):
        cond = model.encode([parse("a cat"), parse("")])
        return cond.tokens, model.predict(X, 3.0, cond)


def equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...], atol: float = 0.0) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(one, other, strict=True))


# Names and layouts


def makers_weights(family: str) -> Mapping[str, Tensor]:
    """The network that draws, in its makers' layout; row k of a tensor is filled with k."""
    if family in TINY:
        prefix = "model.diffusion_model."
        shapes = {n.removeprefix(prefix): s for n, s in shapes_of(TINY[family]).items() if n.startswith(prefix)}
    else:
        shapes = {name: tuple(tensor.shape) for name, tensor in ROWS[family].weights["transformer"]().items()}
    return {
        name: torch.arange(float(shape[0])).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "sd3.5", "flux", "flux2", "z-image"])
def test_every_layer_is_found_under_its_makers_name(family: str) -> None:
    """And which rows of it are ours: as the conversion of a whole checkpoint has it."""
    recipes = {"sd1": SD1.RECIPES, "sdxl": SDXL.RECIPES}.get(family) or ROWS[family].family.parts
    name = "unet" if "unet" in recipes else "transformer"
    weights = makers_weights(family)
    prefixed = {recipes[name].prefixes[0] + key: tensor for key, tensor in weights.items()}
    part = load(name, recipes[name], prefixed)
    books = {name: book_of(part)}
    strange = []
    for key, tensor in weights.items():
        layer = key.removesuffix(".weight").removesuffix(".scale")
        for spelled in (f"diffusion_model.{layer}", f"lora_unet_{layer.replace('.', '_')}") if layer != key else ():
            pieces = find(spelled, books)
            strange += [spelled] if not pieces else []
            for piece in pieces:
                ours = part.module.get_submodule(piece.layer).get_parameter("weight")
                assert torch.equal(piece.of(tensor).reshape(ours.shape), ours), (spelled, piece)
    assert [layer for layer in strange if "norm_final" not in layer] == []


def test_flux_layers_by_trainers_names() -> None:
    """As diffusers' own conversions of LoRAs have it, for those who train on the makers' code, and for XLabs."""
    from diffusers.loaders import lora_conversion_utils as theirs

    width, draw = 3072, Draw()
    recipe = ROWS["flux"].family.parts["transformer"]
    config = recipe.config(flux(width=width, columns=1))
    with torch.device("meta"):
        network = recipe.build(config)
    books = {"transformer": book_of(Part("transformer", network, torch.float32, "flux", 0))}

    def pair(layer: str, names: tuple[str, str], rows: int, columns: int) -> Weights:
        return {f"{layer}{names[0]}": draw(1, columns), f"{layer}{names[1]}": draw(rows, 1)}

    kohya_names, xlabs_names = (".lora_down.weight", ".lora_up.weight"), (".down.weight", ".up.weight")
    trained = {
        **pair("lora_unet_double_blocks_1_img_attn_qkv", kohya_names, 3 * width, width),
        **pair("lora_unet_double_blocks_0_txt_mlp_2", kohya_names, width, 4 * width),
        **pair("lora_unet_single_blocks_1_linear1", kohya_names, 7 * width, width),
        **pair("lora_unet_final_layer_adaLN_modulation_1", kohya_names, 2 * width, width),
    }
    xlabs = {
        **pair("double_blocks.1.processor.qkv_lora2", xlabs_names, 3 * width, width),
        **pair("single_blocks.0.processor.proj_lora", xlabs_names, width, 5 * width),
    }
    for file, convert in (
        (trained, theirs._convert_kohya_flux_lora_to_diffusers),
        (xlabs, theirs._convert_xlabs_flux_lora_to_diffusers),
    ):
        ours: Weights = {}
        for name, up in file.items():
            if name.endswith((kohya_names[1], xlabs_names[1])):
                layer = name.removesuffix(kohya_names[1]).removesuffix(xlabs_names[1])
                for piece in find(layer, books):
                    ours[piece.layer] = piece.of(up)
        expected = {
            name.removeprefix("transformer.").removesuffix(".lora_B.weight"): tensor
            for name, tensor in convert(dict(file)).items()
            if name.endswith(".lora_B.weight")
        }
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_layouts_give_the_same_picture(kit: Shelf, sd1: SD1, tmp_path: Path) -> None:
    """kohya's; peft's and diffusers', with alphas in the header; diffusers' of 2023, without them."""
    one = kohya(networks(sd1), ATTENTION, of_rank(4, 4.0), 0)
    plain = {name: module for name, module in sd1.unet.named_modules() if name.endswith(ATTENTION)}
    peft, old = Weights(), Weights()
    for name in plain:
        flat = f"lora_unet_{name.replace('.', '_')}"
        down, up = one[f"{flat}.lora_down.weight"], one[f"{flat}.lora_up.weight"]
        peft |= {f"unet.{name}.lora_A.default.weight": down, f"unet.{name}.lora_B.default.weight": up * 2}
        layer, _, last = name.removesuffix(".0").rpartition(".")
        processor = f"unet.{layer}.processor.{last}_lora"
        old |= {f"{processor}.down.weight": down, f"{processor}.up.weight": up}
    save(tmp_path / "kohya.safetensors", one)
    save(tmp_path / "peft.safetensors", peft, {"lora_adapter_metadata": {"unet.lora_alpha": 2, "unet.r": 4}})
    save(tmp_path / "old.safetensors", old)
    expected = seen(kit, LoraUse("kohya", 1, 1))
    assert equal(seen(kit, LoraUse("peft", 1, 1)), expected, atol=1e-5)
    assert equal(seen(kit, LoraUse("old", 1, 1)), expected)
    assert kit.notes == []


# Whole models


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_same_as_peft(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model: Any = request.getfixturevalue(family)
    checkpoint = save_checkpoint(tmp_path / "dream.safetensors", family)
    prefixes = KOHYA if family == "sd1" else XL
    weights = kohya(networks(model), LAYERS, of_rank(4, 2.0), prefixes=prefixes)
    save(tmp_path / "style.safetensors", weights)
    pipe = pipeline(checkpoint, tmp_path / "configs", family, torch_dtype=torch.float32)
    pipe.load_lora_weights(dict(weights))
    kit = Shelf(model, tmp_path)
    with torch.inference_mode():
        asked: dict[str, Any] = {"device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        tokens, away = pipe.encode_prompt("a cat", negative_prompt="", **asked)[:2]
        with kit.wardrobe.dressed(model, [LoraUse("style", 1, 1)], kit):
            cond = model.encode([parse("a cat"), parse("")])
            told = model.told(X, cond)
            ours = model.unet(X, torch.tensor([5, 5]), **told)[0]
        theirs = pipe.unet(X, torch.tensor([5, 5]), **told)[0]
    assert torch.allclose(cond.tokens, torch.cat([tokens, away]), atol=1e-6)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert kit.notes == []


def test_nothing_is_left_behind(kit: Shelf, sd1: SD1) -> None:
    weights = {name: tensor.clone() for name, tensor in sd1.unet.state_dict().items()}
    before = seen(kit)
    assert not equal(seen(kit, LoraUse("a", 1, 1)), before, atol=0.01)
    assert equal(seen(kit), before)
    with pytest.raises(RuntimeError), kit.wardrobe.dressed(sd1, [LoraUse("a", 1, 1)], kit):
        raise RuntimeError
    assert equal(seen(kit), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in sd1.unet.state_dict().items())
    layers = [layer for network in networks(sd1).values() for layer in network.modules()]
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_weights(kit: Shelf) -> None:
    """Of text encoders and U-Net apart; 0 is nothing; several add up, in any order; one twice is its sum."""
    plain, full = seen(kit), seen(kit, LoraUse("a", 1, 1))
    assert equal(seen(kit, LoraUse("a", 0, 0)), plain)
    text, unet = seen(kit, LoraUse("a", 1, 0)), seen(kit, LoraUse("a", 0, 1))
    assert torch.equal(text[0], full[0])
    assert torch.equal(unet[0], plain[0])
    assert not torch.allclose(text[1], unet[1], atol=0.01)
    both = seen(kit, LoraUse("a", 0.5, 0.5), LoraUse("b", -1, 2))
    assert equal(seen(kit, LoraUse("b", -1, 2), LoraUse("a", 0.5, 0.5)), both, atol=1e-4)
    assert not equal(seen(kit, LoraUse("a", 0.5, 0.5)), both, atol=0.01)
    assert equal(seen(kit, LoraUse("a", 0.25, 0.75), LoraUse("a", 0.75, 0.25)), full, atol=1e-4)


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("storage", ["", "fp8"])
def test_wherever_the_weights_are(kit: Shelf, sd1: SD1, level: Level, storage: Any, monkeypatch: Any) -> None:
    """Streamed, offloaded, in 8 bits: the change is the same as on weights that stay where they are."""
    monkeypatch.setattr(leaves, "SMALL_BYTES", 256)
    use = LoraUse("a", 1, 1)
    parts = networks_of(sd1)
    for host in (True, False):
        plan = Plan(level=level, storage=storage, streamed=tuple(parts) if level == Level.STREAM else (), host=host)
        residency = apply(parts, plan, CPU)
        try:
            plain, dressed = seen(kit), seen(kit, use)
            again = seen(kit)
        finally:
            residency.undo()
        assert equal(plain, again)
        if not storage:
            assert equal(dressed, seen(kit, use), atol=1e-5)
        assert not equal(plain, dressed, atol=0.01)


def networks_of(model: SD1) -> dict[str, Part]:
    return {name: part for name, part in model.parts.items() if name != "vae"}


def test_checkpoints_that_share_a_text_encoder(kit: Shelf, sd1: SD1, tmp_path: Path) -> None:
    """What the one wears is not on the other."""
    other = SD1.load(save_checkpoint(tmp_path / "other.safetensors", seed=5), CPU)
    info = ModelInfo(name="other", family="sd1", path=tmp_path / "other.safetensors", size_bytes=0)
    sharing = SD1({**other.parts, "text_encoder": sd1.parts["text_encoder"]}, info, CPU)
    second = Shelf(sharing, tmp_path)
    second.wardrobe = kit.wardrobe
    plain = seen(second)
    first = seen(kit, LoraUse("a", 1, 1))
    assert equal(seen(second), plain)
    dressed = seen(second, LoraUse("a", 1, 1))
    assert torch.equal(dressed[0], first[0])
    assert not torch.allclose(dressed[1], first[1], atol=0.01)
    assert equal(seen(kit, LoraUse("a", 1, 1)), first)


def test_what_was_worn_before_costs_nothing(kit: Shelf, monkeypatch: Any) -> None:
    """Neither the file is read again, nor is anything cut or brought to where it computes; unless the file changes."""
    reads: list[Path] = []

    def read(path: Path) -> reading.AdapterFile:
        reads.append(path)
        return reading.read_adapter(path)

    monkeypatch.setattr(module, "read_adapter", read)
    first = seen(kit, LoraUse("a", 1, 1))
    [dress] = kit.wardrobe._sets.values()
    ready = [patch.ready for patch in dress.patches]
    assert equal(seen(kit, LoraUse("a", 1, 1)), first)
    assert [patch.ready for patch in dress.patches] == ready
    seen(kit, LoraUse("a", 1, 0.5))
    assert len(reads) == 1
    path = reads[0]
    save(path, {"lora_unet_mid_block_resnets_0_conv1.diff_b": torch.ones(64)})
    assert not equal(seen(kit, LoraUse("a", 1, 1)), first)
    assert len(reads) == 2


def test_the_wardrobe_has_a_budget(kit: Shelf) -> None:
    kit.wardrobe = module.Wardrobe(file_bytes=1, set_bytes=1)
    for name in "aba":
        seen(kit, LoraUse(name, 1, 1))
    assert len(kit.wardrobe._files) == len(kit.wardrobe._sets) == 1


def test_what_does_not_fit_is_said(kit: Shelf, sd1: SD1, sdxl: SDXL, tmp_path: Path) -> None:
    plain = seen(kit, LoraUse("a", 1, 1))
    weights = kohya(networks(sd1), LAYERS, of_rank(4, 2.0))
    save(tmp_path / "more.safetensors", {**weights, "lora_unet_extra.lora_up.weight": torch.ones(2, 2), "other": X})
    assert equal(seen(kit, LoraUse("more", 1, 1), LoraUse("gone", 1, 1)), plain)
    gone, more = kit.notes
    assert "'gone'" in gone
    assert "without it" in gone
    assert "2 of " in more
    xl = kohya({"unet": sdxl.unet}, ("attn2.to_k",), of_rank(4, 2.0))
    save(tmp_path / "xl.safetensors", xl)
    with pytest.raises(BadModel, match="does not fit this model"):
        seen(kit, LoraUse("xl", 1, 1))
    with kit.wardrobe.dressed(sd1, [LoraUse("xl", 1, 1)], kit, must_fit=False):
        assert "goes on without it" in kit.notes[-1]
    save(tmp_path / "none.safetensors", {"something": X})
    with pytest.raises(BadModel, match="holds no LoRA"):
        seen(kit, LoraUse("none", 1, 1))


def test_packed_weights(tmp_path: Path) -> None:
    """Layers of a GGUF or fp8 file: what is added does not ask how the weight is kept."""
    from pipelines.loading.quantised import FP8, install

    network = nn.ModuleDict({"layer": nn.Linear(16, 8)})
    plain = network["layer"].get_parameter("weight").detach().to(torch.float8_e4m3fn)
    packed = nn.ModuleDict({"layer": nn.Linear(16, 8)})
    packed["layer"].load_state_dict(network["layer"].state_dict())
    install(packed, {"layer": FP8}, {"layer": {"packed": (8, 16), "scale": ()}})
    packed["layer"]._parameters["packed"] = nn.Parameter(plain, requires_grad=False)
    packed["layer"]._buffers["scale"] = torch.tensor(1.0)
    network["layer"].get_parameter("weight").data.copy_(plain.float())
    draw = Draw()
    weights = low_rank(network["layer"], 2, draw) | {"dora_scale": draw(8, 1)}
    save(tmp_path / "a.safetensors", {f"transformer.layer.{name}": tensor for name, tensor in weights.items()})

    class Model:
        device, parts = CPU, {"transformer": Part("transformer", network, torch.float32, "plain", 0)}

    model: Any = Model()
    x, outputs = draw(3, 16), []
    for each in (network, packed):
        model.parts = {"transformer": replace(model.parts["transformer"], module=each, key=str(id(each)))}
        kit = Shelf(model, tmp_path)
        with kit.wardrobe.dressed(model, [LoraUse("a", 1, 1)], kit), torch.inference_mode():
            outputs.append(each["layer"](x))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6)
    assert not torch.allclose(outputs[0], network["layer"](x), atol=0.01)


# In a pass


def test_pictures(kit: Shelf) -> None:
    """In the prompt of a pass: each has its own set, and what was read with other text encoders is read again."""
    bare = GenerationRequest(prompt="a cat", width=64, height=64, steps=2, seed=3)
    worn = bare.model_copy(update={"prompt": "a cat <lora:a>"})
    first, plain = draw(kit, worn)[0].tobytes(), draw(kit, bare)[0].tobytes()
    assert first != plain
    assert draw(kit, worn)[0].tobytes() == first
    assert draw(kit, bare.model_copy(update={"prompt": "a cat <lora:a:0>"}))[0].tobytes() == plain
    assert draw(kit, bare.model_copy(update={"prompt": "a cat <lora:a:0:1>"}))[0].tobytes() not in (first, plain)
    twice = worn.model_copy(update={"hires": Hires(scale=1, denoising_strength=0.5)})
    other = twice.model_copy(update={"hires": Hires(scale=1, denoising_strength=0.5, prompt="a cat")})
    assert draw(kit, twice)[0].tobytes() != draw(kit, other)[0].tobytes()


def test_weights_by_blocks(kit: Shelf) -> None:
    """Of all blocks in full is the whole LoRA, of none is none; BASE is the text encoders'."""
    bare = GenerationRequest(width=64, height=64, steps=1, seed=3)
    drawn = {
        tag: draw(kit, bare.model_copy(update={"prompt": f"a cat {tag}"}))[0].tobytes()
        for tag in (
            *("<lora:a>", "<lora:a:0>", "<lora:a:1:0>", "<lora:a:1:lbw=ALL>", "<lora:a:1:lbw=NONE>", "<lora:a:lbw=M>"),
            *(f"<lora:a:1:lbw={','.join('1' * 26)}>", "<lora:a:1:lbw=1" + ",0" * 16 + ">", "<lora:a:1:lbw=MIDD>"),
        )
    }
    whole, none, text = (drawn[tag] for tag in ("<lora:a>", "<lora:a:0>", "<lora:a:1:0>"))
    assert drawn["<lora:a:1:lbw=ALL>"] == drawn[f"<lora:a:1:lbw={','.join('1' * 26)}>"] == whole
    assert drawn["<lora:a:1:lbw=NONE>"] == none
    assert drawn["<lora:a:1:lbw=1" + ",0" * 16 + ">"] == text
    assert drawn["<lora:a:1:lbw=MIDD>"] not in (whole, none, text)
    assert drawn["<lora:a:lbw=M>"] == whole
    [note] = set(kit.notes)
    assert "lbw=M says nothing" in note
    assert "17 or 26 numbers" in note


def test_a_batch_is_its_singles(kit: Shelf) -> None:
    task = GenerationRequest(prompt="a cat <lora:a>", width=64, height=64, steps=2, seed=3, batch_size=2)
    second = task.model_copy(update={"batch_size": 1, "seed": 4})
    import numpy as np

    both, alone = (np.asarray(picture[index], int) for picture, index in ((draw(kit, task), 1), (draw(kit, second), 0)))
    assert abs(both - alone).max() <= 1
