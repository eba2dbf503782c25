"""Adaptive projected guidance: of the pull of guidance, what only makes colours louder is left out. Sadat et al. 2024,
'Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models', algorithm 1.
"""

from torch import Tensor
from torch.linalg import vector_norm

from pipelines.guidance.views import Change, Views, axes
from pipelines.scene import Scene


def projected(scene: Scene) -> Change | None:
    """In place of plain guidance. The momentum begins anew with each pass."""
    asked, scale = scene.request.guidance, scene.stage.cfg_scale
    if not asked.apg:
        return None
    average: list[Tensor] = []

    def change(views: Views, found: Tensor) -> Tensor:
        if not views.away:
            return found
        pull = views.towards - views.away[0]
        if average:
            pull = pull + asked.apg_momentum * average.pop()
        average.append(pull)
        pull = shortened(pull, asked.apg_norm) if asked.apg_norm else pull
        return views.towards + (scale - 1) * (pull - asked.apg * parallel(pull, views.towards))

    return change


def shortened(pull: Tensor, longest: float) -> Tensor:
    length = vector_norm(pull, dim=axes(pull), keepdim=True).clamp(min=1e-12)
    short: Tensor = pull * (longest / length).clamp(max=1.0)
    return short


def parallel(pull: Tensor, to: Tensor) -> Tensor:
    """The part of it that lies along `to`."""
    wide, along = pull.double(), to.double()
    along = along / vector_norm(along, dim=axes(along), keepdim=True).clamp(min=1e-12)
    part: Tensor = (wide * along).sum(axes(along), keepdim=True) * along
    return part.to(pull.dtype)
