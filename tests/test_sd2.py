"""Stable Diffusion 2.x: SD 1's mathematics with open_clip's text encoder, of which the last layer is left out."""

from pathlib import Path

import pytest
import torch

from pipelines.families.sd2 import SD2
from pipelines.loading.checkpoint import load_parts
from pipelines.loading.manager import ModelManager
from pipelines.prompt import parse
from tests.checkpoints import save_checkpoint
from tests.reference import pipeline
from tests.test_sd1 import assert_same
from tests.tiny import info

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sd2") / "dream.safetensors", "sd2")


def test_a_single_file_is_what_diffusers_makes_of_it(single: Path, tmp_path: Path) -> None:
    pipe = pipeline(single, tmp_path / "configs", "sd2", torch_dtype=torch.float32)
    pipe.save_pretrained(tmp_path / "folder")
    for path in (single, tmp_path / "folder"):
        ours = SD2.load(path, CPU)
        assert_same(ours, pipe)
        with torch.inference_mode():
            wanted, _ = pipe.encode_prompt("a photo of a cat", "cpu", 1, False)
            assert torch.equal(ours.encode([parse("a photo of a cat")]).tokens, wanted)


def test_chunks_are_filled_up_with_zeros(single: Path) -> None:
    model = SD2.load(single, CPU)
    seen: list[list[int]] = []
    model.text_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].tolist()))
    model.encode([parse("a cat")])
    assert seen[0][:4] == [49406, 320, 2368, 49407]
    assert set(seen[0][4:]) == {0}


def test_the_last_layer_is_left_out(single: Path) -> None:
    model = SD2.load(single, CPU)
    assert model.text_encoder.config.num_hidden_layers == 2
    assert model.text_encoder.config.hidden_act == "gelu"
    assert model.unet.config.use_linear_projection


def test_v_comes_from_the_listing(single: Path) -> None:
    listed = info(single, "sd2").model_copy(update={"prediction": "v_prediction"})
    manager = ModelManager(CPU)
    model = manager.get(listed, lambda status: None)
    assert isinstance(model, SD2)
    assert model.prediction == "v_prediction"
    assert load_parts(SD2.RECIPES, listed, CPU, manager.dtypes).keys() == model.parts.keys()
