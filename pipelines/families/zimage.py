"""Z-Image and Z-Image Turbo. Qwen3 reads the prompt; the last layer but one tells the transformer what to draw."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.families.base import PLAIN, Cond, Reading
from pipelines.families.flow import FlowModel, PaddedCond
from pipelines.families.flux import VAE
from pipelines.families.words import cut_notes, qwen_states, text_of, unread
from pipelines.loading.parts import Family, Part
from pipelines.loading.recipes.dit import Z_IMAGE as TRANSFORMER
from pipelines.loading.recipes.qwen_text import QWEN_TEXT
from pipelines.prompt import READERS, Span
from pipelines.samplers import FlowLevels
from pipelines.samplers.flow import fixed
from pipelines.types import ModelInfo

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""Qwen3's chat template, the answer still to come."""
SHIFTS = {"": 6.0, "turbo": 3.0}
"""Of the published schedulers, by variant."""


class ZImage(FlowModel):
    """Weights in the prompt are not read: it is part of a chat."""

    reader = READERS["z_image"]

    def __init__(self, parts: Mapping[str, Part], info: ModelInfo, device: torch.device) -> None:
        super().__init__(parts, device)
        self.levels = FlowLevels(fixed(SHIFTS.get(info.variant, SHIFTS[""])))

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> PaddedCond:
        rows, lost = [], []
        part = self.parts["text_encoder"]
        for spans in prompts:
            states = qwen_states(part, TEMPLATE.format(text_of(spans)), self.reader.tokens, self.device)
            rows.append(states.layers[-2][0].to(part.dtype))
            lost.append(states.lost)
        return PaddedCond.of(rows, (*cut_notes(self.reader, lost), *unread(self.reader, prompts, reading)))

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """It counts time the other way: 1 is the picture, and its velocity leads there."""
        dtype = self.parts["transformer"].dtype
        lengths = cond.lengths if isinstance(cond, PaddedCond) else (cond.tokens.shape[1],) * len(x)
        texts = [row[:length].to(dtype) for row, length in zip(cond.tokens, lengths, strict=True)]
        frames = list(x.to(dtype).unsqueeze(2).unbind())  # videos of one picture
        output = self.transformer(frames, 1 - sigma, texts, return_dict=False)[0]
        return -torch.stack([frame.float() for frame in output]).squeeze(2)


Z_IMAGE = Family({"transformer": TRANSFORMER, "text_encoder": QWEN_TEXT, "vae": VAE}, ZImage)
