"""A1111's .yaml beside a checkpoint tells noise from v; it is data, and found when it comes, changes and goes."""

import os
from pathlib import Path

import pytest

from pipelines.library.registry import Registry
from pipelines.types import ModelInfo
from tests.sparse import FLUX, SD1, Shapes, save
from tests.test_detect import SD2, SDXL

LDM = """
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    # parameterization: "v"
    image_size: 64
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params: {in_channels: 4, context_dim: 1024}
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
"""
V = LDM.replace("# ", "")
SGM = """
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.%s
    network_config:
      params: {context_dim: 2048}
"""

SAYS = [
    (SD2, "768-v-ema.safetensors", LDM, ("epsilon", 512)),
    (SD2, "512-base.safetensors", V, ("v_prediction", 768)),
    (SD2, "mine.safetensors", V.replace('"v"', "v"), ("v_prediction", 768)),
    (SD2, "mine.safetensors", V.replace('"v"', "eps"), ("epsilon", 512)),
    (SD1, "mine.safetensors", V.replace("1024", "768"), ("v_prediction", 512)),
    (SDXL, "mine.safetensors", SGM % "VScalingWithEDMcNoise", ("v_prediction", 1024)),
    (SDXL, "noob-vpred.safetensors", SGM % "EpsScaling", ("epsilon", 1024)),
]


@pytest.mark.parametrize(("shapes", "name", "text", "expected"), SAYS)
def test_it_says_more_than_the_name(
    shapes: Shapes, name: str, text: str, expected: tuple[str, int], tmp_path: Path
) -> None:
    info = listed(save(tmp_path / name, shapes), text)
    assert (info.prediction, info.width) == expected


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system [touch witness]",
        "model: {target: !!python/name:os.system }",
        "- 1",
        "model: 3",
        "x: [",
        "a: &a {k: v}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\nd: &d [*d]",
        "model: {params: {parameterization: [v]}}",
        "a: " + "[" * 3000,
        "x" * 100_000,
        V.replace("1024", "768"),
    ],
)
def test_what_is_of_no_use_changes_nothing(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    info = listed(save(tmp_path / "512-base.safetensors", SD2), text)
    assert (info.kind, info.prediction, info.width) == ("checkpoint", "epsilon", 512)
    assert not (tmp_path / "witness").exists()
    if 'parameterization: "v"' in text:
        assert "it is for sd1 and the checkpoint is sd2" in caplog.text


def test_other_kinds_of_files_are_left_alone(tmp_path: Path) -> None:
    assert listed(save(tmp_path / "flux1-dev.safetensors", FLUX), V).prediction == "flow"


def test_it_comes_changes_and_goes_also_between_runs(tmp_path: Path) -> None:
    path, cache = save(tmp_path / "models" / "mine.safetensors", SD2), tmp_path / "cache.sqlite"
    settings = path.with_suffix(".yaml")
    registry = Registry([path.parent], cache)

    def seen(registry: Registry) -> str:
        registry.scan()
        return registry.get("mine").prediction

    assert seen(registry) == "v_prediction", "the usual one"
    settings.write_text(LDM)
    assert registry.stale()
    assert seen(registry) == "epsilon"
    assert seen(Registry([path.parent], cache)) == "epsilon"
    settings.write_text(V)
    os.utime(settings, ns=(1, 1))
    assert seen(registry) == "v_prediction"
    settings.write_text(LDM)
    assert seen(registry) == "epsilon"
    settings.unlink()
    assert seen(Registry([path.parent], cache)) == "v_prediction"
    assert seen(registry) == "v_prediction"


def listed(path: Path, text: str) -> ModelInfo:
    path.with_suffix(".yaml").write_text(text)
    registry = Registry([path.parent])
    registry.scan()
    (info,) = registry.models()
    return info
