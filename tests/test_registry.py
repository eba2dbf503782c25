"""Which models are listed, what they are called, how they are looked up, and what is said about the others."""

import hashlib
import json
import os
import re
import shutil
import sqlite3
import threading
from pathlib import Path

import pytest
import torch

from pipelines.errors import BadModel, ModelNotFound
from pipelines.library.registry import CARD, Registry
from pipelines.library.watcher import Watcher
from pipelines.types import Format, Kind, ModelInfo
from tests.sparse import CLIP_L, FLUX, QWEN3_4B, SD1, SD1_UNET, T5, VAE4, VAE16, below, save, save_gguf, save_header
from tests.test_detect import SD3, SDXL, SDXL_UNET, Z_IMAGE, kohya

WEIGHTS = "diffusion_pytorch_model.safetensors"
LORA = kohya("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 768)


def registry(*folders: Path, cache: Path | None = None) -> Registry:
    found = Registry(folders, cache)
    found.scan()
    return found


def broken(folder: Path) -> ModelInfo:
    """The only model there."""
    (info,) = registry(folder).models()
    assert info.kind == Kind.BROKEN
    return info


def names(found: Registry, kind: Kind = Kind.CHECKPOINT) -> list[str]:
    return [info.name for info in found.all(kind)]


# diffusers folders


def test_a_diffusers_folder_is_found_by_its_content(models: Path) -> None:
    (info,) = registry(models).all()
    assert (info.name, info.family, info.width, info.height) == ("tiny", "sd1", 64, 64)
    assert (info.format, info.prediction, info.dtype) == (Format.DIFFUSERS, "epsilon", "F32")
    assert list(info.parts) == ["unet", "vae", "text_encoder"]
    assert info.size_bytes > sum(info.parts.values()) > 100_000
    assert info.sha256 is None


def test_a_model_says_what_it_likes(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    found = registry(tmp_path)
    assert found.get("").cfg_scale == 7
    (tmp_path / "tiny" / CARD).write_text('{"cfg_scale": 4}')
    assert found.scan()
    assert found.get("").cfg_scale == 4
    (tmp_path / "tiny" / CARD).write_text('{"cfg_scale": "much"}')
    assert CARD in broken(tmp_path).detail


@pytest.mark.parametrize("size", [None, 8])
def test_a_size_that_is_left_out_is_that_of_sd1(size: int | None, models: Path, tmp_path: Path) -> None:
    set_sample_size(models, tmp_path, size)
    assert registry(tmp_path).get("").width == (size or 64) * 8


@pytest.mark.parametrize("size", [[64, 64], 4, 9999, "x"])
def test_a_size_that_cannot_be_is_said(size: object, models: Path, tmp_path: Path) -> None:
    set_sample_size(models, tmp_path, size)
    assert "picture size" in broken(tmp_path).detail


def set_sample_size(models: Path, folder: Path, size: object) -> None:
    shutil.copytree(models / "tiny", folder / "tiny")
    config = folder / "tiny" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": size}))


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"_class_name": "FluxPipeline"})])
def test_what_cannot_be_run_is_listed_as_broken_and_said(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("unet", "vae"):
        (tmp_path / "odd" / part).mkdir(parents=True)
        (tmp_path / "odd" / part / "config.json").write_text("{}")
    (tmp_path / "odd" / "model_index.json").write_text(content)
    assert broken(tmp_path).name == "odd"
    assert registry(tmp_path).all() == []
    assert "odd" in caplog.text


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_and_half_precision_variants_are_known(variant: str, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    unet = tmp_path / "tiny" / "unet"
    (unet / WEIGHTS).unlink()
    shards = {
        f"{word}.weight": f"{WEIGHTS.split('.')[0]}{variant}-0000{i}-of-00002.safetensors"
        for i, word in enumerate("ab")
    }
    for key, file in shards.items():
        save(unet / file, {key: (100, 10)})
    (unet / f"{WEIGHTS}.index{variant}.json").write_text(json.dumps({"weight_map": shards}))
    (info,) = registry(tmp_path).all()
    assert (info.parts["unet"], info.dtype) == (4000, "F16")
    (unet / shards["b.weight"]).unlink()
    assert "of-00002.safetensors is missing" in broken(tmp_path).detail


def test_a_missing_part_and_a_cut_off_one_are_named(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    weights = tmp_path / "tiny" / "vae" / WEIGHTS
    os.truncate(weights, weights.stat().st_size - 5)
    assert "vae/" in broken(tmp_path).detail
    assert "cut off" in broken(tmp_path).detail
    weights.unlink()
    assert "no weights in tiny/vae" in broken(tmp_path).detail


# names and folders


def test_the_earlier_folder_wins_and_a1111s_folder_is_no_part_of_the_name(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tiny", tmp_path / "Stable-diffusion" / "sub" / "other")
    shutil.copytree(models / "tiny", tmp_path / "tiny")
    found = registry(tmp_path, models)
    assert sorted(names(found)) == ["sub/other", "tiny"]
    assert found.get("tiny").path.is_relative_to(tmp_path)


def test_files_are_called_by_their_path_below_the_folder_of_their_kind(tmp_path: Path) -> None:
    save(tmp_path / "Stable-diffusion" / "anime" / "dream.safetensors", SD1)
    save(tmp_path / "Lora" / "a" / "b" / "hat.safetensors", LORA)
    save(tmp_path / "VAE" / "v.safetensors", VAE4)
    save(tmp_path / "loose.safetensors", SD1)
    save(tmp_path / "my own" / "x.safetensors", SD1)
    found = registry(tmp_path)
    assert sorted(names(found)) == ["anime/dream.safetensors", "loose.safetensors", "my own/x.safetensors"]
    assert names(found, Kind.LORA) == ["a/b/hat.safetensors"]
    assert names(found, Kind.VAE) == ["v.safetensors"]


def test_what_a_file_is_does_not_depend_on_its_folder(tmp_path: Path) -> None:
    save(tmp_path / "Stable-diffusion" / "hat.safetensors", LORA)
    assert names(registry(tmp_path), Kind.LORA) == ["hat.safetensors"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("models/Stable-diffusion/a.safetensors", "a.safetensors"),
        ("models/checkpoints/sub/a.safetensors", "sub/a.safetensors"),
        ("models/diffusion_models/a.safetensors", "a.safetensors"),
        ("models/sd-1/main/a.safetensors", "a.safetensors"),
        ("autoimport/main/a.safetensors", "a.safetensors"),
    ],
)
def test_the_folders_of_other_applications_are_linked(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    save(tmp_path / file, SD1)
    assert names(registry(tmp_path)) == [name]


def test_a1111s_embeddings_lie_beside_its_models(tmp_path: Path) -> None:
    save(tmp_path / "models" / "Lora" / "hat.safetensors", LORA)
    save(tmp_path / "embeddings" / "sub" / "bad.safetensors", {"emb_params": (4, 768)})
    found = registry(tmp_path)
    assert names(found, Kind.EMBEDDING) == ["sub/bad.safetensors"]
    assert names(found, Kind.LORA) == ["hat.safetensors"]


def test_previews_hidden_folders_and_approximations_are_no_models(tmp_path: Path) -> None:
    for place in ("Lora/.cache/x.safetensors", "VAE-approx/vaeapprox.pt", "Lora/x.png", "Lora/._x.safetensors"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    assert registry(tmp_path).models() == []


def test_a_hidden_file_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for root in ("one", "two"):
        save(tmp_path / root / "Lora" / "hat.safetensors", LORA)
    found = registry(tmp_path / "one", tmp_path / "two")
    found.scan()
    assert [info.path.parts[-3] for info in found.all(Kind.LORA)] == ["one"]
    assert caplog.text.count("is hidden by") == 1


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    save(tmp_path / "disk" / "far.safetensors", SD1)
    (tmp_path / "models" / "Lora").mkdir(parents=True)
    (tmp_path / "models" / "Lora" / "round").symlink_to(tmp_path / "models")
    (tmp_path / "models" / "Stable-diffusion").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path)
    assert names(registry(tmp_path / "models")) == ["far.safetensors"]


def test_a_folder_that_is_not_there_is_told_and_found_when_it_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = registry(tmp_path / "drive")
    assert "drive" in caplog.text
    assert not found.stale()
    save(tmp_path / "drive" / "a.safetensors", SD1)
    assert found.stale()
    found.scan()
    assert names(found) == ["a.safetensors"]


# odd files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.safetensors", b"", "empty"),
        ("a.safetensors", b"<html>Log in</html>", "web page"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("a.ckpt", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", r"asks to run os.system"),
        ("a.pt", b"garbage that is long enough", "damaged"),
        ("a.gguf", b"GGUF\x01\x00\x00\x00" + bytes(32), "version 1"),
        ("a.bin", b"\0" * 100, "zeros"),
    ],
)
def test_a_broken_file_is_listed_with_one_sentence(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    info = broken(tmp_path)
    assert info.name == name
    assert words in info.detail
    assert registry(tmp_path).all() == []


def test_files_that_cannot_be_opened_are_listed(tmp_path: Path) -> None:
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert "leads nowhere" in broken(tmp_path).detail
    (tmp_path / "gone.safetensors").unlink()
    (tmp_path / "folder.safetensors").mkdir()
    assert "folder" in broken(tmp_path).detail
    (tmp_path / "folder.safetensors").rmdir()
    os.mkfifo(tmp_path / "pipe.ckpt")
    assert "no ordinary file" in broken(tmp_path).detail


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_listed_and_known_when_it_is_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", SD1)
    path.chmod(0)
    assert "cannot be read" in broken(tmp_path).detail


def test_a_name_that_is_no_text_is_listed(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.safetensors"
    try:
        os.close(os.open(path, os.O_CREAT))
    except OSError:
        pytest.skip("this file system wants UTF-8")
    info = broken(tmp_path)
    assert "UTF-8" in info.detail
    assert ModelInfo.model_validate_json(info.model_dump_json()) == info


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_a_planted_program_never_runs_and_is_listed_as_broken(suffix: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"state_dict": {"a": torch.zeros(1)}, "callbacks": Payload()}, tmp_path / f"a{suffix}")
    assert re.search(r"asks to run (posix|nt)\.system", broken(tmp_path).detail)
    assert not marker.exists()


def test_a_piece_of_a_network_is_listed_as_unknown(tmp_path: Path) -> None:
    save(tmp_path / "text_encoder" / "model-00001-of-00002.safetensors", QWEN3_4B)
    (info,) = registry(tmp_path).models()
    assert info.kind == Kind.UNKNOWN
    assert "one of several pieces" in info.detail


def test_a_gguf_transformer_is_a_checkpoint(tmp_path: Path) -> None:
    save_gguf(tmp_path / "flux1-dev-Q4_K_S.gguf", FLUX, "flux")
    (info,) = registry(tmp_path).all()
    assert (info.family, info.variant, info.format, info.dtype) == ("flux", "dev", Format.GGUF, "Q4_K")


# changes


def test_new_changed_and_deleted_files_are_seen(tmp_path: Path) -> None:
    found = registry(tmp_path)
    calls: list[int] = []
    found.on_change = lambda: calls.append(len(found.models()))
    save(tmp_path / "Lora" / "a.safetensors", LORA)
    assert found.stale()
    assert found.scan()
    assert not found.scan()
    assert not found.stale()
    save(tmp_path / "Lora" / "a.safetensors", VAE4)
    assert found.scan()
    assert (names(found, Kind.LORA), names(found, Kind.VAE)) == ([], ["a.safetensors"])
    (tmp_path / "Lora" / "a.safetensors").unlink()
    assert found.scan()
    assert calls == [1, 1, 0]


def test_a_file_that_is_still_being_copied_is_known_later(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", SD1)
    whole = path.stat().st_size
    os.truncate(path, whole // 2)
    found = registry(tmp_path, cache=tmp_path / "cache.sqlite")
    assert "not finished" in found.models()[0].detail
    os.truncate(path, whole)
    assert found.stale()
    assert found.scan()
    assert names(found) == ["a.safetensors"]


def test_a_watcher_finds_and_hashes_new_files(tmp_path: Path) -> None:
    found = registry(tmp_path)
    done = threading.Event()

    def look() -> None:
        if found.all() and found.all()[0].sha256:
            done.set()

    found.on_change = look
    watcher = Watcher(found, seconds=0.01)
    watcher.start()
    path = save_header(tmp_path / "a.safetensors", small(), 8)
    assert done.wait(30)
    watcher.close()
    assert found.get("a").sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def small() -> bytes:
    """The header of a checkpoint of eight bytes."""
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": {"dtype": "F16", "shape": [1, 4, 1, 1], "data_offsets": [0, 8]}
    }
    return json.dumps(tensors).encode()


# the cache


def test_findings_and_sums_outlive_the_process(models: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "models.sqlite"
    save_header(tmp_path / "m" / "Lora" / "a.safetensors", small(), 8)
    first = registry(models, tmp_path / "m", cache=cache)
    first.hash_all()
    second = registry(models, tmp_path / "m", cache=cache)
    assert second.get("tiny").sha256
    assert second.models() == first.models()


def test_a_known_file_is_not_opened_again(tmp_path: Path) -> None:
    """Its content is another, its size and time are the same."""
    path = save(tmp_path / "m" / "a.safetensors", LORA)
    status = path.stat()
    registry(tmp_path / "m", cache=tmp_path / "c.sqlite")
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert names(registry(tmp_path / "m", cache=tmp_path / "c.sqlite"), Kind.LORA) == ["a.safetensors"]
    os.utime(path)
    assert names(registry(tmp_path / "m", cache=tmp_path / "c.sqlite"), Kind.LORA) == []


def test_findings_of_other_rules_are_forgotten_and_sums_are_kept(tmp_path: Path) -> None:
    path, cache = save_header(tmp_path / "m" / "a.safetensors", small(), 8), tmp_path / "c.sqlite"
    registry(tmp_path / "m", cache=cache).hash_all()
    with sqlite3.connect(cache) as db:
        db.execute("UPDATE meta SET rules = 'old'")
        db.execute("""UPDATE findings SET json = replace(json, '"sd1"', '"sd0"')""")
    (info,) = registry(tmp_path / "m", cache=cache).all()
    assert (info.family, info.sha256) == ("sd1", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("damage", [b"not a database" * 99, b"", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_cache_is_made_anew(damage: bytes, tmp_path: Path) -> None:
    save(tmp_path / "m" / "a.safetensors", SD1)
    (tmp_path / "c.sqlite").write_bytes(damage)
    assert names(registry(tmp_path / "m", cache=tmp_path / "c.sqlite")) == ["a.safetensors"]
    with sqlite3.connect(tmp_path / "c.sqlite") as db:
        assert db.execute("SELECT count(*) FROM files").fetchone() == (1,)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    save(tmp_path / "m" / "a.safetensors", SD1)
    (tmp_path / "file").write_bytes(b"")
    assert names(registry(tmp_path / "m", cache=tmp_path / "file" / "c.sqlite")) == ["a.safetensors"]


def test_hashes_are_computed_once_and_kept_over_a_scan(models: Path) -> None:
    found = registry(models)
    found.hash_all()
    digest = hashlib.sha256((models / "tiny" / "unet" / WEIGHTS).read_bytes()).hexdigest()
    assert found.get("tiny").sha256 == digest
    assert found.get("tiny").title == f"tiny [{digest[:10]}]"
    found.scan()
    assert found.get("tiny").sha256 == digest


def test_hashing_can_be_stopped(models: Path) -> None:
    found, stop = registry(models), threading.Event()
    stop.set()
    found.hash_all(stop)
    assert found.get("tiny").sha256 is None


# looking up


@pytest.fixture
def few(tmp_path: Path) -> Registry:
    for name in ("anime/Dream.safetensors", "photo/real.safetensors", "zed.ckpt.safetensors"):
        save_header(tmp_path / "Stable-diffusion" / name, small(), 8)
    with (tmp_path / "Stable-diffusion" / "photo" / "real.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    found = registry(tmp_path)
    found.hash_all()
    return found


def test_a_checkpoint_is_found_by_name_stem_title_and_hash(few: Registry) -> None:
    info = next(info for info in few.all() if info.name == "photo/real.safetensors")
    digest = info.sha256 or ""
    for name in (
        info.name,
        "photo/real",
        "real",
        "real.safetensors",
        info.title,
        digest,
        digest[:8],
        digest[:10].upper(),
        "photo/real.safetensors [0000000000]",
        "PHOTO/REAL.SAFETENSORS",
        "Real",
    ):
        assert few.get(name) == info, name
    assert few.get("dream").name == "anime/Dream.safetensors"


def test_an_empty_name_is_the_first_and_an_unknown_one_names_the_choices(models: Path, tmp_path: Path) -> None:
    assert registry(models).get("").name == "tiny"
    with pytest.raises(ModelNotFound, match="There are: tiny"):
        registry(models).get("nope")
    with pytest.raises(ModelNotFound, match="Put one there"):
        registry(tmp_path).get("")


def test_of_many_only_the_nearest_are_named(tmp_path: Path) -> None:
    for i in range(50):
        save(tmp_path / f"thing{i}.safetensors", LORA)
    save(tmp_path / "dreamshaper_8.safetensors", LORA)
    found = registry(tmp_path)
    with pytest.raises(ModelNotFound, match=r"There are: dreamshaper_8\.safetensors\.$"):
        found.find(Kind.LORA, "dreamshaper8")
    with pytest.raises(ModelNotFound) as error:
        found.find(Kind.LORA, "qqqqqq")
    assert len(str(error.value)) < 200


def test_a_broken_file_and_one_of_another_kind_say_why_they_are_not_found(models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    save(tmp_path / "hat.safetensors", LORA)
    found = registry(tmp_path, models)
    with pytest.raises(ModelNotFound, match=r"broken\. It is empty"):
        found.get("a.safetensors")
    with pytest.raises(ModelNotFound, match=r"hat\.safetensors is lora"):
        found.get("hat")


def test_only_what_fits_a_family_is_found(tmp_path: Path) -> None:
    save(tmp_path / "hat.safetensors", LORA)
    assert registry(tmp_path).find(Kind.LORA, "hat", "sd1").name == "hat.safetensors"
    with pytest.raises(ModelNotFound):
        registry(tmp_path).find(Kind.LORA, "hat", "sdxl")


# companions


def chosen(found: Registry, name: str, vae: str = "Automatic", encoders: tuple[str, ...] = ()) -> dict[str, str]:
    return {part: info.name for part, info in found.companions(found.get(name), vae, encoders).items()}


def test_a_whole_checkpoint_needs_nothing(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", SD1)
    save(tmp_path / "b.safetensors", SDXL)
    save(tmp_path / "VAE" / "other.safetensors", VAE4)
    found = registry(tmp_path)
    assert chosen(found, "a") == {}
    assert chosen(found, "b") == {}


def test_a_vae_of_sd1_is_not_taken_for_sdxl_by_itself(tmp_path: Path) -> None:
    """Both have the same shapes, but the numbers of one are noise to the other."""
    unet = {name: shape for name, shape in SDXL.items() if not name.startswith("first_stage_model.")}
    save(tmp_path / "bare.safetensors", unet)
    save(tmp_path / "VAE" / "vae-ft-mse-840000-ema-pruned.safetensors", VAE4)
    with pytest.raises(ModelNotFound, match="VAE"):
        chosen(registry(tmp_path), "bare")
    assert chosen(registry(tmp_path), "bare", "vae-ft-mse-840000-ema-pruned")["vae"], "who asks for it gets it"
    save(tmp_path / "VAE" / "sdxl_vae.safetensors", VAE4)
    assert chosen(registry(tmp_path), "bare")["vae"] == "sdxl_vae.safetensors"


def test_what_a_transformer_lacks_is_chosen_by_kind(tmp_path: Path) -> None:
    save(tmp_path / "unet" / "flux1-dev.safetensors", FLUX, "BF16")
    save(tmp_path / "unet" / "z.safetensors", Z_IMAGE, "BF16")
    save(tmp_path / "VAE" / "ae.safetensors", VAE16)
    save(tmp_path / "VAE" / "sd3_vae.safetensors", VAE16)
    save(tmp_path / "VAE" / "a_small.safetensors", VAE4)
    save(tmp_path / "text_encoder" / "clip_l.safetensors", CLIP_L)
    save(tmp_path / "text_encoder" / "t5.safetensors", T5)
    save(tmp_path / "text_encoder" / "qwen.safetensors", QWEN3_4B)
    found = registry(tmp_path)
    assert chosen(found, "flux1-dev") == {
        "vae": "ae.safetensors",
        "text_encoder": "clip_l.safetensors",
        "text_encoder_2": "t5.safetensors",
    }
    assert chosen(found, "z") == {"vae": "ae.safetensors", "text_encoder": "qwen.safetensors"}


def test_what_is_missing_is_named_with_where_to_put_it(tmp_path: Path) -> None:
    save(tmp_path / "flux1-dev.safetensors", FLUX, "BF16")
    save(tmp_path / "ae.safetensors", VAE16)
    save(tmp_path / "clip_l.safetensors", CLIP_L)
    with pytest.raises(ModelNotFound) as error:
        chosen(registry(tmp_path), "flux1-dev")
    assert str(error.value) == (
        "flux1-dev.safetensors needs a T5-XXL text encoder. "
        "Put one, such as t5xxl_fp16.safetensors, into models/text_encoder."
    )


def test_sd3_draws_without_t5(tmp_path: Path) -> None:
    whole = {**below("model.diffusion_model.", SD3), **below("first_stage_model.", VAE16)}
    whole |= below("text_encoders.clip_l.transformer.", CLIP_L)
    whole |= {"text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (5120, 1280)}
    save(tmp_path / "sd3.safetensors", whole)
    assert chosen(registry(tmp_path), "sd3") == {}
    save(tmp_path / "t5.safetensors", T5)
    assert chosen(registry(tmp_path), "sd3") == {"text_encoder_3": "t5.safetensors"}


def test_the_vae_is_chosen_as_in_a1111(tmp_path: Path) -> None:
    save(tmp_path / "Stable-diffusion" / "a.safetensors", SD1)
    save(tmp_path / "VAE" / "a.safetensors", VAE4)
    save(tmp_path / "VAE" / "b.safetensors", VAE4)
    save(tmp_path / "VAE" / "sdxl_vae.safetensors", VAE4)
    save(tmp_path / "VAE" / "ae.safetensors", VAE16)
    assert chosen(registry(tmp_path), "a") == {"vae": "a.safetensors"}
    save(tmp_path / "Stable-diffusion" / "a.vae.safetensors", VAE4)
    found = registry(tmp_path)
    assert chosen(found, "a") == {"vae": "a.vae.safetensors"}
    assert chosen(found, "a", "b") == {"vae": "b.safetensors"}
    assert chosen(found, "a", "None") == {}
    for unsuitable in ("sdxl_vae", "ae"):
        with pytest.raises(BadModel, match="does not fit"):
            chosen(found, "a", unsuitable)
    with pytest.raises(ModelNotFound, match="no vae named"):
        chosen(found, "a", "zzz")


def test_a_checkpoint_without_a_vae_takes_one(tmp_path: Path) -> None:
    save(tmp_path / "bare.safetensors", {**SDXL_UNET})
    save(tmp_path / "bare1.safetensors", {**SD1_UNET, **below("cond_stage_model.transformer.", CLIP_L)})
    save(tmp_path / "VAE" / "sdxl_vae.safetensors", VAE4)
    found = registry(tmp_path)
    with pytest.raises(ModelNotFound, match="needs a VAE of 4 channels"):
        chosen(found, "bare1")
    save(tmp_path / "VAE" / "any.safetensors", VAE4)
    found.scan()
    assert chosen(found, "bare1") == {"vae": "any.safetensors"}
    with pytest.raises(ModelNotFound, match="CLIP-L"):
        chosen(found, "bare")


def test_named_text_encoders_are_taken_and_wrong_ones_refused(tmp_path: Path) -> None:
    save(tmp_path / "flux.safetensors", FLUX, "BF16")
    save(tmp_path / "ae.safetensors", VAE16)
    save(tmp_path / "clip_l.safetensors", CLIP_L)
    for name in ("t5_a", "t5_b"):
        save(tmp_path / f"{name}.safetensors", T5)
    save(tmp_path / "qwen.safetensors", QWEN3_4B)
    found = registry(tmp_path)
    assert chosen(found, "flux", encoders=("t5_b",))["text_encoder_2"] == "t5_b.safetensors"
    with pytest.raises(BadModel, match=r"qwen3_4b; flux\.safetensors reads with clip_l and t5xxl"):
        chosen(found, "flux", encoders=("qwen",))
