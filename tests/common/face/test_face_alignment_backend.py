"""face-alignment as a back end: what happens without the package, without its weights, and with both."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.errors import InputError
from common.face import detect, face_alignment_backend
from common.face.conventions import FACEMESH68, convert
from common.face.face_alignment_backend import NAMES, THREE_D, TWO_D, fetch, network
from common.face.model import eye_distance
from common.face.track import track
from common.media import VideoWriter, read_picture

PORTRAIT = Path(__file__).parents[3] / "examples" / "portrait.jpg"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty hub folder, and nothing loaded before."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    network.cache_clear()
    yield tmp_path / "torch" / "hub" / "checkpoints"
    network.cache_clear()


def published(folder: Path, content: bytes, stem: str = "2DFAN4", prefix: str | None = None) -> str:
    """The address of a file named as face-alignment's author names them."""
    digest = hashlib.sha256(content).hexdigest()[:10] if prefix is None else prefix
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}-{digest}.pth.tar"
    path.write_bytes(content)
    return path.as_uri()


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_one_sentence_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "face_alignment", None)  # as if it were not installed
    with pytest.raises(InputError, match=rf"'{name}'.*uv sync --extra detectors") as error:
        detect.detect([np.zeros((90, 90, 3), np.uint8)], name)
    assert "\n" not in str(error.value)


def test_weights_are_fetched_once(tmp_path: Path, hub: Path) -> None:
    url = published(tmp_path / "site", b"weights")
    path = fetch(url)
    assert path.parent == hub and path.read_bytes() == b"weights"
    (tmp_path / "site" / path.name).unlink()
    assert fetch(url) == path


@pytest.mark.parametrize(
    "url", ["https://unreachable.invalid/2DFAN4-0123456789.pth.tar", "file:///nowhere/a-1.pth.tar"]
)
def test_weights_that_cannot_be_fetched_are_one_sentence(url: str, hub: Path) -> None:
    file_name = url.rpartition("/")[2]
    with pytest.raises(InputError) as error:
        fetch(url)
    message = str(error.value)
    assert url in message and str(hub / file_name) in message and "\n" not in message
    assert not list(hub.glob("*"))  # nothing half-written


def test_a_file_that_was_not_published_is_never_opened(tmp_path: Path, hub: Path) -> None:
    url = published(tmp_path / "site", b"something else", prefix="0123456789")
    with pytest.raises(InputError, match="0123456789"):
        fetch(url)
    hub.mkdir(parents=True, exist_ok=True)
    (hub / url.rpartition("/")[2]).write_bytes(b"half a downl")
    with pytest.raises(InputError, match="not the file that face-alignment's author published"):
        fetch(url)


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(InputError, match=r"'dlib'.*builtin.*face-alignment-2d"):
        detect.detect([], "dlib")


class Brightest(nn.Module):
    """A landmark network that finds the bright spot, 68 times: what is left to test is where that lies."""

    def forward(self, crops: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(crops.mean(1, keepdim=True), 4).repeat(1, 68, 1, 1)


@pytest.fixture
def random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real networks with weights that mean nothing, published as the real ones are."""
    api = pytest.importorskip("face_alignment.api")
    models = pytest.importorskip("face_alignment.models")
    depth = {"state_dict": {f"module.{key}": value for key, value in models.ResNetDepth().state_dict().items()}}
    for name, stem, content in (
        ("2DFAN-4", "2DFAN4", models.FAN(4).state_dict()),
        ("3DFAN-4", "3DFAN4", models.FAN(4).state_dict()),
        ("depth", "depth", depth),
    ):
        torch.save(content, tmp_path / "weights")
        monkeypatch.setitem(
            api.models_urls, name, published(tmp_path / "site", (tmp_path / "weights").read_bytes(), stem)
        )


@pytest.mark.slow
@pytest.mark.usefixtures("random_weights")
def test_the_real_networks_answer_in_our_shapes() -> None:
    picture = read_picture(PORTRAIT)
    for name, n_dims in ((TWO_D, 2), (THREE_D, 3)):
        result = detect.detect([picture, np.zeros((64, 64, 3), np.uint8)], name)
        assert result.landmarks.shape == (2, 68, n_dims) and result.found.tolist() == [True, False]
        assert np.isfinite(result.landmarks).all() and result.landmarks[0].any() and not result.landmarks[1].any()
        assert result.convention == detect.CONVENTION_OF[name]


@pytest.mark.slow
@pytest.mark.usefixtures("random_weights")
def test_points_lie_where_the_network_sees_them() -> None:
    """Unbiased, and off by no more than the heat map's cells, of 1/64 of a square twice as large as the face."""
    loaded = network(TWO_D, "cpu")
    loaded.face_alignment_net = Brightest()
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:600, 0:600]
    errors = []
    for _ in range(40):
        size = 200.0
        x, y = rng.uniform(250, 350, 2)
        spot = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 2 / (0.04 * size) ** 2)
        corner = np.array([x, y]) + rng.uniform(-0.7, -0.3, 2) * size
        box = (*corner, *(corner + size))
        picture = np.repeat(spot.astype(np.uint8)[..., None], 3, axis=2)
        errors.append(face_alignment_backend.landmarks(picture, box, TWO_D)[0] - (x, y))
    cell = 2 * 200 / 195 * size / 64
    assert np.abs(errors).max() < cell and np.abs(np.mean(errors, axis=0)).max() < 0.2 * cell


class OneFace(nn.Module):
    """A landmark network that sees one face, of which the landmarks are known, in every crop around it."""

    def __init__(self, landmarks: Tensor, convention: str):
        super().__init__()
        low, high = landmarks[:, :2].amin(0), landmarks[:, :2].amax(0)
        side = (high - low).sum() / 195 * 200  # how face-alignment cuts a square around a box
        centre = (low + high) / 2 - torch.tensor([0.0, 0.12]) * (high - low)
        shape = convert(landmarks, FACEMESH68, convention)[:, :2]
        self.points = ((shape - centre) / side + 0.5) * 64 - 0.5

    def forward(self, crops: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
        away = (columns - self.points[:, 0, None, None]) ** 2 + (rows - self.points[:, 1, None, None]) ** 2
        return torch.exp(-away)[None].repeat(len(crops), 1, 1, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("random_weights")
@pytest.mark.parametrize("name", NAMES)
def test_a_video_tracked_by_it_is_a_motion_of_our_own_convention(tmp_path: Path, name: str) -> None:
    """A network that says in iBUG's points what the built-in one says in FaceMesh's gives the same Motion, nearly."""
    picture = read_picture(PORTRAIT)[:260, :300]
    write = tmp_path / "still.mp4"
    with VideoWriter(write, 300, 260) as writer:
        for _ in range(3):
            writer.write(picture)
    ours = track(write)
    loaded = network(name, "cpu")
    loaded.face_alignment_net, loaded.flip_input = OneFace(ours.posed()[0], detect.CONVENTION_OF[name]), False
    theirs = track(write, name)
    assert theirs.convention == FACEMESH68 and theirs.model == ours.model
    assert theirs.provenance["detector"] == name
    assert theirs.provenance["detected_convention"] == detect.CONVENTION_OF[name]
    apart = (ours.posed() - theirs.posed())[..., :2].norm(dim=-1) / eye_distance(ours.posed()[..., :2])[:, None]
    assert apart.mean() < 0.04  # the heat map's cells, and there and back
