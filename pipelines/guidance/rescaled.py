"""CFG rescale: guidance makes contrasts larger than any picture has, so their spread is brought back.

Lin et al. 2023, 'Common Diffusion Noise Schedules and Sample Steps are Flawed', section 3.4.
"""

from torch import Tensor

from pipelines.guidance.views import Change, Views, axes
from pipelines.scene import Scene


def rescaled(scene: Scene) -> Change | None:
    """Of the velocity, as in the paper, whatever the model was trained to predict."""
    share, flow = scene.request.guidance.rescale, scene.sigmas.flow
    if not share:
        return None

    def change(views: Views, found: Tensor) -> Tensor:
        if not views.away and views.perturbed is None:
            return found
        own, spread = views.velocity(views.towards, flow), views.velocity(found, flow)
        return views.from_velocity(spread * rescaling(own, spread, share), flow)

    return change


def rescaling(own: Tensor, guided: Tensor, share: float) -> Tensor:
    """The factor of each image, [images, 1, 1, 1]: phi std(own) / std(guided) + 1 - phi."""
    ratio = own.std(axes(own), keepdim=True) / guided.std(axes(guided), keepdim=True).clamp(min=1e-12)
    return share * ratio + (1 - share)
