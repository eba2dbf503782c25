"""What the families with a U-Net share (SD 1, SD 2, SDXL): noise levels, guidance of the network, pictures."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import BadModel, PipelineError
from pipelines.families.base import PLAIN, Asides, Call, Cond, Reading, covered
from pipelines.families.clip import ClipPrompts
from pipelines.library.network_folder import read_json
from pipelines.loading.checkpoint import load_parts
from pipelines.loading.parts import Config, Part, Recipe
from pipelines.prompt import Reader, Span
from pipelines.prompt.readers import CLIP
from pipelines.samplers import NoiseLevels
from pipelines.types import ModelInfo

PREDICTIONS = ("epsilon", "v_prediction")

SCHEDULE: Config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""Of all models in the makers' layout, which holds no schedule: Rombach et al. 2022."""

EXTRA = {0: "", 5: "inpaint", 4: "pix2pix"}
"""Channels beside the latent that a U-Net takes -> what it is for: a mask and a latent, or a latent alone."""


class UNetModel(ABC):
    RECIPES: ClassVar[Mapping[str, Recipe]]
    SIZED: ClassVar[bool] = False
    """Whether the network is told sizes and a pooled prompt, as SDXL's is."""
    reader: Reader = CLIP

    prompts: ClipPrompts

    def __init__(self, parts: Mapping[str, Part], info: ModelInfo, device: torch.device) -> None:
        self.parts, self.device, self.asides = parts, device, Asides()
        self.unet = cast(Any, parts["unet"].module)
        self.vae = cast(Any, parts["vae"].module)
        schedule = self.schedule(info.path)
        self.levels = NoiseLevels.of_config(schedule)
        self.prediction: str = info.prediction or schedule.get("prediction_type", "epsilon")
        self.kind = self._kind()
        self._nothing: Tensor | None = None
        if self.prediction not in PREDICTIONS:
            raise BadModel(f"The model predicts {self.prediction!r}; {' and '.join(PREDICTIONS)} are known.")
        if (self.unet.config.addition_embed_type == "text_time") != self.SIZED:
            raise BadModel(f"The U-Net of {info.name} is not of the family {info.family}.")

    @classmethod
    def load(cls, path: Path, device: torch.device, family: str = "") -> Self:
        """One model by itself, in full precision: for tests and benchmarks. Workers have a manager for that."""
        info = ModelInfo(name=path.name, family=family, path=path, size_bytes=0)
        return cls(load_parts(cls.RECIPES, info, device, FullPrecision()), info, device)

    def schedule(self, path: Path) -> Config:
        """As a folder in diffusers' layout says it; the usual one for single files."""
        return read_json(path / "scheduler" / "scheduler_config.json") if path.is_dir() else SCHEDULE

    def _kind(self) -> str:
        extra = self.unet.config.in_channels - self.vae.config.latent_channels
        if extra not in EXTRA:
            raise BadModel(
                f"The model's U-Net takes {self.unet.config.in_channels} channels beside a VAE of "
                f"{self.vae.config.latent_channels}: such models, as those that follow a depth map, cannot be run."
            )
        return EXTRA[extra]

    @abstractmethod
    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond: ...

    def chunks_of(self, spans: Sequence[Span], reading: Reading = PLAIN) -> int:
        return self.prompts.count(spans, reading)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        return (self.vae.config.latent_channels, height // self.scale, width // self.scale)

    @property
    def scale(self) -> int:
        """Pixels of a picture to one of its latent, along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def predict(self, x: Tensor, sigma: float, cond: Cond) -> Tensor:
        """Karras et al. 2022, equation 7, with c_skip and c_out of what the model was trained to predict."""
        shrink = 1 / math.sqrt(sigma**2 + 1)
        step = torch.full((len(x),), self.levels.step(sigma), device=self.device)
        with self.asides.heard(Call(x * shrink, step, sigma, cond, self.told(x, cond))) as call:
            seen = self._seen(call).to(self.parts["unet"].dtype)
            output: Tensor = self.unet(seen, call.step, return_dict=False, **call.told)[0][: len(x)].float()
        if self.prediction == "v_prediction":  # v = alpha noise - sigma x0, Salimans and Ho 2022, appendix D
            return x * shrink**2 - output * (sigma * shrink)
        return x - output * sigma

    def told(self, x: Tensor, cond: Cond) -> dict[str, Any]:
        """What the network takes beside the latents and the step."""
        return {"encoder_hidden_states": cond.tokens}

    def beside(self, picture: Tensor, mask: Tensor, hidden: float = 1.0) -> Tensor | None:
        """A mask and the picture without what lies under it; or, to edit, the picture as the VAE gives it."""
        if self.kind == "pix2pix":  # Brooks et al. 2023, section 3.2; their code leaves its latents unscaled
            return self.to_latent(picture) / float(self.vae.config.scaling_factor)
        if self.kind != "inpaint":
            return None
        small = functional.max_pool2d(mask.to(self.device), self.scale)
        return torch.cat([small, self.to_latent(covered(picture, mask, hidden))], 1)

    def _seen(self, call: Call) -> Tensor:
        """Latents, and what is beside them. A model for inpainting without a picture paints everything."""
        found = call.beside
        if self.kind and found is None:
            found = self._blank(*call.x.shape[-2:])
        if found is None:
            return call.x
        rows = found.to(call.x).expand(len(call.x), -1, -1, -1)
        if any(call.cond.blind):
            sees = [not blind for blind in call.cond.blind]
            rows = rows * torch.tensor(sees, device=rows.device)[:, None, None, None]
        return torch.cat([call.x, rows], 1)

    def _blank(self, height: int, width: int) -> Tensor | None:
        if self.kind == "pix2pix":
            raise PipelineError(
                "This model changes a picture as it is told to (InstructPix2Pix): give it one to start from. "
                "To draw from text alone, choose another model."
            )
        if self._nothing is None or self._nothing.shape[-2:] != (height, width):
            grey = torch.full((1, 3, height * self.scale, width * self.scale), 0.5)
            self._nothing = self.beside(grey, torch.ones_like(grey[:, :1]))
        return self._nothing

    def to_latent(self, pixels: Tensor) -> Tensor:
        pixels = (pixels * 2 - 1).to(self.device, self.parts["vae"].dtype)
        latent: Tensor = self.vae.encode(pixels).latent_dist.mode().float() * self.vae.config.scaling_factor
        return latent

    def decode(self, latent: Tensor) -> PIL.Image.Image:
        scaled = (latent / self.vae.config.scaling_factor).to(self.device, self.parts["vae"].dtype)
        pixels = self.vae.decode(scaled[None], return_dict=False)[0][0].float()
        if not pixels.isfinite().all():
            raise PipelineError(
                "The picture came out as invalid numbers (NaN). Lower the CFG scale and the weights in the prompt; "
                "if it stays so, the model's files are damaged or need full precision."
            )
        levels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return PIL.Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


class FullPrecision:
    text_encoder = unet = vae = torch.float32
