"""Faces: found, set upright, restored and put back where they were."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ImageDraw, ImageFilter
from torch import Tensor, nn

from pipelines.errors import BadModel
from pipelines.images.detect_faces import detector_file, faces_in
from pipelines.images.faces import CALLS, PLACES, put_back, restored, transform
from pipelines.images.networks import NOT_FREE, PixelNetworks
from pipelines.images.resize import to_pixels
from pipelines.request import Faces
from pipelines.types import Kind, ModelInfo
from tests.pixel_files import save_network
from tests.test_canvas import noise
from tests.test_hires import Kit
from tests.test_img2img import difference


def face(side: int) -> PIL.Image.Image:
    """Enough of one for a cascade: two dark eyes under brows, a lighter nose, a mouth."""
    picture = PIL.Image.new("RGB", (400, 400), (90, 110, 130))
    pen = ImageDraw.Draw(picture)
    skin, hair, dark = (224, 188, 160), (70, 45, 30), (30, 20, 20)
    pen.ellipse((95, 40, 305, 260), fill=hair)
    pen.ellipse((100, 75, 300, 340), fill=skin)
    for x in (155, 245):
        pen.ellipse((x - 30, 155, x + 30, 190), fill=(150, 110, 90))
        pen.ellipse((x - 22, 162, x + 22, 186), fill="white")
        pen.ellipse((x - 12, 162, x + 12, 186), fill=dark)
        pen.rectangle((x - 32, 138, x + 32, 148), fill=hair)
    pen.polygon([(200, 170), (182, 235), (218, 235)], fill=(205, 165, 138))
    pen.ellipse((165, 258, 235, 282), fill=(150, 60, 60))
    return picture.filter(ImageFilter.GaussianBlur(3)).resize((side, side))


@pytest.fixture(scope="module")
def scene() -> PIL.Image.Image:
    """A face on the left, and nothing on the right."""
    picture = PIL.Image.new("RGB", (512, 256), (90, 110, 130))
    picture.paste(face(200), (20, 28))
    return picture


class Restorer(Kit):
    def __init__(self, info: ModelInfo) -> None:
        self.notes: list[str] = []
        self.files = {info.name: info}
        self.networks = PixelNetworks(torch.device("cpu"))

    @property
    def pixels(self) -> PixelNetworks:
        return self.networks


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    """A network that changes every pixel, in place of one for faces, whose weights would take 350 MB."""
    info = save_network(tmp_path_factory.mktemp("GFPGAN"), "sharpener")
    return Restorer(info.model_copy(update={"kind": Kind.FACE_RESTORER}))


def test_a_face_is_found_with_its_eyes(scene: PIL.Image.Image) -> None:
    [points] = faces_in(scene, None)
    scale = 200 / 400
    eyes = [(20 + x * scale, 28 + 172 * scale) for x in (155, 245)]
    assert np.abs(points - np.array(eyes)).max() < 8
    assert faces_in(PIL.Image.new("RGB", (300, 200), "grey"), None) == []


@pytest.mark.parametrize("count", [2, 5])
def test_it_is_set_upright_and_goes_back_to_its_place(count: int) -> None:
    angle, size, move = 0.5, 0.4, np.array([150, 80])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * size
    points = (PLACES @ turn.T + move).astype(np.float32)[:count]
    there = transform(points)
    assert np.abs(points @ there[:, :2].T + there[:, 2] - PLACES[:count]).max() < 0.5
    ground = np.zeros((400, 500, 3), np.float32)
    painted = put_back(ground, np.full((512, 512, 3), 200, np.float32), there, 0.5)
    nose = (PLACES[2] @ turn.T + move).round().astype(int)
    assert painted[nose[1], nose[0], 0] == pytest.approx(100, abs=1)
    assert not painted[-20:, -20:].any()


def test_only_the_face_changes(scene: PIL.Image.Image, kit: Restorer) -> None:
    name = next(iter(kit.files))
    result = restored(kit, scene, Faces(model=name))
    changed = (np.asarray(result) != np.asarray(scene)).any(-1)
    assert changed[60:200, 70:170].mean() > 0.9
    assert not changed[:, 300:].any()
    half = restored(kit, scene, Faces(model=name, visibility=0.5))
    assert 0 < difference(half, scene) < difference(result, scene)
    assert restored(kit, scene, Faces(model=name, visibility=0)) is scene
    assert "face_detection_yunet_2023mar.onnx" in kit.notes[0]
    plain = PIL.Image.new("RGB", (300, 200), "grey")
    assert restored(kit, plain, Faces(model=name)).tobytes() == plain.tobytes()


def test_yunet_is_taken_where_its_file_lies(tmp_path: Path) -> None:
    (tmp_path / "GFPGAN").mkdir()
    assert detector_file([tmp_path / "GFPGAN", tmp_path]) is None
    (tmp_path / "face_detection_yunet_2023mar.onnx").write_bytes(b"no network")
    found = detector_file([tmp_path / "GFPGAN", tmp_path])
    assert found == tmp_path / "face_detection_yunet_2023mar.onnx"
    with pytest.raises(BadModel, match="no YuNet"):
        faces_in(noise(64, 64), found)


class Asked(nn.Module):
    def forward(self, x: Tensor, **values: Any) -> tuple[Tensor, None]:
        self.seen, self.values = x, values
        return -x, None


@pytest.mark.parametrize(("name", "values"), [("GFPGAN", {"randomize_noise": False}), ("CodeFormer", {"weight": 0.3})])
def test_they_compute_from_minus_1_to_1(name: str, values: dict[str, Any]) -> None:
    network, pixels = Asked(), to_pixels(noise(8, 8))
    assert torch.allclose(CALLS[name](network, pixels, 0.3), 1 - pixels, atol=1e-6)
    assert network.seen.min() < -0.5
    assert network.values == values


def test_what_codeformer_needs_is_said(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "codeformer.pth")
    info = save_network(tmp_path).model_copy(update={"path": tmp_path / "codeformer.pth", "variant": "codeformer"})
    with pytest.raises(BadModel) as raised:
        PixelNetworks(torch.device("cpu")).get(info)
    assert str(raised.value) == NOT_FREE["codeformer"]
