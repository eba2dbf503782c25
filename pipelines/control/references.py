"""Which pictures a request refers to for their style, whichever way it says so. No torch."""

from pipelines.control.preprocessors import module_named, setting
from pipelines.errors import PipelineError
from pipelines.request import Control, GenerationRequest, Reference, StyleMethod

METHODS: dict[str, StyleMethod] = {
    "reference_only": "attention",
    "reference_adain": "adain",
    "reference_adain+attn": "adain+attention",
}
"""A1111's preprocessors that need no ControlNet."""


def styles(request: GenerationRequest) -> list[Reference]:
    """References without a model, and ControlNet units of that kind. Those without weight are left out."""
    named = [reference for reference in request.references if not reference.model]
    units = [control for control in request.controls if module_named(control.module).module.alone]
    return [each for each in (*named, *(_reference(request, unit) for unit in units)) if each.weight]


def _reference(request: GenerationRequest, unit: Control) -> Reference:
    module = module_named(unit.module).module
    image = unit.image or (request.start.image if request.start else None)
    if image is None:
        raise PipelineError(f"The unit with {module.name} has no picture to refer to. Give it one, or start from one.")
    return Reference(
        image=image,
        weight=unit.weight,
        start=unit.start,
        end=unit.end,
        mask=unit.mask,
        method=METHODS[module.name],
        fidelity=setting(module.a, unit.threshold_a),
    )
