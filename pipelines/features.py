"""The table of what a pass can have beyond prompt and steps: a new feature is a module and a row here.

A row is a context manager: it changes networks and puts them back, and gives a denoiser, its own around the one before
or just that. The first row is the innermost one.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from pipelines.control.feature import controlled
from pipelines.control.regions import regional
from pipelines.control.style import styled
from pipelines.guidance import guided
from pipelines.guidance.merging import merged
from pipelines.guidance.networks import freed
from pipelines.guidance.pag import perturbing
from pipelines.images.beside import edits, guided_by_picture, seeing
from pipelines.images.masked import masked
from pipelines.images.tiling import seamless
from pipelines.samplers import Denoise
from pipelines.scene import Feature, Scene

FEATURES: tuple[Feature, ...] = (
    *(merged, freed, seamless, styled, perturbing),
    *(controlled, regional, seeing, masked),
)


@contextmanager
def denoiser(scene: Scene) -> Generator[Denoise, None, None]:
    """The network with its guidance, all features that the request asks for, and what extensions put around it."""
    with ExitStack() as stack:
        denoise = guided_by_picture(scene) if edits(scene) else guided(scene)
        for feature in FEATURES:
            denoise = stack.enter_context(feature(scene, denoise))
        for wrap in scene.kit.wrappers:
            denoise = wrap(denoise, scene.model, scene.request) or denoise
        yield denoise
