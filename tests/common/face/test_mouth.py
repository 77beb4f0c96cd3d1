"""The mouth's geometry: closing it, keeping the lips apart."""

import pytest
import torch
from torch import Tensor

from common.face.model import LIP_STREAM, REST, FaceModel, eye_distance, mouth_opening
from common.face.mouth import (
    CLOSED_OPENING,
    TOUCHING_OPENING,
    closed,
    keep_lips_apart,
    lip_gap,
    opening_direction,
    set_lip_gap,
)


@pytest.fixture(scope="module")
def face() -> Tensor:
    """The mean face with lips that touch."""
    mean = FaceModel.builtin().mean
    return set_lip_gap(mean, torch.full((3,), 0.002))


def direction() -> Tensor:
    """A jaw that drops and takes the lower lip along: [37, 3] per unit of gap."""
    moved = torch.zeros(37, 3)
    for point in (*range(5, 12), *range(55, 60), 65, 66, 67):
        moved[LIP_STREAM.index(point), 1] = -1.0
    return moved


def test_opening_is_free_of_units_and_of_position(face: Tensor) -> None:
    torch.testing.assert_close(mouth_opening(3.0 * face + 0.5), mouth_opening(face))


def test_a_closed_mouth_stays_exactly_what_it_is(face: Tensor) -> None:
    assert torch.equal(closed(face, direction()), face)


@pytest.mark.parametrize("drop", [0.05, 0.2, 0.4])
def test_an_open_mouth_closes_and_only_lips_and_jaw_move(face: Tensor, drop: float) -> None:
    open_face = face.clone()
    open_face[LIP_STREAM, :] += drop * direction()
    shut = closed(open_face, direction())
    assert lip_gap(shut).max() <= CLOSED_OPENING * eye_distance(face) + 1e-5
    assert torch.equal(shut[REST, :], face[REST, :])
    assert (shut[8] - face[8]).norm() < CLOSED_OPENING * eye_distance(face) + 1e-5  # the chin came back


def test_closing_is_continuous_where_it_sets_in(face: Tensor) -> None:
    most = float(CLOSED_OPENING * eye_distance(face))
    just_below, just_above = (set_lip_gap(face, torch.full((3,), most + d)) for d in (-1e-5, 1e-5))
    assert (closed(just_below, direction()) - closed(just_above, direction())).abs().max() < 1e-4


def test_lips_never_cross_and_free_ones_are_left_alone(face: Tensor) -> None:
    frames = torch.stack([set_lip_gap(face, torch.full((3,), gap)) for gap in (-0.1, 0.0, 0.1)])
    kept = keep_lips_apart(frames, torch.zeros(3))
    assert (lip_gap(kept) >= -1e-7).all()
    torch.testing.assert_close(kept[2], frames[2])
    assert torch.equal(kept[..., [48, 54, 57, 60, 64], :], frames[..., [48, 54, 57, 60, 64], :])


def test_the_models_way_to_open_a_mouth_opens_it_by_one_and_closes_it_again(face: Tensor) -> None:
    model = FaceModel.builtin()
    way = opening_direction(model)
    opened = face.clone()
    opened[LIP_STREAM, :] += 0.3 * way
    assert float(opened[62, 1] - opened[66, 1]) == pytest.approx(0.3 + float(face[62, 1] - face[66, 1]), abs=1e-5)
    assert way[LIP_STREAM.index(8), 1] < -0.1  # the chin goes down
    assert (closed(opened, way) - face).norm(dim=-1).max() < 0.03 * eye_distance(face)


def test_an_open_crooked_mouth_closes_until_its_lips_meet(face: Tensor) -> None:
    opened = face.clone()
    opened[LIP_STREAM, :] += 0.3 * direction()
    opened[62, 0] += 0.02
    shut = closed(opened, direction())
    assert (shut[[61, 62, 63]] - shut[[67, 66, 65]]).norm(dim=-1).max() <= (TOUCHING_OPENING + 1e-5) * eye_distance(
        face
    )
    assert torch.equal(shut[REST, :], opened[REST, :])
