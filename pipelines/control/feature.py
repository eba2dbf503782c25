"""ControlNets and T2I adapters of a pass: from the units of a request to what the network is told at each step."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module

from pipelines.control.hints import hint_for
from pipelines.control.preprocessors import module_named
from pipelines.control.restraints import restrained
from pipelines.control.units import Speaker, Speakers, Unit, file_of, mismatch
from pipelines.errors import PipelineError
from pipelines.families.base import LoadedModel
from pipelines.request import Control
from pipelines.samplers import Denoise
from pipelines.scene import Scene
from pipelines.stages import Stage
from pipelines.types import Kind

Speaking = Callable[[Scene, Unit], AbstractContextManager[Speaker]]


def row(module: str, name: str) -> Speaking:
    """Looked up when it is needed: diffusers takes seconds to import."""

    def speaking(scene: Scene, unit: Unit) -> AbstractContextManager[Speaker]:
        found: Speaking = getattr(import_module(f"pipelines.control.{module}"), name)
        return found(scene, unit)

    return speaking


SPEAKERS: dict[tuple[Kind, str], Speaking] = {
    (Kind.CONTROLNET, "sd1"): row("controlnet", "controlnet"),
    (Kind.CONTROLNET, "sd2"): row("controlnet", "controlnet"),
    (Kind.CONTROLNET, "sdxl"): row("controlnet", "controlnet"),
    (Kind.CONTROLNET, "flux"): row("flux", "flux_controlnet"),
    (Kind.T2I_ADAPTER, "sd1"): row("t2i", "t2i_adapter"),
    (Kind.T2I_ADAPTER, "sdxl"): row("t2i", "t2i_adapter"),
}
"""By the kind and family of a file."""

DENOISERS = {"sd1": "unet", "sd2": "unet", "sdxl": "unet", "flux": "transformer"}
"""The network that a family's ControlNets speak to."""

PASSES = {"Both": ("first", "hires"), "Low res only": ("first",), "High res only": ("hires",)}
"""A1111's names for the passes in which a unit counts."""


@contextmanager
def controlled(scene: Scene, denoise: Denoise) -> Generator[Denoise, None, None]:
    """Units with weight 0 are as good as none."""
    controls = [control for control in scene.request.controls if counts(control, scene.stage)]
    if controls and is_refiner(scene.model):
        scene.kit.note("SDXL's refiner knows no ControlNets: they count for the steps before it.")
        controls = []
    if not controls or not scene.stage.walked_steps:
        yield denoise
        return
    with ExitStack() as stack:
        units = [unit_of(scene, control) for control in controls]
        denoise = restrained(scene, units, denoise)
        speakers = [stack.enter_context(speaking(scene, unit)) for unit in units]
        stack.enter_context(scene.model.asides.joined(Speakers(scene, speakers)))
        yield denoise


def is_refiner(model: LoadedModel) -> bool:
    return "unet" in model.parts and "text_encoder" not in model.parts


def counts(control: Control, stage: Stage) -> bool:
    alone = module_named(control.module).module.alone
    return bool(control.weight) and not alone and stage.name in PASSES[control.hr_option]


def unit_of(scene: Scene, control: Control) -> Unit:
    info = file_of(scene.kit, control.model)
    module = module_named(control.module).module
    soft = control.mode != "Balanced" or scene.stage.name == "hires"
    pooled = module.name == "shuffle" or "shuffle" in info.name.lower()
    return Unit(control, module, info, hint_for(scene, control), soft, pooled)


def speaking(scene: Scene, unit: Unit) -> AbstractContextManager[Speaker]:
    if unit.info.variant == "control_lora":
        raise PipelineError(f"{unit.info.name} is a Control-LoRA, which cannot be used. Get the whole ControlNet.")
    found = SPEAKERS.get((unit.info.kind, unit.info.family))
    if found is None:
        raise PipelineError(
            f"{unit.info.name} ({unit.info.family or 'of an unknown family'}) cannot be used: ControlNets are known "
            "for SD 1, SD 2, SDXL and Flux.1. Remove the unit, or choose another file."
        )
    if DENOISERS[unit.info.family] not in scene.model.parts:
        raise mismatch(unit.info)
    return found(scene, unit)
