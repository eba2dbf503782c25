"""Noise that belongs to an image: sources, variations, other sizes, paths."""

from typing import Any

import numpy as np
import pytest
import torch
import torchsde
from torch import Tensor

from pipelines.request import GenerationRequest, Noise
from pipelines.samplers import ImageNoise
from pipelines.samplers.brownian import BrownianPath
from pipelines.samplers.noise import slerp
from pipelines.samplers.philox import Philox, philox

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)


def drawn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def first(seed: int = 7, shape: tuple[int, ...] = SHAPE, **options: Any) -> Tensor:
    others = {name: options.pop(name) for name in ("variations", "resized") if name in options}
    return ImageNoise(shape, [seed], CPU, Noise(**options), **others)()[0]


@pytest.mark.parametrize("rng", ["CPU", "GPU", "NV"])
def test_noise_belongs_to_the_image(rng: Any) -> None:
    options: dict[str, Any] = {"options": Noise(rng=rng), "span": (0.1, 10.0)}
    together = ImageNoise(SHAPE, [7, 8, 9], CPU, **options)
    alone = [ImageNoise(SHAPE, [seed], CPU, **options) for seed in (7, 8, 9)]
    draws = []
    for _ in range(3):
        draws.append(together())
        assert torch.equal(draws[-1], torch.cat([noise() for noise in alone]))
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(together.between(5.0, 2.0), torch.cat([noise.between(5.0, 2.0) for noise in alone]))
    assert not torch.equal(*together.between(5.0, 2.0)[:2])


def test_by_default_it_is_what_torch_draws_for_the_seed() -> None:
    assert torch.equal(first(), drawn(7))


def test_a_variation_of_no_strength_is_the_picture_itself() -> None:
    assert torch.equal(first(variation_strength=0.0, variation_seed=9, variations=[9]), drawn(7))


def test_a_variation_goes_along_a_circle() -> None:
    """Each column of pixels: where both have the same norm, so has what lies between."""
    assert torch.allclose(first(variation_strength=1.0, variations=[9]), drawn(9), atol=1e-6)
    one, other = torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)
    one[0, 0], other[0, 1] = 2.0, 2.0
    third = slerp(one, other, 1 / 3).flatten()
    assert third.tolist() == pytest.approx([2 * np.cos(np.pi / 6), 2 * np.sin(np.pi / 6)])
    assert torch.equal(slerp(one, one, 0.3), one)
    mixed = first(shape=(4, 64, 64), variation_strength=0.5, variations=[9])
    assert float(mixed.std()) == pytest.approx(1, abs=0.03)
    assert 0.6 < float(torch.corrcoef(torch.stack([mixed.flatten(), drawn(7, (4, 64, 64)).flatten()]))[0, 1]) < 0.8


def test_variations_of_a_seed_keep_the_seed() -> None:
    """As in A1111: of a batch of variations only the variation seed goes up."""
    plain = GenerationRequest(seed=5, batch_size=3)
    varied = plain.model_copy(update={"noise": Noise(variation_seed=20, variation_strength=0.1)})
    assert [plain.seed_of(unit) for unit in range(3)] == [5, 6, 7]
    assert [varied.seed_of(unit) for unit in range(3)] == [5, 5, 5]
    assert [varied.variation_seed_of(unit) for unit in range(3)] == [20, 21, 22]


def test_noise_of_another_size_stays_in_the_middle() -> None:
    small = first(shape=(4, 8, 12), resized=(4, 4, 6))
    assert torch.equal(small[:, 2:6, 3:9], drawn(7, (4, 4, 6)))
    assert torch.equal(small[:, :2], drawn(7, (4, 8, 12))[:, :2])
    large = first(shape=(4, 4, 12), resized=(4, 8, 6))
    assert torch.equal(large[:, :, 3:9], drawn(7, (4, 8, 6))[:, 2:6])
    odd = first(shape=(1, 5, 5), resized=(1, 8, 8))
    assert torch.equal(odd[:, :4, :4], drawn(7, (1, 8, 8))[:, 2:6, 2:6])  # A1111 leaves a row of its own
    assert torch.equal(first(resized=SHAPE), drawn(7))


def test_further_noise_may_have_another_seed() -> None:
    plain, moved = (ImageNoise(SHAPE, [7], CPU, Noise(delta=delta)) for delta in (0, 31337))
    assert torch.equal(plain(), moved())
    assert torch.equal(moved()[0], drawn(7 + 31337))
    assert not torch.equal(plain(), moved())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_counts_as_published(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    """The known answers of its authors' library Random123."""
    words = philox([np.array([word], np.uint32) for word in counter], key)
    assert [int(word[0]) for word in words] == expected


def test_nv_is_what_a_card_draws() -> None:
    """torch.manual_seed(0); torch.randn(3, 4, device="cuda"), printed on a card."""
    assert Philox(0).randn((3, 4)).flatten().tolist() == pytest.approx(
        [-0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745, -0.3631, -1.6711, 2.2655],
        abs=1e-4,
    )
    noise = Philox(2**40 + 3)
    values = noise.randn((200, 200))
    assert (float(values.mean()), float(values.std())) == pytest.approx((0, 1), abs=0.02)
    assert not torch.equal(values, noise.randn((200, 200)))


def test_paths_are_those_of_torchsde() -> None:
    sigmas = [14.6, 3.0, 2.9, 0.5, 0.0291]
    tree = torchsde.BrownianTree(sigmas[-1], torch.zeros(SHAPE), sigmas[0], entropy=7)
    path = BrownianPath(sigmas[-1], sigmas[0], 7, drawn)
    for high, low in [*zip(sigmas, sigmas[1:], strict=False), (14.6, 0.5), (2.95, 1.0), (9.0, 8.0)]:
        theirs = -tree(low, high) / (high - low) ** 0.5
        assert torch.allclose(path.between(high, low), theirs, atol=2e-5)


def test_a_path_does_not_depend_on_what_was_asked_before() -> None:
    straight, winding = (BrownianPath(0.03, 14.6, 3, drawn) for _ in range(2))
    for place in (5.0, 0.1, 14.0, 7.3, 3.3):
        winding.at(place)
    assert torch.equal(straight.between(9.0, 2.0), winding.between(9.0, 2.0))
    whole = straight.between(9.0, 2.0) * 7**0.5
    parts = winding.between(9.0, 4.0) * 5**0.5 + winding.between(4.0, 2.0) * 2**0.5
    assert torch.allclose(whole, parts, atol=1e-5)


def test_paths_have_the_variance_of_brownian_motion() -> None:
    path = BrownianPath(0.0, 10.0, 1, lambda seed: drawn(seed, (1, 200, 200)))
    early, late = path.between(10.0, 6.5), path.between(6.5, 0.2)
    assert (float(early.std()), float(late.std())) == pytest.approx((1, 1), abs=0.02)
    assert abs(float((early * late).mean())) < 0.02
