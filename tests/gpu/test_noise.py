"""On a CUDA device: noise is what the card draws, and NV says so on any machine."""

import pytest
import torch

from pipelines.request import Noise
from pipelines.samplers import ImageNoise
from pipelines.samplers.philox import Philox

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
@pytest.mark.parametrize("shape", [(3, 4), (4, 64, 64), (4, 128, 128)])
def test_nv_is_what_the_card_draws(seed: int, shape: tuple[int, ...]) -> None:
    generator, philox = torch.Generator("cuda").manual_seed(seed), Philox(seed)
    for _ in range(3):
        theirs = torch.randn(shape, generator=generator, device="cuda").cpu()
        assert torch.allclose(philox.randn(shape), theirs, atol=1e-5)


def test_images_draw_on_the_card_or_on_the_cpu() -> None:
    device = torch.device("cuda")
    drawn = {rng: ImageNoise((4, 64, 64), [7], device, Noise(rng=rng))() for rng in ("CPU", "GPU", "NV")}
    assert all(noise.device.type == "cuda" for noise in drawn.values())
    assert torch.allclose(drawn["GPU"], drawn["NV"], atol=1e-5)
    assert torch.equal(drawn["CPU"][0].cpu(), torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(7)))
