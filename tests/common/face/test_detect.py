"""The finder and the landmark network, on pictures that come with the project and with scikit-image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from common.errors import InputError
from common.face import detect
from common.face.data import crop, from_crop, read_backgrounds, similarity, to_crop
from common.media import read_picture

PORTRAIT = Path(__file__).parents[3] / "examples" / "portrait.jpg"


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return read_picture(PORTRAIT)


def eye_distance(landmarks: np.ndarray) -> float:
    return float(np.linalg.norm(landmarks[36:42, :2].mean(0) - landmarks[42:48, :2].mean(0)))


def test_the_examples_face_is_found_where_it_is(portrait: np.ndarray) -> None:
    faces = detect.find_faces(portrait)
    assert len(faces) == 1
    points = faces[0].landmarks
    # Read off the picture: the eyes' middle lies near (181, 138), the mouth's near (180, 186).
    assert np.allclose(points[36:48, :2].mean(0), (181, 138), atol=6)
    assert np.allclose(points[48:60, :2].mean(0), (180, 186), atol=6)
    assert points[36:48, 1].mean() < points[30, 1] < points[48:60, 1].mean() < points[8, 1]
    assert points[36:42, 0].mean() < points[30, 0] < points[42:48, 0].mean()


def test_no_face_is_seen_where_there_is_none() -> None:
    """In pictures that the networks were trained on, and in some that they never saw."""
    unseen = [data.stereo_motorcycle()[0], data.colorwheel(), np.stack([data.cell()] * 3, axis=2)]
    assert [len(detect.find_faces(picture)) for picture in [*read_backgrounds(None, 512), *unseen]] == [0] * 17


def test_a_plain_picture_of_any_size_is_no_face() -> None:
    for shape in ((64, 64), (64, 900), (1500, 70)):
        assert detect.find_faces(np.full((*shape, 3), 128, np.uint8)) == []


def test_a_shifted_picture_has_shifted_landmarks(portrait: np.ndarray) -> None:
    moved = np.pad(portrait, ((40, 0), (60, 0), (0, 0)), mode="edge")
    before, after = (detect.find_faces(picture)[0].landmarks for picture in (portrait, moved))
    error = np.linalg.norm((after - before)[:, :2] - (60, 40), axis=1).mean()
    assert error < 0.03 * eye_distance(before)


def test_a_mirrored_picture_has_mirrored_landmarks(portrait: np.ndarray) -> None:
    from common.face.model import MIRROR

    before = detect.find_faces(portrait)[0].landmarks
    after = detect.find_faces(np.ascontiguousarray(portrait[:, ::-1]))[0].landmarks[list(MIRROR)]
    after[:, 0] = portrait.shape[1] - 1 - after[:, 0]
    assert np.linalg.norm((after - before)[:, :2], axis=1).mean() < 0.03 * eye_distance(before)


def test_size_does_not_matter(portrait: np.ndarray) -> None:
    from PIL import Image

    before = detect.find_faces(portrait)[0].landmarks
    large = np.asarray(
        Image.fromarray(portrait).resize((portrait.shape[1] * 4, portrait.shape[0] * 4), Image.Resampling.BICUBIC)
    )
    after = (detect.find_faces(large)[0].landmarks[:, :2] + 0.5) / 4 - 0.5
    assert np.linalg.norm(after - before[:, :2], axis=1).mean() < 0.03 * eye_distance(before)


def test_a_picture_on_its_side_is_recognised_as_such(portrait: np.ndarray) -> None:
    assert detect.turn_that_shows_a_face(np.rot90(portrait, -1)) == 90
    assert detect.turn_that_shows_a_face(np.full((90, 70, 3), 40, np.uint8)) == 0


def test_two_faces_come_largest_first(portrait: np.ndarray) -> None:
    small = data.astronaut()[::2, ::2]
    canvas = np.full((portrait.shape[0], portrait.shape[1] + small.shape[1], 3), 90, np.uint8)
    canvas[:, : portrait.shape[1]] = portrait
    canvas[: small.shape[0], portrait.shape[1] :] = small
    faces = detect.find_faces(canvas)
    assert len(faces) == 2 and faces[0].size_px > faces[1].size_px
    assert {face.landmarks[30, 0] > portrait.shape[1] for face in faces} == {False, True}


def test_a_box_drawn_by_hand_gives_the_same_landmarks(portrait: np.ndarray) -> None:
    found = detect.find_faces(portrait)[0]
    drawn = detect.landmarks_at(portrait, found.box)
    assert np.linalg.norm((drawn.landmarks - found.landmarks)[:, :2], axis=1).mean() < 0.03 * eye_distance(
        found.landmarks
    )


@pytest.mark.parametrize("box", [(10, 10, 10, 50), (50, 50, 20, 80), (5000, 5000, 5100, 5100), (-90, -90, -10, -10)])
def test_an_empty_box_is_refused(portrait: np.ndarray, box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="face box"):
        detect.landmarks_at(portrait, box)


def test_detect_says_which_pictures_have_a_face(portrait: np.ndarray) -> None:
    result = detect.detect([portrait, np.zeros((80, 80, 3), np.uint8)])
    assert result.found.tolist() == [True, False]
    assert result.landmarks.shape == (2, 68, 3) and result.landmarks.dtype == np.float32
    assert not result.landmarks[1].any()
    assert result.convention == "facemesh68"  # what the networks were trained on


def test_the_built_in_back_end_is_the_finders_largest_face(portrait: np.ndarray) -> None:
    face = detect.find_faces(portrait)[0]
    assert np.array_equal(detect.detect([portrait], detect.BUILTIN).landmarks[0], face.landmarks)
    again = detect.landmarks_by(detect.BUILTIN, portrait, face.box)
    assert np.linalg.norm((again - face.landmarks)[:, :2], axis=1).mean() < 0.03 * eye_distance(face.landmarks)


def test_crop_coordinates_round_trip() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 200 * torch.rand(5, 68, 3, generator=generator)
    matrix = similarity(
        100 * torch.rand(5, 2, generator=generator), torch.tensor([10.0, 50, 90, 120, 300]), torch.linspace(-3, 3, 5)
    )
    assert torch.allclose(from_crop(to_crop(points, matrix), matrix), points, atol=1e-3)


def test_a_crop_shows_what_its_matrix_says() -> None:
    """One bright pixel lands where `to_crop` puts it, also in a turned crop."""
    picture = torch.zeros(1, 3, 96, 128)
    picture[:, :, 40, 70] = 1
    matrix = similarity(torch.tensor([[66.0, 44.0]]), torch.tensor([64.0]), torch.tensor([0.5]))
    shown = crop(picture, matrix, 128)[0, 0]
    weight = shown / shown.sum()
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    seen = torch.stack([(weight * columns).sum(), (weight * rows).sum()])
    wanted = (to_crop(torch.tensor([[[70.0, 40.0, 0.0]]]), matrix)[0, 0, :2] + 1) * 64 - 0.5
    assert torch.allclose(seen, wanted, atol=0.1)


def test_the_cut_of_a_large_picture_agrees_with_the_plain_crop() -> None:
    """`_cut` shrinks before it samples; on a smooth picture both must show the same, to a fraction of a pixel."""
    y, x = np.mgrid[0:1200, 0:1600]
    smooth = (127 + 100 * np.sin(x / 90) * np.cos(y / 110))[..., None].repeat(3, 2).astype(np.uint8)
    matrix = similarity(torch.tensor([[700.0, 500.0]]), torch.tensor([800.0]), torch.tensor([0.3]))
    cut = detect._cut(smooth, matrix[0], 128)
    plain = crop(torch.from_numpy(smooth).movedim(-1, 0)[None].float() / 255, matrix, 128) * 2 - 1
    assert (cut - plain).abs().max() < 0.03
