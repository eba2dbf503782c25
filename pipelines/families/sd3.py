"""Stable Diffusion 3 and 3.5. Two CLIPs and T5 tell the transformer what to draw; T5 may be left out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.families.base import PLAIN, Cond, Reading
from pipelines.families.clip import OPEN_CLIP_PAD, ClipPrompts, Layer
from pipelines.families.flow import FlowModel
from pipelines.families.words import t5_features
from pipelines.loading.parts import Family, Part
from pipelines.loading.recipes.clip import clip
from pipelines.loading.recipes.dit import SD3 as TRANSFORMER
from pipelines.loading.recipes.ldm import vae
from pipelines.loading.recipes.t5 import T5
from pipelines.prompt import READERS, Span
from pipelines.samplers import FlowLevels, NoiseLevels
from pipelines.samplers.flow import TRAINING_STEPS, fixed
from pipelines.tokenizers.clip import clip as clip_words
from pipelines.types import ModelInfo

SHIFT = 3.0
LAST = SHIFT / TRAINING_STEPS / (1 + (SHIFT - 1) / TRAINING_STEPS)
"""The published scheduler's steps end at the lowest level that is already shifted, and are shifted then."""
LAYER = Layer(normed=False, least=2)


class SD3(FlowModel):
    """CLIP reads any number of chunks, T5 the first 256 tokens. A weight in the prompt counts in all three encoders."""

    reader = READERS["sd3"]
    levels: NoiseLevels = FlowLevels(fixed(SHIFT), last=LAST)

    def __init__(self, parts: Mapping[str, Part], info: ModelInfo, device: torch.device) -> None:
        super().__init__(parts, device)
        self.prompts = ClipPrompts(clip_words(), device, parts["text_encoder"], parts["text_encoder_2"])

    def encode(self, prompts: Sequence[Sequence[Span]], reading: Reading = PLAIN) -> Cond:
        """[prompts, chunks * 77 + 256, T5's width]: CLIP's features side by side, filled up with zeros, then T5's."""
        parts, chunks = self.parts, self.prompts.chunks(prompts, reading)
        little, pooled = self.prompts.read(parts["text_encoder"], LAYER, chunks)
        big, pooled_big = self.prompts.read(parts["text_encoder_2"], LAYER, chunks, OPEN_CLIP_PAD)
        dtype, notes = parts["text_encoder"].dtype, chunks.notes
        clip = torch.cat([little, big], -1).to(dtype)
        clip = clip.reshape(len(prompts), -1, clip.shape[-1])
        width = self.transformer.config.joint_attention_dim
        if "text_encoder_3" in self.parts:
            t5, cut = t5_features(parts["text_encoder_3"], prompts, self.reader, self.device, reading)
            notes += cut
        else:  # it was left out now and then in training: Esser et al. 2024, section 5.3.1
            t5 = torch.zeros(len(clip), self.reader.tokens, width, device=self.device)
        clip = functional.pad(clip, (0, width - clip.shape[-1]))
        whole = torch.cat([pooled, pooled_big], -1)[:: chunks.of_each].to(dtype)
        return Cond(torch.cat([clip, t5.to(dtype)], 1), whole, notes=notes)

    def chunks_of(self, spans: Sequence[Span], reading: Reading = PLAIN) -> int:
        return self.prompts.count(spans, reading)

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        dtype = self.parts["transformer"].dtype
        output: Tensor = self.transformer(
            hidden_states=x.to(dtype),
            timestep=sigma * TRAINING_STEPS,
            encoder_hidden_states=cond.tokens.to(dtype),
            pooled_projections=None if cond.pooled is None else cond.pooled.to(dtype),
            return_dict=False,
        )[0]
        return output


SD3_FAMILY = Family(
    {
        "transformer": TRANSFORMER,
        "text_encoder": clip(("text_encoders.clip_l.transformer.", ""), projected=True),
        "text_encoder_2": clip(("text_encoders.clip_g.transformer.", ""), projected=True),
        "text_encoder_3": T5,
        "vae": vae(1.5305, 0.0609),
    },
    SD3,
    frozenset({"text_encoder_3"}),
)
