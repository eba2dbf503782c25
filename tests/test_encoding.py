"""What CLIP makes of a prompt: emphasis, clip skip, embeddings; and that nothing stays behind in the encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.briefing import reading_of
from pipelines.errors import BadModel
from pipelines.families.base import Reading
from pipelines.families.embeddings import Embedding, load_embedding
from pipelines.families.sd1 import SD1
from pipelines.families.sd2 import SD2
from pipelines.families.sdxl import SDXL, Refiner
from pipelines.kit import SoloKit
from pipelines.prompt import parse, read
from pipelines.request import GenerationRequest
from pipelines.types import Format, Kind, ModelInfo
from tests.checkpoints import save_checkpoint
from tests.drawing import draw

CPU = torch.device("cpu")
FAMILIES = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL, "sdxl-refiner": Refiner}
LONG = "a red cat, " * 30


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = tmp_path_factory.mktemp("clip")
    return {
        name: kind.load(save_checkpoint(folder / f"{name}.safetensors", name), CPU) for name, kind in FAMILIES.items()
    }


def encoders(model: Any) -> dict[str, Any]:
    return {name: part.module for name, part in model.parts.items() if name.startswith("text_encoder")}


def ids_of(model: Any, text: str, pad: int) -> Tensor:
    words = model.tokenizer
    row = [words.begin, *words.ids(text), words.end]
    return torch.tensor([[*row, *[pad] * (77 - len(row))]])


def plainly(model: Any, text: str, back: int) -> Tensor:
    """As the encoders do it by themselves: hidden states from the end, 1 is the last."""
    rows = []
    for encoder in encoders(model).values():
        pad = model.tokenizer.end if encoder.config.hidden_act == "quick_gelu" else 0
        output = encoder(ids_of(model, text, pad), output_hidden_states=True)
        states = output.hidden_states[-back]
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        rows.append(norm(states) if isinstance(model, SD1) else states)
    return torch.cat(rows, -1)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "clip_skip", "back"),
    [
        *(("sd1", 0, 1), ("sd1", 1, 1), ("sd1", 2, 2), ("sd1", 12, 2)),  # tiny: there are only two layers
        *(("sd2", 0, 1), ("sd2", 2, 1), ("sd2", 3, 2)),  # its last layer is not even loaded
        *(("sdxl", 0, 2), ("sdxl", 1, 2), ("sdxl", 2, 2), ("sdxl-refiner", 0, 2)),
    ],
)
def test_short_prompts_are_encoded_as_the_encoder_does(
    models: Mapping[str, Any], name: str, clip_skip: int, back: int
) -> None:
    model = models[name]
    layers = min(encoder.config.num_hidden_layers for encoder in encoders(model).values())
    found = model.encode([parse("a red cat")], Reading(clip_skip)).tokens
    assert torch.allclose(found, plainly(model, "a red cat", min(back, layers)), atol=1e-5)


@torch.inference_mode()
def test_emphasis(models: Mapping[str, Any]) -> None:
    model = models["sd1"]

    def tokens(text: str, emphasis: Any = "Original") -> Tensor:
        found: Tensor = model.encode([read(text, emphasis)], Reading(emphasis=emphasis)).tokens[0]
        return found

    plain = tokens("a red cat")
    assert torch.allclose(tokens("a (red:1.5) cat", "No norm")[2], plain[2] * 1.5)
    assert torch.equal(tokens("a (red:1.5) cat", "Ignore"), plain)
    assert torch.equal(tokens("a (red:1.5) cat", "None"), tokens(r"a \(red:1.5\) cat"))
    bias = model.text_encoder.final_layer_norm.bias
    bias.data += 0.2  # so that there is a mean that can be kept
    try:
        plain, heavy = tokens("a red cat"), tokens("a (red:1.5) cat")
        assert float(heavy.mean()) == pytest.approx(float(plain.mean()), rel=1e-4)
        assert float(tokens("a (red:1.5) cat", "No norm").mean()) > float(plain.mean()) * 1.001
    finally:
        bias.data -= 0.2


@torch.inference_mode()
def test_chunks_are_encoded_apart(models: Mapping[str, Any]) -> None:
    for model in models.values():
        both = model.encode([parse("a cat BREAK (a dog:1.2)"), parse("rain")], Reading(emphasis="No norm")).tokens
        assert both.shape[1] == 2 * 77
        alone = model.encode([parse("a cat"), parse("(a dog:1.2)"), parse("")], Reading(emphasis="No norm")).tokens
        assert torch.allclose(both[0], torch.cat([alone[0], alone[1]]), atol=1e-5)
        assert torch.allclose(both[1, 77:], alone[2], atol=1e-5)
        assert model.chunks_of(parse(LONG)) == 2
        many = model.encode([parse(f"{LONG} {number}") for number in range(40)]).tokens  # more than one batch
        assert torch.allclose(many[39], model.encode([parse(f"{LONG} 39")]).tokens[0], atol=1e-5)


def saved(path: Path, tensors: dict[str, Tensor]) -> ModelInfo:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    form = Format.SAFETENSORS if path.suffix == ".safetensors" else Format.PICKLE
    return ModelInfo(name=f"words/{path.name}", kind=Kind.EMBEDDING, family="", format=form, path=path, size_bytes=1)


def widths(model: Any) -> list[int]:
    return [encoder.config.hidden_size for encoder in encoders(model).values()]


def vectors_for(model: Any, count: int) -> dict[str, Tensor]:
    return {name: torch.randn(count, width) for name, width in zip(("clip_l", "clip_g"), widths(model), strict=False)}


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_stand_where_they_are_named(models: Mapping[str, Any], name: str, tmp_path: Path) -> None:
    """The vectors of the words themselves give what the words give; others something else; and nothing is left."""
    model = models[name]
    before = model.encode([parse("a red cat, rain")])
    words = model.tokenizer.ids("red cat")
    own = [encoder.get_input_embeddings().weight[words] for encoder in encoders(model).values()]
    tensors = dict(zip(("clip_l", "clip_g"), own, strict=False))
    same = load_embedding(saved(tmp_path / "My Emb.safetensors", tensors))
    found = model.encode([parse("a my  emb, rain")], Reading(embeddings=(same,)))
    assert torch.allclose(found.tokens, before.tokens, atol=1e-6)
    if found.pooled is not None and before.pooled is not None:
        assert torch.allclose(found.pooled, before.pooled, atol=1e-6)
    other = load_embedding(saved(tmp_path / "other.safetensors", vectors_for(model, 2)))
    assert not torch.allclose(
        model.encode([parse("a other, rain")], Reading(embeddings=(other,))).tokens, before.tokens
    )
    assert torch.equal(
        model.encode([parse("a red cat, rain")], Reading(embeddings=(other, same))).tokens, before.tokens
    )
    assert not any(encoder.get_input_embeddings()._forward_hooks for encoder in encoders(model).values())


@torch.inference_mode()
@pytest.mark.parametrize(
    ("file", "layout"),
    [
        ("a.pt", lambda v: {"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "x", "step": 5}),
        ("b.bin", lambda v: {"<x>": v}),
        ("c.safetensors", lambda v: {"emb_params": v}),
        ("d.pt", lambda v: {"<x>": v[0]}),
    ],
)
def test_every_layout_is_read(models: Mapping[str, Any], file: str, layout: Any, tmp_path: Path) -> None:
    (width,) = widths(models["sd1"])
    vectors = torch.randn(3, width)
    loaded = load_embedding(saved(tmp_path / file, layout(vectors)))
    assert loaded.word == file[0]
    assert torch.equal(loaded.vectors[width], vectors[: 1 if file == "d.pt" else 3])


@torch.inference_mode()
def test_what_does_not_fit_is_named_and_stays_a_word(models: Mapping[str, Any], tmp_path: Path) -> None:
    model = models["sdxl"]
    (width,) = widths(models["sd1"])
    strange = load_embedding(saved(tmp_path / "cat.safetensors", {"emb_params": torch.randn(2, width + 1)}))
    found = model.encode([parse("a cat")], Reading(embeddings=(strange,)))
    assert torch.equal(found.tokens, model.encode([parse("a cat")]).tokens)
    (note,) = found.notes
    assert f"words/cat.safetensors is an embedding for another model (its vectors have {width + 1} numbers)" in note
    assert not model.encode([parse("a dog")], Reading(embeddings=(strange,))).notes


class Shelf(SoloKit):
    """With embeddings beside the checkpoint."""

    def __init__(self, model: Any, *infos: ModelInfo) -> None:
        super().__init__(model)
        self.infos = list(infos)

    def files_of(self, kind: Kind) -> list[ModelInfo]:
        return [info for info in self.infos if info.kind == kind]


def request(**values: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "seed": 5, **values})


def test_all_that_changes_the_reading_is_part_of_what_is_remembered(models: Mapping[str, Any], tmp_path: Path) -> None:
    model, calls = models["sd1"], []
    (width,) = widths(model)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    first, again, other = (
        saved(tmp_path / name / "cat.safetensors", {"emb_params": torch.full((1, width), value)})
        for name, value in (("one", 1.0), ("two", 1.0), ("three", 2.0))
    )
    hook = model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    kit = Shelf(model)

    def encoded(*infos: ModelInfo, **values: Any) -> int:
        kit.infos, count = list(infos), len(calls)
        draw(kit, request(**values))
        return len(calls) - count

    assert [encoded(), encoded(), encoded(seed=6, steps=3)] == [1, 0, 0]
    assert [encoded(clip_skip=2), encoded(emphasis="No norm"), encoded(clip_skip=2)] == [1, 1, 0]
    assert [encoded(first), encoded(again), encoded(other), encoded(first)] == [1, 0, 1, 0]
    hook.remove()
    pictures = [draw(Shelf(model, *infos), request())[0].tobytes() for infos in ((), (first,), (again,), (other,))]
    assert pictures[1] == pictures[2]
    assert len(set(pictures)) == 3


def test_a_broken_embedding_is_noted(models: Mapping[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(b"no torch file")
    info = ModelInfo(name="bad.pt", kind=Kind.EMBEDDING, family="", format=Format.PICKLE, path=path, size_bytes=1)
    with pytest.raises(BadModel):
        load_embedding(info)
    kit = Shelf(models["sd1"], info)
    assert reading_of(request(), kit) == Reading()
    assert len(kit.notes) == 1
    assert "bad.pt" in kit.notes[0]


def test_embeddings_are_the_same_by_their_content() -> None:
    one, two = (Embedding("a", "key", file, {}) for file in ("x/a.pt", "y/a.pt"))
    assert one == two
    assert hash(one) == hash(two)
