"""The square around a face and the reference made from it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.face.framing import FOUR_K_PX, Crop, ReferencePicture, frame_face, frame_shot, within_4k
from common.face.model import FaceModel
from common.face.pos import flip_image


def face_at(x: float, y: float, size: float) -> np.ndarray:
    """The built-in mean face, seen from the front, `size` pixels tall."""
    mean = FaceModel.builtin().mean.numpy()
    points = mean * (size / np.ptp(mean[:, 1]))
    return np.stack([points[:, 0] + x, y - points[:, 1], -points[:, 2]], axis=1).astype(np.float32)


@settings(deadline=None)  # the first example loads the face model
@given(
    width=st.integers(64, 3000),
    height=st.integers(64, 3000),
    size=st.floats(5, 2000),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_the_square_stays_inside_the_picture(width: int, height: int, size: float, x: float, y: float) -> None:
    crop = frame_face(face_at(x * width, y * height, size), width, height)
    assert crop.side >= 1 and 0 <= crop.x0 <= width - crop.side and 0 <= crop.y0 <= height - crop.side


def test_the_square_holds_face_and_hair_twice_as_high() -> None:
    points = face_at(1000, 1000, 200)
    crop = frame_face(points, 2000, 2000)
    mesh_height = 1.19 * np.ptp(points[:, 1])
    assert crop.side == pytest.approx(2 * mesh_height, abs=1)
    inside = crop.points(points)
    assert inside[:, :2].min() > 0 and inside[:, :2].max() < crop.size_px


def test_a_picture_cut_before_is_not_cut_again() -> None:
    assert frame_face(face_at(128, 140, 100), 256, 256) == Crop(0, 0, 256, 256)
    assert frame_face(face_at(60, 60, 30), 256, 256).side < 100


def test_points_follow_pixels() -> None:
    """A bright block in the picture is at the same place in the crop as its centre says."""
    picture = np.zeros((400, 500, 3), np.uint8)
    picture[196:205, 296:305] = 255
    crop = Crop(180, 90, 230, 256)
    shown = crop.cut(picture)[..., 0].astype(float)
    rows, columns = np.mgrid[0:256, 0:256]
    seen = (shown * columns).sum() / shown.sum(), (shown * rows).sum() / shown.sum()
    wanted = crop.points(np.array([[300.0, 200.0, 0.0]]))[0, :2]
    assert np.allclose(seen, wanted, atol=0.05)


def test_a_reference_projects_back_onto_its_landmarks() -> None:
    model = FaceModel.builtin()
    points = face_at(300, 280, 180)
    reference = ReferencePicture.of(np.zeros((600, 700, 3), np.uint8), points, model)
    back = flip_image(reference.pose.project(model.mean + reference.lm3d), 256)
    assert torch.allclose(back[:, :2], reference.landmarks[:, :2], atol=1e-2)


def test_the_mean_face_is_a_reference_of_itself() -> None:
    reference = ReferencePicture.mean(FaceModel.builtin())
    assert reference.landmarks[:, :2].min() > 0 and reference.landmarks[:, :2].max() < 256
    assert reference.turn_rad < 1e-3 and not reference.lm3d.any()


def test_the_square_of_a_shot_stands_still_while_the_head_about_does() -> None:
    shot = np.stack([face_at(500 + 6 * np.sin(k), 400, 150) for k in range(50)])
    crops = frame_shot(shot, 1280, 720, 25)
    assert len(set(crops)) == 1 and crops[0] == frame_face(shot, 1280, 720)


@settings(deadline=None, max_examples=20)
@given(speed=st.floats(-40, 40), size=st.floats(40, 300), start=st.floats(0, 1))
def test_the_square_follows_a_head_that_walks(speed: float, size: float, start: float) -> None:
    shot = np.stack([face_at(1280 * start + speed * k, 400, size) for k in range(60)])
    crops = frame_shot(shot, 1280, 720, 25)
    assert len(crops) == 60 and len({crop.side for crop in crops}) == 1
    for crop in crops:
        assert crop.side >= 1 and 0 <= crop.x0 <= 1280 - crop.side and 0 <= crop.y0 <= 720 - crop.side
    steps = np.diff([crop.x0 for crop in crops])
    assert np.abs(steps).max() <= abs(speed) + 2  # never faster than the head


def test_a_walking_head_is_shown_larger_than_by_one_square_for_all() -> None:
    shot = np.stack([face_at(200 + 15 * k, 400, 150) for k in range(60)])
    crops = frame_shot(shot, 1280, 720, 25)
    assert crops[0].side < 0.8 * frame_face(shot, 1280, 720).side
    for crop, points in zip(crops[5:-5], shot[5:-5], strict=True):
        inside = crop.points(points)[:, :2]
        assert inside.min() > 0 and inside.max() < 256


@pytest.mark.parametrize("width, height", [(3840, 2160), (2160, 3840), (640, 480), (8000, 600), (4000, 3000)])
def test_pictures_are_made_no_larger_than_4k(width: int, height: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    at = np.array([width / 4, height / 2])
    picture[int(at[1]) - 8 : int(at[1]) + 8, int(at[0]) - 8 : int(at[0]) + 8] = 255
    points = np.broadcast_to([*(at - 0.5), 10.0], (68, 3)).astype(np.float32)
    small, moved = within_4k(picture, points)
    assert max(small.shape[:2]) <= FOUR_K_PX[0] and min(small.shape[:2]) <= FOUR_K_PX[1]
    if max(width, height) <= FOUR_K_PX[0] and min(width, height) <= FOUR_K_PX[1]:
        assert small is picture and moved is points
    rows, columns = np.nonzero(small[..., 0] > 127)
    assert np.abs(moved[0, :2] - [columns.mean(), rows.mean()]).max() < 0.6
