"""What is frozen in a job: every file that a request names is there and fits, or a sentence says what does not."""

import io
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from pipelines.errors import BadModel, ModelNotFound, PipelineError, UnknownChoice
from pipelines.library.registry import Registry
from pipelines.request import Control, GenerationRequest, Hires, Noise, Reference, Refiner
from pipelines.types import Capabilities, ModelInfo
from tests.sparse import SD1, save
from tests.test_detect import CONTROL, SDXL, kohya
from webui.db import Database
from webui.inputs import Inputs
from webui.resolve import Resolved, Resolver, chosen

CAN = Capabilities(
    device="cpu",
    device_name="CPU",
    memory_bytes=0,
    samplers=("Euler",),
    schedules=("Automatic",),
    families=("sd1",),
    versions={},
)
LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
IP = {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)}


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> Resolver:
    folder: Path = tmp_path_factory.mktemp("models")
    for name in ("a", "b"):
        save(folder / f"{name}.safetensors", SD1)
    save(folder / "big.safetensors", SDXL)
    save(
        folder / "Lora" / "hat.safetensors",
        kohya("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 768),
    )
    save(
        folder / "Lora" / "xl.safetensors",
        kohya("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 2048),
    )
    save(folder / "embeddings" / "xl" / "bad.safetensors", {"clip_l": (2, 768), "clip_g": (2, 1280)})
    save(folder / "embeddings" / "z" / "bad.safetensors", {"emb_params": (2, 768)})
    save(folder / "ControlNet" / "canny.safetensors", CONTROL)
    save(folder / "ControlNet" / "ip.safetensors", IP)
    registry = Registry([folder], None)
    registry.scan()
    data = tmp_path_factory.mktemp("data")
    return Resolver(
        Database(data / "library.sqlite"), registry, Inputs(data / ".inputs", data), lambda request: request
    )


def resolved(resolver: Resolver, **values: Any) -> Resolved:
    return resolver(GenerationRequest(**{"model": "a", "sampler": "Euler", **values}), CAN)


@pytest.mark.parametrize(
    ("start", "size"),
    [
        ({}, (104, 64)),
        ({"outpaint": {"left": 64, "down": 100}}, (168, 160)),
        ({"only_masked": True}, (512, 512)),
        ({"outpaint": {"right": 4096}}, (4096, 64)),
    ],
)
def test_the_size_is_that_of_the_picture_to_start_from(
    resolver: Resolver, start: dict[str, Any], size: tuple[int, int]
) -> None:
    data = io.BytesIO()
    PIL.Image.new("RGB", (103, 64)).save(data, "PNG")
    begin = {"image": resolver.inputs.keep(data.getvalue()).id, **start}
    task = resolved(resolver, start=begin).task
    assert (task.width, task.height) == size
    assert resolved(resolver, start=begin, width=256, height=128).task.width == 256


def test_nothing_is_open(resolver: Resolver) -> None:
    task, model, files = resolved(resolver)
    assert (task.model, task.width, task.height, files) == ("a.safetensors", 512, 512, {})
    assert task.seed >= 0
    assert model.name == "a.safetensors"


def test_files_are_found_by_what_they_are_called_in_the_request(resolver: Resolver) -> None:
    files = resolved(
        resolver,
        prompt="a cat <lora:hat:0.5> <lora:hat:0.2>",
        controls=(Control(model="canny"),),
        references=(Reference(image="x", model="ip"), Reference(image="y")),
        refiner=Refiner(model="b"),
        hires=Hires(model="b.safetensors", prompt="more <lora:hat:1>"),
    ).files
    assert {key: info.name for key, info in files.items()} == {
        "lora/hat": "hat.safetensors",
        "controlnet/canny": "canny.safetensors",
        "ip_adapter/ip": "ip.safetensors",
        "checkpoint/b": "b.safetensors",
        "checkpoint/b.safetensors": "b.safetensors",
    }


def test_embeddings_that_are_named_are_found_and_those_for_the_checkpoint_first(resolver: Resolver) -> None:
    prompts = {"prompt": "a cat <lora:hat:1>", "negative_prompt": "(Bad:1.2), [rain:snow:3]"}
    assert "embedding/z/bad.safetensors" in resolved(resolver, **prompts).files
    assert "embedding/xl/bad.safetensors" in resolved(resolver, model="big", negative_prompt="bad").files
    assert not resolved(resolver, prompt="badly # bad").files


def test_a_lora_that_is_not_there_is_left_to_the_worker_to_say(resolver: Resolver) -> None:
    assert resolved(resolver, prompt="<lora:none:1> <lora:hat:1>").files.keys() == {"lora/hat"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": "<lora:xl:1>"}, "xl.safetensors is for models of the family sdxl, and a.safetensors is of sd1"),
        ({"refiner": Refiner(model="big")}, "big.safetensors is for models of the family sdxl"),
        ({"model": "big", "controls": (Control(model="canny"),)}, "canny.safetensors is for models of the family sd1"),
    ],
)
def test_what_was_made_for_another_family_is_refused(resolver: Resolver, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadModel, match=reason):
        resolved(resolver, **values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model": "none"}, "no checkpoint named 'none'"),
        ({"controls": (Control(model="hed"),)}, "hed"),
        ({"hires": Hires(upscaler="4x-UltraSharp")}, "no upscaler"),
        ({"refiner": Refiner(model="none")}, "no checkpoint named 'none'"),
    ],
)
def test_what_is_missing_is_named(resolver: Resolver, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelNotFound, match=reason):
        resolved(resolver, **values)


def test_samplers_have_one_name(resolver: Resolver) -> None:
    asked = GenerationRequest(
        model="a", sampler="DPM++ 2M Karras", hires=Hires(sampler="k_euler_a"), schedule="exponential"
    )
    task = resolver(asked, None).task
    assert (task.sampler, task.schedule) == ("DPM++ 2M", "Karras")
    assert task.hires is not None
    assert (task.hires.sampler, task.hires.schedule) == ("Euler a", "")
    other = asked.model_copy(update={"hires": Hires(sampler="DPM++ 2M SDE Exponential")})
    hires = resolver(other, None).task.hires
    assert hires is not None
    assert (hires.sampler, hires.schedule) == ("DPM++ 2M SDE", "Exponential")


def test_what_flow_models_cannot_do_is_refused_before_it_is_queued() -> None:
    flow = ModelInfo(name="f", family="flux", prediction="flow", path=Path("f"), size_bytes=0)
    asked = GenerationRequest(sampler="Euler", hires=Hires(sampler="DPM adaptive"))
    with pytest.raises(PipelineError, match="DPM adaptive cannot draw with flow models"):
        chosen(asked, flow)
    assert chosen(asked, flow.model_copy(update={"prediction": "epsilon"})) == asked


def test_seeds_are_drawn_when_a_job_is_frozen(resolver: Resolver) -> None:
    drawn = resolved(resolver, noise=Noise(variation_strength=0.2)).task
    assert drawn.seed >= 0
    assert drawn.noise.variation_seed >= 0
    assert resolved(resolver, noise=Noise(variation_strength=0.2, variation_seed=7)).task.noise.variation_seed == 7
    assert resolved(resolver).task.noise == Noise()


def test_choices_of_every_pass_are_checked(resolver: Resolver) -> None:
    with pytest.raises(UnknownChoice, match="There is no sampler named 'Eular'"):
        resolved(resolver, hires=Hires(sampler="Eular"))
    assert resolved(resolver, hires=Hires(upscaler="Latent (bicubic)")).files == {}
