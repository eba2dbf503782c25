"""ControlNets: the pictures of diffusers' own pipelines, A1111's modes, and nothing left behind."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.control.controlnet import controlnet
from pipelines.control.feature import unit_of
from pipelines.control.hints import hint_for
from pipelines.errors import PipelineError
from pipelines.families.base import Call
from pipelines.families.flow import from_patches, patches, places
from pipelines.families.sd1 import SD1
from pipelines.families.sdxl import SDXL
from pipelines.features import denoiser
from pipelines.loading.manager import ModelManager
from pipelines.loading.recipes.controlnet import CONTROLNET
from pipelines.prompt import parse
from pipelines.request import Control, ControlMode, GenerationRequest, Hires
from pipelines.session import Session
from pipelines.types import Assignment, Event, Kind, Picture, file_key
from tests.checkpoints import TINY, control_shapes, save, save_checkpoint
from tests.controls import FullKit, distance, half, info, loud, picture, save_controlnet, scene_of, seeded
from tests.drawing import draw
from tests.networks import numbers
from tests.reference import pipeline
from tests.test_dit import made
from tests.tiny import info as tiny_info

CPU = torch.device("cpu")
REQUEST = GenerationRequest(
    prompt="a cat", negative_prompt="rain", width=64, height=96, seed=3, steps=6, sampler="Euler", schedule="Karras"
)
PICTURES = {
    "one": picture(seed=1),
    "two": picture(seed=2),
    "half": half(),
    "red": PIL.Image.new("RGB", (64, 96), "red"),
}


@pytest.fixture(scope="module")
def nets(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    unet = SD1.load(tiny, CPU).unet
    for i, name in enumerate(("one", "two")):
        save_controlnet(folder / name, unet, i, conditioning_embedding_out_channels=(4, 8, 8, 16))
    return folder


@pytest.fixture(scope="module")
def kit(tiny: Path, nets: Path) -> FullKit:
    return FullKit(SD1.load(tiny, CPU), {name: info(nets / name) for name in ("one", "two")}, PICTURES)


def units(*controls: Control, **more: Any) -> GenerationRequest:
    return REQUEST.model_copy(update={"controls": controls, **more})


def theirs(tiny: Path, nets: Path, names: Sequence[str], **options: Any) -> PIL.Image.Image:
    from diffusers import ControlNetModel, EulerDiscreteScheduler, StableDiffusionControlNetPipeline

    networks = [ControlNetModel.from_pretrained(nets / name) for name in names]
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        tiny, controlnet=networks, safety_checker=None, dtype=torch.float32
    )
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, use_karras_sigmas=True, timestep_spacing="linspace"
    )
    pipe.set_progress_bar_config(disable=True)
    found: PIL.Image.Image = pipe(
        "a cat",
        image=[PICTURES[name] for name in names],
        negative_prompt="rain",
        width=64,
        height=96,
        num_inference_steps=6,
        guidance_scale=7.0,
        generator=torch.Generator().manual_seed(3),
        **options,
    ).images[0]
    return found


def test_pictures_are_those_of_diffusers(tiny: Path, nets: Path, kit: FullKit) -> None:
    plain = draw(kit, REQUEST)[0]
    one = draw(kit, units(Control(model="one", image="one", weight=0.8)))[0]
    assert distance(one, theirs(tiny, nets, ["one"], controlnet_conditioning_scale=[0.8])) <= 1
    assert distance(one, plain) > 8
    both = (Control(model="one", image="one", end=0.5), Control(model="two", image="two", start=0.5))
    times = {"control_guidance_start": [0.0, 0.5], "control_guidance_end": [0.5, 1.0]}
    assert distance(draw(kit, units(*both))[0], theirs(tiny, nets, ["one", "two"], **times)) <= 1
    whole = [Control(model=name, image=name) for name in ("one", "two")]
    added = theirs(tiny, nets, ["one", "two"], controlnet_conditioning_scale=[1.0, 1.0])
    assert distance(draw(kit, units(*whole))[0], added) <= 1


def test_without_weight_or_steps_it_is_as_if_it_were_not_there(kit: FullKit) -> None:
    plain = draw(kit, REQUEST)[0].tobytes()
    unit = Control(model="one", image="one")
    for nothing in ({"weight": 0.0}, {"start": 0.5, "end": 0.5}, {"hr_option": "High res only"}):
        assert draw(kit, units(unit.model_copy(update=nothing)))[0].tobytes() == plain
    assert draw(kit, units(unit))[0].tobytes() != plain
    assert draw(kit, REQUEST)[0].tobytes() == plain


def test_a_batch_is_its_single_pictures(kit: FullKit) -> None:
    asked = units(Control(model="one", image="one", mode="ControlNet is more important"))
    both = draw(kit, asked.model_copy(update={"batch_size": 2}))
    for unit, found in both.items():
        assert distance(found, draw(kit, asked.model_copy(update={"seed": 3 + unit}))[0]) <= 1


def spoken(kit: FullKit, control: Control, name: str = "first") -> dict[str, Any]:
    request = units(control, hires=Hires(upscaler="Latent", scale=1.0))
    scene = scene_of(kit, request, name)
    model: Any = kit.model()
    cond = model.encode([parse("a cat"), parse("rain")]).sided(1)
    x = numbers(2, 4, 12, 8)
    call = Call(x, torch.tensor([500, 500]), 1.0, cond, model.told(x, cond))
    with torch.inference_mode(), controlnet(scene, unit_of(scene, control)) as speaker:
        return speaker.told(call)


def test_modes_are_those_of_a1111(kit: FullKit) -> None:
    """Soft layers in both other modes, and in a second pass; the negative prompt hears nothing in the last one."""
    told = {mode: spoken(kit, Control(model="one", image="one", mode=mode)) for mode in get_args(ControlMode)}
    down = {mode: found["down_block_additional_residuals"] for mode, found in told.items()}
    balanced, mine, its = down.values()
    for i, (full, soft, half_) in enumerate(zip(balanced, mine, its, strict=True)):
        assert torch.allclose(soft, full * 0.825 ** (12 - i), atol=1e-6)
        assert torch.allclose(half_[:1], soft[:1], atol=1e-6)
        assert not half_[1:].any()
        assert full[1:].any()
    again = spoken(kit, Control(model="one", image="one"), "hires")["down_block_additional_residuals"]
    assert all(torch.equal(a, b) for a, b in zip(again, mine, strict=True))


def test_what_is_shuffled_tells_one_thing_of_the_whole_picture(kit: FullKit) -> None:
    found = spoken(kit, Control(model="one", image="one", module="shuffle"))["down_block_additional_residuals"]
    assert all(each.shape[2:] == (1, 1) and not each[1:].any() for each in found)


def test_files_of_all_layouts_are_the_same_network(tmp_path: Path) -> None:
    """The makers' with their prefix and without, as a pickle too, beside diffusers' own reading of it."""
    from diffusers import ControlNetModel

    sd1 = SD1.load(save_checkpoint(tmp_path / "sd1.safetensors", dtype=torch.float32), CPU)
    file = save(tmp_path / "bare.safetensors", control_shapes(TINY["sd1"].unet), 5, torch.float32)
    tensors = load_file(file)
    prefixed = {f"control_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(prefixed, tmp_path / "control.safetensors")
    torch.save({"state_dict": {**prefixed, "model.diffusion_model.out.0.bias": torch.ones(1)}}, tmp_path / "net.pth")
    files = {name: info(tmp_path / name) for name in ("bare.safetensors", "control.safetensors", "net.pth")}
    full = FullKit(sd1, files, PICTURES)
    found = [spoken(full, Control(model=name, image="one"))["mid_block_additional_residual"] for name in files]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    network = ControlNetModel.from_unet(sd1.unet)
    with full.network("controlnet", CONTROLNET, files["bare.safetensors"]) as part:
        network.load_state_dict(part.module.state_dict())
    cond = sd1.encode([parse("a cat"), parse("rain")])
    hint = torch.from_numpy(np.array(PICTURES["one"])).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        _, middle = network(
            numbers(2, 4, 12, 8), torch.tensor([500, 500]), cond.tokens, hint.expand(2, -1, -1, -1), return_dict=False
        )
    assert torch.allclose(found[0], middle, atol=1e-5)


@pytest.mark.parametrize("union", [False, True])
def test_sdxl_is_that_of_diffusers(tmp_path: Path, union: bool) -> None:
    import diffusers

    file = save_checkpoint(tmp_path / "xl.safetensors", "sdxl", dtype=torch.float32)
    sdxl = SDXL.load(file, CPU)
    kind: Any = diffusers.ControlNetUnionModel if union else diffusers.ControlNetModel
    word = "Union" if union else ""
    with seeded(7):
        more = {"num_trans_channel": 32, "num_proj_channel": 32} if union else {}
        plain = {name: value for name, value in sdxl.unet.config.items() if name in kind._get_init_keys(kind)}
        network = kind(**{**plain, **more, "conditioning_embedding_out_channels": (4, 8, 8, 16)})
        loud(network)
    network.save_pretrained(tmp_path / "net")
    lone = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    moved = lone.rename(tmp_path / "lone.safetensors")  # without its settings: by shapes alone
    kit = FullKit(sdxl, {"net": info(moved, family="sdxl", variant=word.lower())}, PICTURES)
    asked = Control(model="net", image="one", union_type="Depth" if union else "", weight=0.7)
    found = draw(kit, units(asked, steps=3))[0]
    pipe = pipeline(file, tmp_path / "configs", "sdxl", torch_dtype=torch.float32)
    parts = {**pipe.components, "controlnet": network}
    theirs: Any = getattr(diffusers, f"StableDiffusionXLControlNet{word}Pipeline")(**parts)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(theirs.scheduler.config, use_karras_sigmas=True)
    followed = {"control_image": [PICTURES["one"]], "control_mode": [1]} if union else {"image": PICTURES["one"]}
    expected = theirs(
        "a cat",
        **followed,
        negative_prompt="rain",
        width=64,
        height=96,
        num_inference_steps=3,
        guidance_scale=7.0,
        controlnet_conditioning_scale=0.7,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert distance(found, expected) <= 1
    assert distance(found, draw(kit, units(steps=3))[0]) > 2


@pytest.mark.parametrize("modes", [None, 5])
@torch.inference_mode()
def test_flux_is_told_what_diffusers_tells_it(tmp_path: Path, modes: int | None) -> None:
    """Two of them at once, one for each of the transformer's two blocks and one for both; Union with its mode."""
    import diffusers

    flux = made("flux")
    own = {name: value for name, value in flux.transformer.config.items() if name != "out_channels"}
    networks = []
    for layers in (1, 2):
        with seeded(layers):
            few = {**own, "num_layers": layers, "num_single_layers": 1, "num_mode": modes}
            networks.append(diffusers.FluxControlNetModel.from_config(few))
            loud(networks[-1])
        networks[-1].save_pretrained(tmp_path / str(layers))
        (tmp_path / str(layers) / "config.json").unlink()  # by shapes alone
    files = {layers: info(tmp_path / layers, family="flux", variant="union" if modes else "") for layers in "12"}
    kit = FullKit(flux, files, PICTURES)
    controls = [Control(model=name, image="one", module="canny", weight=0.5) for name in "12"]
    asked = REQUEST.model_copy(update={"controls": tuple(controls), "steps": 2})
    assert distance(draw(kit, asked)[0], draw(kit, REQUEST.model_copy(update={"steps": 2}))[0]) > 2

    scene = scene_of(kit, asked)
    cond = scene.told.at(0, 1)
    x = numbers(len(cond.tokens), *flux.latent_shape(64, 96))
    with denoiser(scene):
        found = flux.predict(x, 0.7, cond)
    hint = patches(flux.to_latent(hint_for(scene, controls[0]).pixels)).expand(len(x), -1, -1)
    given = {
        "hidden_states": patches(x),
        "timestep": torch.full((len(x),), 0.7),
        "guidance": torch.full((len(x),), 3.5),
        "pooled_projections": cond.pooled,
        "encoder_hidden_states": cond.tokens,
        "txt_ids": torch.zeros(cond.tokens.shape[1], 3),
        "img_ids": places(6, 4, (3, 1, 2), CPU),
        "return_dict": False,
    }
    mode = {"controlnet_mode": torch.zeros(len(x), 1, dtype=torch.long)} if modes else {}
    samples = [network(**given, controlnet_cond=hint, conditioning_scale=0.5, **mode) for network in networks]
    (one, one_single), (two, two_single) = samples
    blocks = [one[0] + two[0], one[0] + two[1]]
    single = [one_single[0] + two_single[0]]
    output = flux.transformer(**given, controlnet_block_samples=blocks, controlnet_single_block_samples=single)[0]
    expected = x - from_patches(output, 12, 8) * 0.7
    assert torch.allclose(found, expected, atol=2e-3)  # so much, a millionth in what it is told changes


def test_what_does_not_fit_is_said(kit: FullKit, tmp_path: Path) -> None:
    sdxl = SDXL.load(save_checkpoint(tmp_path / "xl.safetensors", "sdxl"), CPU)
    with pytest.raises(PipelineError, match="made for another kind of checkpoint"):
        draw(FullKit(sdxl, kit.files, PICTURES), units(Control(model="one", image="one")))
    with pytest.raises(PipelineError, match="no picture to follow"):
        draw(kit, units(Control(model="one")))
    with pytest.raises(PipelineError, match="no preprocessor named 'kanny'"):
        draw(kit, units(Control(model="one", image="one", module="kanny")))
    lora = info(tmp_path / "lora.safetensors", family="", variant="control_lora")
    with pytest.raises(PipelineError, match="Control-LoRA"):
        draw(FullKit(kit.model(), {"lora": lora}, PICTURES), units(Control(model="lora", image="one")))
    odd = info(tmp_path / "odd.safetensors", Kind.CONTROLNET, "qwen_image")
    with pytest.raises(PipelineError, match="known for SD 1, SD 2, SDXL and Flux"):
        draw(FullKit(kit.model(), {"odd": odd}, PICTURES), units(Control(model="odd", image="one")))


def test_a_worker_draws_the_same(kit: FullKit, tiny: Path, nets: Path) -> None:
    """With its own kit: the network from the files of the job, the picture from its bytes."""
    asked = units(Control(model="one", image="picture"))
    data = io.BytesIO()
    PICTURES["one"].save(data, "PNG")
    assignment = Assignment(
        job=1,
        task=asked,
        model=tiny_info(tiny),
        units=(0,),
        files={file_key(Kind.CONTROLNET, "one"): info(nets / "one")},
        images={"picture": data.getvalue()},
    )
    events: list[Event] = []
    Session(ModelManager(CPU), CPU).run(assignment, events.append, lambda: None, lambda status: None)
    [made_] = [event for event in events if isinstance(event, Picture)]
    found = PIL.Image.open(io.BytesIO(made_.png))
    assert distance(found, draw(kit, units(Control(model="one", image="one")))[0]) == 0


def test_nothing_is_left_behind_after_an_error(kit: FullKit) -> None:
    plain = draw(kit, REQUEST)[0].tobytes()
    asked = units(Control(model="one", image="one"), Control(model="two", image="nowhere"))
    with pytest.raises(PipelineError, match="nowhere"):
        draw(kit, asked)
    assert draw(kit, REQUEST)[0].tobytes() == plain
