"""The noise levels that a model was trained on: from a training step to sigma and back."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipelines.errors import BadModel

Floats = NDArray[np.float64]

ALIGNED_SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGNED_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""The schedules that Sabour et al. 2024, 'Align Your Steps', found for these models."""

BETAS: dict[str, Callable[[float, float, int], Floats]] = {
    "linear": lambda start, end, steps: np.linspace(start, end, steps),
    "scaled_linear": lambda start, end, steps: np.linspace(start**0.5, end**0.5, steps) ** 2,
}


class Sigmas(list[float]):
    """The noise levels between which a picture's steps go, and how noise is mixed in: x = signal x0 + sigma noise."""

    def __init__(self, sigmas: Sequence[float], flow: bool = False) -> None:
        super().__init__(sigmas)
        self.flow = flow


class NoiseLevels:
    """Between two training steps log sigma is linear, as in k-diffusion: that makes fractional steps well defined."""

    flow = False
    """True: x = (1 - sigma) x0 + sigma noise with sigma up to 1; False: x = x0 + sigma noise."""

    aligned: Sequence[float] = ALIGNED_SD1
    """Of the schedule Align Your Steps."""

    def __init__(self, alphas_cumprod: Floats) -> None:
        self.sigmas: Floats = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
        """Of each training step, growing."""
        self._logs: Floats = np.log(self.sigmas)
        self._steps: Floats = np.arange(len(self.sigmas), dtype=np.float64)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "NoiseLevels":
        """From the keys that diffusers' schedulers write into scheduler_config.json."""
        name = config.get("beta_schedule", "linear")
        if name not in BETAS:
            raise BadModel(f"The model's noise schedule {name!r} is not known; {', '.join(BETAS)} are.")
        steps = int(config.get("num_train_timesteps", 1000))
        betas = BETAS[name](float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02)), steps)
        if config.get("trained_betas"):
            betas = np.asarray(config["trained_betas"], dtype=np.float64)
        alphas: Floats = np.cumprod(1 - betas, dtype=np.float64)
        return cls(zero_terminal_snr(alphas) if config.get("rescale_betas_zero_snr") else alphas)

    @property
    def low(self) -> float:
        return float(self.sigmas[0])

    @property
    def high(self) -> float:
        return float(self.sigmas[-1])

    def sigma(self, step: float) -> float:
        return math.exp(np.interp(step, self._steps, self._logs))

    def step(self, sigma: float) -> float:
        """The fractional training step at which this noise level occurs."""
        return float(np.interp(math.log(sigma), self._logs, self._steps))

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Where a picture lies at a noise level: the start of img2img."""
        return x0 + noise * sigma

    def fitted(self, shape: Sequence[int], steps: int) -> "NoiseLevels":
        """For latents [channels, height, width] that are drawn in so many steps: flow models tell sizes apart."""
        return self

    def own_schedule(self, steps: int) -> Floats | None:
        """What the model's makers walk, from the highest level down; None: whatever suits the sampler."""
        return None


def zero_terminal_snr(alphas_cumprod: Floats) -> Floats:
    """Lin et al. 2023, 'Common diffusion noise schedules and sample steps are flawed', algorithm 1."""
    roots = np.sqrt(alphas_cumprod)
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    rescaled: Floats = roots**2
    rescaled[-1] = 2.0**-24  # as in diffusers: no noise level is infinite
    return rescaled
