"""Names of samplers and schedules: A1111's, its API's, diffusers' and ComfyUI's spellings."""

from pathlib import Path

import pytest

from pipelines.choices import SAMPLERS, SCHEDULES, check_flow, meant, read_sampler, read_schedule
from pipelines.errors import PipelineError, UnknownChoice
from pipelines.request import GenerationRequest, Hires
from pipelines.stages import at_once, extent, stages


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("DPM++ 2M", "DPM++ 2M", None),
        ("DPM++ 2M Karras", "DPM++ 2M", "Karras"),
        ("dpm++ 2m sde exponential", "DPM++ 2M SDE", "Exponential"),
        ("DPM++ 2M SDE Heun Karras", "DPM++ 2M SDE Heun", "Karras"),
        ("DPM++ SDE SGM Uniform", "DPM++ SDE", "SGM Uniform"),
        ("DPM++ SDE SGMUniform", "DPM++ SDE", "SGM Uniform"),
        ("Euler Uniform", "Euler", "Uniform"),
        ("k_euler_a", "Euler a", None),
        ("euler a", "Euler a", None),
        ("Euler Ancestral", "Euler a", None),
        ("k_euler_ancestral", "Euler a", None),
        ("k_dpm_ad", "DPM adaptive", None),
        ("dpmpp_2m", "DPM++ 2M", None),
        ("dpmpp_2s_ancestral", "DPM++ 2S a", None),
        ("dpmpp_3m_sde", "DPM++ 3M SDE", None),
        ("uni_pc", "UniPC", None),
        ("DDIM", "DDIM", None),
        ("ddim_cfgpp", "DDIM CFG++", None),
        ("DDIM ddim", "DDIM", "DDIM"),
        ("PLMS", "PLMS", None),
        ("LMS Karras", "LMS", "Karras"),
        ("DPM2 a Karras", "DPM2 a", "Karras"),
        (" LCM ", "LCM", None),
        ("dpm_fast", "DPM fast", None),
    ],
)
def test_a_sampler_is_understood(name: str, sampler: str, schedule: str | None) -> None:
    assert read_sampler(name) == (sampler, schedule)


def test_every_spelling_means_one_thing() -> None:
    for row in SAMPLERS.values():
        for spelling in (row.name, row.name.upper(), row.name.replace(" ", "_"), *row.aliases):
            assert read_sampler(spelling) == (row.name, None)
        for schedule in SCHEDULES:
            assert read_sampler(f"{row.name} {schedule.label}") == (row.name, schedule.label)
    for schedule in SCHEDULES:
        for spelling in (schedule.label, schedule.name, *schedule.aliases):
            assert read_schedule(spelling) == schedule.label


@pytest.mark.parametrize("name", ["", "Eular", "Karras", "DPM++", "Euler b", "😀"])
def test_unknown_names_are_told_the_choices(name: str) -> None:
    with pytest.raises(UnknownChoice, match="Choose one of: "):
        read_sampler(name)
    with pytest.raises(UnknownChoice, match="Choose one of: "):
        meant("Euler", name if name != "Karras" else "Carras")


def test_a_schedule_in_the_name_goes_before() -> None:
    assert meant("DPM++ 2M Karras", "Exponential") == ("DPM++ 2M", "Karras")
    assert meant("k_euler", "sgm_uniform") == ("Euler", "SGM Uniform")


def test_passes_know_samplers_by_name() -> None:
    asked = GenerationRequest(sampler="dpmpp_2m_karras", hires=Hires(sampler="euler a", schedule="simple"))
    assert [(stage.sampler, stage.schedule) for stage in stages(asked)] == [
        ("DPM++ 2M", "Karras"),
        ("Euler a", "Simple"),
    ]
    assert stages(GenerationRequest(sampler="Eular"))[0].sampler == "Eular"  # refused when it is to draw


def test_cfg_plus_plus_has_a_scale_of_its_own() -> None:
    """A1111's CFG scale of 12.5 is 1 there; without a prompt the model is always asked, too."""
    stage, second = stages(GenerationRequest(sampler="DDIM CFG++", cfg_scale=12.5, hires=Hires(sampler="Euler")))
    assert (stage.cfg_scale, stage.guided) == (1.0, True)
    assert (second.cfg_scale, second.guided) == (12.5, True)
    assert not stages(GenerationRequest(sampler="Euler", cfg_scale=1))[0].guided


def test_images_whose_steps_differ_are_made_one_by_one() -> None:
    asked = GenerationRequest(sampler="Euler", batch_size=4, width=64, height=64)
    alone = asked.model_copy(update={"sampler": "DPM adaptive"})
    later = asked.model_copy(update={"hires": Hires(sampler="DPM adaptive")})
    assert [at_once(each) for each in (asked, alone, later)] == [4, 1, 1]
    assert [extent(each).batch for each in (asked, alone)] == [4, 1]


def test_the_page_of_samplers_is_true() -> None:
    """docs/samplers.md: order, calls and Automatic of each sampler, all schedules, what flows cannot have."""
    page = (Path(__file__).parent.parent / "docs" / "samplers.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:2] == "| "]
    samplers = {cells[0]: cells for cells in rows if len(cells) == 6}
    del samplers["sampler"]
    assert list(samplers) == list(SAMPLERS)
    for row in SAMPLERS.values():
        _, order, calls, fresh, automatic, _ = samplers[row.name]
        assert (int(order), automatic) == (row.order, row.schedule)
        assert calls == ("about 3" if row.alone else str(row.calls))
        assert (fresh == "path") == row.brownian
        assert fresh not in ("path", "yes") or row.eta == 1
    schedules = [cells[0].rstrip(" *") for cells in rows if len(cells) == 2 and cells[0] != "schedule"]
    assert schedules[: len(SCHEDULES)] == [row.label for row in SCHEDULES]
    moved = {cells[0].rstrip(" *") for cells in rows if len(cells) == 2 and cells[0].endswith("*")}
    assert moved == {row.label for row in SCHEDULES if row.ends}
    refused = [row.name for row in SAMPLERS.values() if not row.flow] + [row.label for row in SCHEDULES if not row.flow]
    said = page[page.index("makers' own schedule") : page.index("have no form for them")]
    assert all(name in said for name in refused)


def test_flow_models_have_fewer() -> None:
    check_flow("DPM++ 2M", "Karras")
    with pytest.raises(PipelineError, match="TCD cannot draw with flow models such as this one"):
        check_flow("TCD", "Automatic")
    with pytest.raises(PipelineError, match="Align Your Steps is not for flow models"):
        check_flow("Euler", "Align Your Steps")
