"""What the denoiser of a pass is told, seen in pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from pydantic import ValidationError

from pipelines.briefing import briefed, runs
from pipelines.families.sd1 import SD1
from pipelines.generate import batches
from pipelines.kit import SoloKit
from pipelines.request import GenerationRequest, Hires, Variant
from pipelines.stages import stages
from tests.drawing import draw


@pytest.fixture(scope="module")
def model(tiny: Path) -> SD1:
    return SD1.load(tiny, torch.device("cpu"))


def request(prompt: str = "a cat", **values: Any) -> GenerationRequest:
    defaults = {"prompt": prompt, "negative_prompt": "rain", "width": 64, "height": 64, "steps": 4, "seed": 5}
    return GenerationRequest(**{**defaults, **values})


def difference(one: PIL.Image.Image, other: PIL.Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def near(one: PIL.Image.Image, other: PIL.Image.Image) -> bool:
    """Up to rounding."""
    return difference(one, other) <= 1


def picture(model: SD1, prompt: str, **values: Any) -> PIL.Image.Image:
    return draw(model, request(prompt, **values))[0]


def drawn(model: SD1, prompt: str, **values: Any) -> bytes:
    return picture(model, prompt, **values).tobytes()


def test_what_comes_to_the_same(model: SD1) -> None:
    plain = drawn(model, "a cat")
    assert near(picture(model, "a cat AND a dog:0"), picture(model, "a cat"))
    assert drawn(model, "[a cat:a dog:4]") == plain
    assert drawn(model, "[a cat|a cat] # and a dog") == plain
    assert drawn(model, "(a cat:1)") == plain
    assert drawn(model, "a [:cat:0]") == plain


def test_what_does_not(model: SD1) -> None:
    texts = ("a cat", "a [cat:dog:2]", "a [cat:dog:3]", "a [cat|dog]", "a cat AND a dog", "a cat: 1.5", "a BREAK cat")
    assert len({drawn(model, text) for text in texts}) == len(texts)
    assert drawn(model, "a cat", negative_prompt="[rain:snow:2]") != drawn(model, "a cat")


def test_weights_that_sum_to_zero_do_no_harm(model: SD1) -> None:
    """Towards one as far as away from the other: something is still drawn."""
    for scale in (7.0, 1.0):
        assert np.asarray(picture(model, "a AND b:-1", cfg_scale=scale)).std() > 1


def test_without_guidance_parts_whose_weights_sum_to_one_are_mixed(model: SD1) -> None:
    """That needs no negative prompt; other weights do."""
    mixed = [drawn(model, "a:0.5 AND b:0.5", cfg_scale=1, negative_prompt=text) for text in ("rain", "snow")]
    assert mixed[0] == mixed[1]
    strong = [drawn(model, "a AND b", cfg_scale=1, negative_prompt=text) for text in ("rain", "snow")]
    assert strong[0] != strong[1]
    assert near(picture(model, "a:0.5 AND a:0.5", cfg_scale=1), picture(model, "a", cfg_scale=1))


def test_times_go_on_in_the_second_pass() -> None:
    asked = request("[a:b:0.5] [c:d:1.5] [e:f:6]", hires=Hires(steps=4))
    first, second = ([stage.timeline.last_step(when) for when in ("0.5", "1.5", "6")] for stage in stages(asked))
    assert (first, second) == ([2, 4, 4], [0, 2, 2])


VARIANTS = (
    Variant(prompt="a red cat", negative_prompt="rain"),
    Variant(prompt="[a blue dog:a bird:2]", negative_prompt="snow, fog"),
    Variant(prompt="y" * 60, negative_prompt=""),
    Variant(prompt="x" * 90, negative_prompt="fog"),
)


def test_each_image_of_a_batch_may_have_its_own_prompts(model: SD1) -> None:
    together = draw(model, request(batch_size=4, variants=VARIANTS))
    for unit, variant in enumerate(VARIANTS):
        alone = draw(model, request(variant.prompt, negative_prompt=variant.negative_prompt, seed=5 + unit))[0]
        assert near(together[unit], alone)
    others = draw(model, request(batch_size=4))
    assert not any(near(together[unit], others[unit]) for unit in range(4))


def test_images_with_prompts_of_one_shape_are_made_at_once(model: SD1) -> None:
    """Two networks cannot be in one batch, nor prompts of different length: they would be filled up."""
    prompts = ("a <lora:x:1>", "b <lora:x:1>", "c <lora:y:1>", "d", "e AND f", "g AND h:2", "i AND j:2", "k" * 80)
    asked = request(batch_size=4, batch_count=2, variants=tuple(Variant(prompt=prompt) for prompt in prompts))
    assert [batch.units for batch in batches(asked, range(8), SoloKit(model))] == [
        range(0, 2),
        range(2, 3),
        range(3, 4),
        range(4, 5),
        range(5, 7),
        range(7, 8),
    ]
    assert runs(request(batch_size=4), range(4), SoloKit(model)) == [range(4)]


def test_there_is_a_variant_for_each_image() -> None:
    with pytest.raises(ValidationError, match="there are 4 for 2 images"):
        request(batch_size=2, variants=VARIANTS)


def test_all_texts_of_a_batch_are_encoded_at_once(model: SD1) -> None:
    seen: list[int] = []
    hook = model.text_encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output[0])))
    asked = request(batch_size=3, variants=VARIANTS[:3])
    with briefed(asked, stages(asked)[0], SoloKit(model), range(3)) as told:
        hook.remove()
    assert seen == [7], "seven texts"
    assert told.at(0, 3).away == (False,) * 3 + (True,) * 3
    with pytest.raises(ValueError, match="3 images"):
        told.at(0, 2)


def test_what_cannot_be_done_is_noted(model: SD1) -> None:
    kit = SoloKit(model)
    draw(kit, request("a <hypernet:x:1>", batch_count=2, steps=1))
    assert set(kit.notes) == {"Hypernetworks are not supported: <hypernet:x:1> is left out."}
