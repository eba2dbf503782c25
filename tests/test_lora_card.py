"""What is told of a LoRA beside its weights, and its hash in infotexts."""

import hashlib
import json
from pathlib import Path

import torch

from pipelines import infotext
from pipelines.library.lora_card import lora_card, lora_hash
from pipelines.library.registry import Registry
from pipelines.request import GenerationRequest, Hires
from pipelines.types import Kind, ModelInfo, file_key
from tests.loras import Draw, save
from tests.tiny import info

DOWN = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


def a_lora(path: Path, **metadata: object) -> ModelInfo:
    save(path, {DOWN: Draw()(4, 768), DOWN.replace("down", "up"): torch.zeros(1280, 4)}, metadata)
    return ModelInfo(name=path.name, kind=Kind.LORA, family="sd1", path=path, size_bytes=path.stat().st_size)


def test_the_hash_is_of_what_follows_the_header(tmp_path: Path) -> None:
    found = a_lora(tmp_path / "a.safetensors", anything="else")
    data = found.path.read_bytes()
    rest = data[8 + int.from_bytes(data[:8], "little") :]
    assert lora_hash(found) == hashlib.sha256(rest).hexdigest()[:12]
    assert lora_hash(a_lora(tmp_path / "b.safetensors", other="words")) == lora_hash(found)
    assert lora_hash(a_lora(tmp_path / "c.safetensors", sshs_model_hash="AB" * 32)) == "ab" * 6
    pickled = tmp_path / "d.pt"
    pickled.write_bytes(b"whatever")
    assert lora_hash(found.model_copy(update={"path": pickled})) == hashlib.sha256(b"whatever").hexdigest()[:12]
    assert lora_hash(found.model_copy(update={"path": tmp_path / "gone.safetensors"})) == ""


def test_a_file_that_changes_has_another_hash(tmp_path: Path) -> None:
    found = a_lora(tmp_path / "a.safetensors")
    before = lora_hash(found)
    save(found.path, {DOWN: torch.ones(4, 768), DOWN.replace("down", "up"): torch.zeros(1280, 5)})
    assert lora_hash(found) != before


def test_a_card(tmp_path: Path) -> None:
    """From the header and from what lies beside the file; nothing there is worth an error."""
    tags = {"10_cat": {"cat": 10, " sitting ": 4}, "5_more": {"cat": 1}}
    found = a_lora(tmp_path / "a.safetensors", ss_tag_frequency=tags, ss_sd_model_name="v1-5.safetensors")
    (tmp_path / "a.json").write_text(json.dumps({"activation text": "ohwx cat", "preferred weight": 0.7, "notes": "!"}))
    (tmp_path / "a.civitai.info").write_text(json.dumps({"trainedWords": ["ohwx cat", "fluffy"], "baseModel": 3}))
    card = lora_card(found)
    assert card.tags == {"cat": 11, "sitting": 4}
    assert (card.base_model, card.trigger_words) == ("v1-5.safetensors", ("ohwx cat", "fluffy"))
    assert (card.weight, card.notes) == (0.7, "!")
    assert card.hash == lora_hash(found)
    (tmp_path / "a.json").write_text("[")
    (tmp_path / "a.civitai.info").write_text("[1]")
    odd = lora_card(a_lora(found.path, ss_tag_frequency="{", sshs_model_hash="0x12"))
    assert (odd.tags, odd.trigger_words, odd.weight, odd.hash) == ({}, (), None, "12")


def test_infotexts_name_the_hashes(tmp_path: Path) -> None:
    lora, other = a_lora(tmp_path / "a.safetensors", sshs_model_hash="ab" * 32), a_lora(tmp_path / "b.safetensors")
    files = {file_key(Kind.LORA, name): each for name, each in (("style: a", lora), ("b", other))}
    task = GenerationRequest(
        prompt="a cat <lora:b:0.5> <lora:gone>", model="x", seed=1, hires=Hires(prompt="<lora:b> more")
    )
    text = infotext.dump(task, 0, info(tmp_path), "1", files)
    assert f"Lora hashes: b: {lora_hash(other)}," not in text, "a colon is quoted"
    assert f'Lora hashes: "b: {lora_hash(other)}"' in text
    assert infotext.load(text).notes == ()
    assert "Lora hashes" not in infotext.dump(
        task.model_copy(update={"prompt": "", "hires": None}), 0, info(tmp_path), "1", files
    )


def test_a_card_by_its_name(tmp_path: Path) -> None:
    """As the API asks: registries know LoRAs by their content."""
    (tmp_path / "Lora").mkdir()
    a_lora(tmp_path / "Lora" / "style.safetensors", ss_base_model_version="sd_v1")
    registry = Registry([tmp_path])
    registry.scan()
    assert lora_card(registry.find(Kind.LORA, "style")).base_model == "sd_v1"
