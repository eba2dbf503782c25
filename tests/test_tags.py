"""What a prompt asks for beside its words."""

import pytest

from pipelines.prompt import LoraUse, loras_in, names_in, worded
from pipelines.prompt.tags import untagged


@pytest.mark.parametrize(
    ("tag", "use"),
    [
        ("<lora:x>", LoraUse("x", 1, 1)),
        ("<lora:x:0.5>", LoraUse("x", 0.5, 0.5)),
        ("<lora:sub/x.y:0.5:.8>", LoraUse("sub/x.y", 0.5, 0.8)),
        ("<lora:x:te=0.5>", LoraUse("x", 0.5, 0.5)),
        ("<lora:x:0.5:unet=0>", LoraUse("x", 0.5, 0)),
        ("<lora:x:unet=-2>", LoraUse("x", 1, -2)),
        ("<LyCO: x : 2 >", LoraUse("x", 2, 2)),
        ("<lora:x:5000>", LoraUse("x", 100, 100)),
    ],
)
def test_loras(tag: str, use: LoraUse) -> None:
    assert untagged(f"a {tag} cat") == ("a  cat", (use,), ())


@pytest.mark.parametrize("text", ["<b", "a < b: c > d", "<x:y>", "<:a>", "<lora>", "<lora:>", "1 <lora:x", "<a:<b:c>>"])
def test_other_tags_are_text(text: str) -> None:
    assert untagged(text) == (text, (), ())


@pytest.mark.parametrize("tag", ["<hypernet:x:1>", "<lora: :1>", "<lora:x:much>", "<lora:x:nan>", "<lora:x:1:1:8>"])
def test_what_cannot_be_done_is_said(tag: str) -> None:
    wording = worded(f"a {tag}", "", 3)
    assert wording.texts[0] == "a"
    assert len(wording.notes) == 1
    assert tag in wording.notes[0]


def test_names_are_told_once() -> None:
    assert names_in("<lora:b:1><lora:a:1>", "<lora:b:0.5> c", "") == ("b", "a")
    assert [lora.te for lora in loras_in("<lora:b:1> <lora:b:0.5>")] == [1, 0.5]
