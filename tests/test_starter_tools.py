"""The tools that make the starter model: captions, token table, schedule, score and installation."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("resvg_py", reason="only in the dependency group `starter`")

from tools.starter.captions import STYLE_WORDS, caption
from tools.starter.checkpoint import Checkpoint, Progress, restore_moments, save_checkpoint
from tools.starter.concepts import read_concepts
from tools.starter.data import is_wanted
from tools.starter.evaluate import plan, rate
from tools.starter.install import LowerScore, replace_model
from tools.starter.latents import Labels, TrainingSet
from tools.starter.pictures import HUES, SIDE, Picture, dominant_hue, draw_icon, lay_on, line_art, recolor
from tools.starter.schedule import Clock, rate_factor
from tools.starter.tokens import CLIP_VOCABULARY, UNKNOWN, TokenTable
from tools.starter.unet import add_noise, stratified_times

CAR = Picture(name="automobile", tags=("car", "vehicle"), style="3d", color="red", weight=1.0)
DISC = '<circle cx="16" cy="16" r="12" fill="#f00" stroke="#000"/>'


@pytest.fixture
def tokens() -> TokenTable:
    return TokenTable.of(np.array([[49406, 320, 49407], [49406, 1615, 49407]]))


def captions_of(picture: Picture, aliases: tuple[str, ...] = ()) -> list[str]:
    chance = random.Random(1)
    return [caption(picture, aliases, chance) for _ in range(300)]


def test_a_recolored_picture_always_names_its_color() -> None:
    blue = CAR.model_copy(update={"color": "blue", "recolored": True})
    assert all("blue" in words for words in captions_of(blue))


def test_another_color_takes_the_place_of_the_one_in_the_name() -> None:
    apple = Picture(name="red apple", tags=(), style="3d", color="green", recolored=True, weight=1.0)
    for words in captions_of(apple):
        assert "green apple" in words
        assert "red" not in words.split()


def test_line_art_and_backgrounds_are_always_named() -> None:
    line = CAR.model_copy(update={"style": "line", "color": None, "background": "yellow"})
    for words in captions_of(line):
        assert "yellow background" in words
        assert any(style in words for style in STYLE_WORDS["line"])


def test_aliases_are_used_beside_the_name() -> None:
    words = " | ".join(captions_of(CAR.model_copy(update={"tags": ()}), aliases=("motor car",)))
    assert "motor car" in words
    assert "automobile" in words


def test_every_alias_belongs_to_a_concept_and_the_lists_do_not_overlap() -> None:
    concepts = read_concepts()
    assert concepts.aliases.keys() <= concepts.wide
    assert not concepts.first & concepts.added
    assert len(concepts.named("first")) == 181


@pytest.mark.parametrize(
    ("name", "group", "subgroup", "wanted"),
    [
        ("red apple", 4, "food-fruit", True),
        ("man mage", 1, "person-fantasy", False),
        ("mage", 1, "person-fantasy", True),
        ("three o’clock", 5, "time", False),
        ("input numbers", 8, "alphanum", False),
    ],
)
def test_which_emoji_are_drawn(name: str, group: int, subgroup: str, wanted: bool) -> None:
    assert is_wanted(name, group, subgroup) is wanted


def test_a_red_disc_is_found_red_and_turns_blue() -> None:
    red = draw_icon(DISC)
    hue, word = dominant_hue(red)
    assert word == "red"
    blue = lay_on(recolor(red, hue, "blue"), "#ffffff")
    assert blue.shape == (SIDE, SIDE, 3)
    assert blue[64, 64, 2] > blue[64, 64, 0]
    assert HUES["blue"] == 216


def test_line_art_is_white_with_an_outline() -> None:
    body = line_art(DISC)
    assert 'fill="#fff"' in body
    assert 'stroke="#000"' not in body
    assert (draw_icon(body)[64, 64] == 255).all()


def test_token_rows_come_back_after_shrinking_and_growing(tokens: TokenTable) -> None:
    big = torch.zeros(CLIP_VOCABULARY, 4)
    big[torch.from_numpy(tokens.clip_ids)] = torch.randn(4, 4)
    small = tokens.compact_rows(big)
    assert small.shape == (tokens.rows, 4)
    assert torch.equal(tokens.expand_rows(small), big)


def test_rows_that_were_never_trained_start_as_noise(tokens: TokenTable) -> None:
    small = tokens.compact_rows(torch.zeros(CLIP_VOCABULARY, 4))
    assert small[UNKNOWN].abs().sum() == 0
    assert (small[1:].abs().sum(1) > 0).all()


def test_a_token_of_no_caption_is_unknown(tokens: TokenTable) -> None:
    assert tokens.compact(np.array([320, 321, 49407, 0])).tolist() == [1, UNKNOWN, 4, UNKNOWN]


def test_the_rate_warms_up_stays_and_falls() -> None:
    assert rate_factor(0.0, 0) == pytest.approx(1 / 150)
    assert rate_factor(0.4, 1000) == 1.0
    assert 0.4 < rate_factor(0.7, 1000) < 0.6
    assert rate_factor(1.0, 1000) == pytest.approx(0.02)


def test_a_pause_shortens_the_training_but_not_the_clock() -> None:
    clock = Clock.lasting(now=1000.0, minutes=10)
    assert clock.progress(1300.0) == 0.5
    assert clock.progress(9999.0) == 1.0
    assert clock.progress(0.0) == 0.0


def test_noise_and_v_give_the_latents_back() -> None:
    latents, noise = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    alphas = torch.tensor([0.9, 0.1]).view(-1, 1, 1, 1)
    noisy, v = add_noise(latents, noise, alphas)
    assert torch.allclose(alphas.sqrt() * noisy - (1 - alphas).sqrt() * v, latents, atol=1e-5)


def test_every_part_of_the_noise_range_is_trained_in_each_batch() -> None:
    assert sorted((stratified_times(10) // 100).tolist()) == list(range(10))


def test_a_checkpoint_brings_networks_and_moments_back(tmp_path: Path, tokens: TokenTable) -> None:
    torch.manual_seed(0)
    networks, others = nn.Linear(3, 2), nn.Linear(3, 2)
    adam = torch.optim.AdamW(networks.parameters())
    torch.autograd.backward(networks(torch.ones(1, 3)).sum())
    adam.step()
    progress = Progress(step=7, clock=Clock(start=1.0, deadline=2.0))
    save_checkpoint(tmp_path / "a.safetensors", progress, tokens, {"unet": networks}, adam)

    found = Checkpoint(tmp_path / "a.safetensors")
    others.load_state_dict(found.part("unet"))
    other_adam = torch.optim.AdamW(others.parameters())
    restore_moments(other_adam, found.part("adam"))
    assert found.progress == progress
    assert np.array_equal(found.tokens.clip_ids, tokens.clip_ids)
    assert torch.equal(others.weight, networks.weight)
    assert torch.equal(other_adam.state[others.weight]["exp_avg"], adam.state[networks.weight]["exp_avg"])


def test_a_drawing_counts_as_the_concept_of_the_nearest_training_picture(tokens: TokenTable) -> None:
    latents = torch.zeros(3, 4, 16, 16) + torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    labels = Labels(names=("cat", "dog", "owl"), styles=("3d", "line", "3d"))
    nothing = torch.zeros(1)
    data = TrainingSet(latents, nothing, nothing, nothing, nothing, tokens, labels)
    tasks = [task for task in plan(["cat", "dog", "owl"], 3) if task.style == "3d"]
    drawn = torch.stack([latents[0], latents[1] + 0.1, latents[0] + 0.2]).flatten(1)
    score = rate(drawn, tasks, data, frozenset({"cat", "dog", "owl"}))
    assert score.top1 == pytest.approx(2 / 3)
    assert score.top5 == 1.0
    assert score.style == pytest.approx(2 / 3)
    assert rate(drawn, tasks, data, frozenset({"cat", "owl"})).concepts == 2


def test_the_plan_draws_flags_as_they_are_and_some_names_in_more_styles() -> None:
    tasks = plan(["flag of japan", "cat", "dog", "owl", "fox"], 5)
    assert [task.prompt for task in tasks if task.style == "flag"] == ["flag of japan"]
    assert tasks == plan(["fox", "owl", "dog", "cat", "flag of japan"], 5)
    assert [task.prompt for task in tasks[:2]] == ["cat, 3d render", "cat, flat icon"]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A new model that scores 0.5 and the present one, with a note, that scores 0.8."""
    new, present = tmp_path / "starter.new", tmp_path / "starter"
    for folder, score in ((new, "0.5"), (present, "0.8")):
        folder.mkdir()
        (folder / "score").write_text(score)
    (present / "README.md").write_text("a note")
    return new, present


def read_score(folder: Path) -> float:
    return float((folder / "score").read_text())


def test_a_worse_model_is_refused_and_nothing_changes(folders: tuple[Path, Path]) -> None:
    new, present = folders
    with pytest.raises(LowerScore, match="--force"):
        replace_model(new, present, read_score)
    assert read_score(present) == 0.8
    assert read_score(new) == 0.5


def test_force_installs_a_worse_model_and_keeps_the_notes(folders: tuple[Path, Path]) -> None:
    new, present = folders
    replace_model(new, present, read_score, force=True)
    assert read_score(present) == 0.5
    assert (present / "README.md").read_text() == "a note"
    assert sorted(path.name for path in present.parent.iterdir()) == ["starter"]


def test_a_better_model_is_installed(folders: tuple[Path, Path]) -> None:
    new, present = folders
    (new / "score").write_text("0.9")
    replace_model(new, present, read_score)
    assert read_score(present) == 0.9
