"""ARKit's curves: what they say of faces that are known, and what holds for any take."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import lsq_linear

from common.export import arkit
from common.export.arkit import CURVES, SEEN, UNSEEN, Curves, solve
from common.export.arkit_basis import landmark_basis, mirror, other_side
from common.export.take import METRES_PER_UNIT, Take
from common.face.model import FaceModel, mouth_opening
from tests.common.export.takes import mirrored, smooth_take, takes

MEAN = FaceModel.builtin().mean.double().numpy() * METRES_PER_UNIT
SWAPPED = [CURVES.index(other_side(name)) for name in CURVES]


def _played(values: np.ndarray, fps: float = 25.0) -> Take:
    """The mean face with its mouth closed, moved by curves [T, 52]."""
    take = replace(smooth_take(len(values), fps), neutral=MEAN, is_named=True)
    neutral = arkit.closed_mouth(take)
    basis = landmark_basis(neutral)
    whole = np.stack([basis.get(name, np.zeros((68, 3))) for name in CURVES])
    return replace(take, neutral=neutral, points=neutral + np.einsum("tk,kpc->tpc", values, whole))


def _alone(name: str, value: float, n_keys: int = 5) -> np.ndarray:
    values = np.zeros((n_keys, len(CURVES)))
    values[:, CURVES.index(name)] = value
    return values


def _of(curves: Curves, name: str) -> np.ndarray:
    return curves.values[:, CURVES.index(name)]


def test_there_are_apples_52_and_twelve_stay_zero() -> None:
    assert len(CURVES) == len(set(CURVES)) == 52 and len(UNSEEN) == 12 and set(SEEN) | UNSEEN == set(CURVES)
    curves = solve(smooth_take(20))
    for name in UNSEEN:
        assert not _of(curves, name).any() and not curves.basis[CURVES.index(name)].any()
        assert np.isnan(curves.residual_m[CURVES.index(name)])


def test_every_curve_has_its_mirror_image() -> None:
    assert {other_side(name) for name in CURVES} == set(CURVES)
    tilted = MEAN + np.random.default_rng(0).normal(scale=0.002, size=(68, 3))  # nobody is symmetric
    basis, other = landmark_basis(tilted), landmark_basis(mirror(tilted))
    assert set(basis) == set(SEEN)
    for name, moves in basis.items():
        np.testing.assert_allclose(other[other_side(name)], mirror(moves), atol=1e-12)


def test_a_larger_face_moves_more() -> None:
    small, large = landmark_basis(MEAN), landmark_basis(1.3 * MEAN)
    for name in SEEN:
        np.testing.assert_allclose(large[name], 1.3 * small[name], atol=1e-12)


def test_the_basis_does_what_its_names_say() -> None:
    basis = landmark_basis(MEAN)
    left_x = MEAN[54, 0]
    assert left_x > 0  # the person's left is the picture's right
    for name, point, axis, sign in (
        ("jawOpen", 8, 1, -1), ("jawOpen", 57, 1, -1), ("jawForward", 8, 2, 1), ("jawLeft", 8, 0, 1),
        ("mouthSmileLeft", 54, 1, 1), ("mouthSmileLeft", 54, 0, 1), ("mouthFrownLeft", 54, 1, -1),
        ("mouthPucker", 54, 0, -1), ("mouthPucker", 48, 0, 1), ("mouthPucker", 51, 2, 1), ("mouthLeft", 48, 0, 1),
        ("eyeBlinkLeft", 43, 1, -1), ("eyeWideLeft", 43, 1, 1), ("eyeSquintLeft", 47, 1, 1),
        ("browInnerUp", 21, 1, 1), ("browInnerUp", 22, 1, 1), ("browDownLeft", 24, 1, -1),
        ("browOuterUpLeft", 25, 1, 1), ("mouthUpperUpLeft", 52, 1, 1), ("mouthLowerDownLeft", 56, 1, -1),
        ("noseSneerLeft", 35, 1, 1),
    ):  # fmt: skip
        assert sign * basis[name][point, axis] > 0.001, (name, point)
    for name in ("eyeBlinkLeft", "mouthSmileLeft", "browDownLeft", "noseSneerLeft"):
        there, here = (np.abs(basis[name][side]).sum() for side in (MEAN[:, 0] > 0.001, MEAN[:, 0] < -0.001))
        assert here == 0 < there, name


def test_an_open_jaw_with_closed_lips_leaves_no_gap() -> None:
    basis, neutral = landmark_basis(MEAN), MEAN.copy()
    opened, both = (neutral + basis["jawOpen"] + k * basis["mouthClose"] for k in (0, 1))
    gaps = [points[62, 1] - points[66, 1] - (MEAN[62, 1] - MEAN[66, 1]) for points in (opened, both)]
    assert gaps[0] > 0.025 and abs(gaps[1]) < 0.001
    assert np.array_equal(opened[:17], both[:17])  # the jaw stays where it is


def test_a_blink_closes_the_eye() -> None:
    shut = MEAN + landmark_basis(MEAN)["eyeBlinkLeft"]
    width = np.linalg.norm(MEAN[45] - MEAN[42])
    assert 0 < (shut[43, 1] - shut[47, 1]) / width < 0.04
    assert np.array_equal(shut[36:42], MEAN[36:42])


@given(take=takes(most_keys=10))
@settings(max_examples=20, deadline=None)
def test_curves_lie_between_0_and_1_and_those_of_a_mirrored_take_are_mirrored(take: Take) -> None:
    curves, other = solve(take), solve(mirrored(take))
    assert curves.values.shape == (take.n_keys, 52) and np.isfinite(curves.values).all()
    assert curves.values.min() >= 0 and curves.values.max() <= 1
    np.testing.assert_allclose(other.values[:, SWAPPED], curves.values, atol=1e-4)
    np.testing.assert_allclose(other.residual_m[SWAPPED], curves.residual_m, atol=1e-6)
    assert other.total_residual_m == pytest.approx(curves.total_residual_m, abs=1e-6)


def test_a_face_at_rest_has_all_curves_at_zero() -> None:
    curves = solve(_played(np.zeros((4, 52))))
    assert not curves.values.any() and curves.total_residual_m == 0


@pytest.mark.parametrize("name", SEEN)
def test_a_curve_that_is_played_is_the_strongest_found(name: str) -> None:
    curves = solve(_played(_alone(name, 0.7)))
    found = curves.values.mean(axis=0)
    assert CURVES[int(found.argmax())] == name
    assert 0.3 < found.max() <= 0.75
    assert curves.residual_m[CURVES.index(name)] < 0.5 * curves.moved_m[CURVES.index(name)]


def test_the_jaw_opens_the_mouth_and_opens_it_further_for_wider_mouths() -> None:
    values = _alone("jawOpen", 1.0, 40) * np.linspace(0, 1, 40)[:, None]
    take = _played(values)
    found = _of(solve(take), "jawOpen")
    opening = mouth_opening(torch.from_numpy(take.points)).numpy()
    assert np.corrcoef(found, opening)[0, 1] > 0.99 and (np.diff(found) > -1e-3).all()
    np.testing.assert_allclose(found, values[:, CURVES.index("jawOpen")], atol=0.1)


def test_still_takes_have_the_same_curves_at_any_rate() -> None:
    values = _alone("mouthSmileLeft", 0.4, 6) + _alone("browInnerUp", 0.5, 6)
    slow, fast = solve(_played(values, 24.0)), solve(_played(values, 60.0))
    np.testing.assert_allclose(slow.values, fast.values, atol=1e-5)


def test_one_key_is_bounded_least_squares() -> None:
    """Against SciPy's solver on the same squares, without the price per curve that it doesn't know."""
    take = smooth_take(1)
    neutral = arkit.closed_mouth(take)
    basis = np.stack([landmark_basis(neutral)[name] for name in SEEN])
    weigh, length = arkit._weights(), np.linalg.norm(basis.reshape(len(SEEN), -1) @ arkit._weights(), axis=1)
    ridge = np.sqrt(arkit._RIDGE * arkit._TYPICAL_M / length) * length
    price = arkit._SPARSE_M * arkit._TYPICAL_M
    moves = (take.points[0] - neutral).ravel() @ weigh
    # Completing the square turns the price, which is linear, into an offset of the ridge.
    wanted = lsq_linear(
        np.vstack([(basis.reshape(len(SEEN), -1) @ weigh).T, np.diag(ridge)]),
        np.concatenate([moves, -price / ridge]),
        bounds=(0, 1),
        tol=1e-12,
    ).x
    found = solve(take).values[0, [CURVES.index(name) for name in SEEN]]
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_an_open_mouth_in_the_reference_is_closed_before_curves_are_counted() -> None:
    opened = _played(_alone("jawOpen", 0.3, 2)).points[0]
    take = replace(smooth_take(2), neutral=opened, points=np.stack([opened, opened]), is_named=True)
    neutral = arkit.closed_mouth(take)
    assert neutral[62, 1] - neutral[66, 1] < 0.002 < opened[62, 1] - opened[66, 1]
    assert _of(solve(take), "jawOpen").min() > 0.1


def test_residuals_are_root_mean_squares_weighed_by_what_a_curve_moves() -> None:
    take = smooth_take(7)
    curves, k = solve(take), CURVES.index("jawOpen")
    left = take.points - arkit.closed_mouth(take) - np.einsum("tk,kpc->tpc", curves.values, curves.basis)
    squared, weight = np.square(left).sum(axis=-1), np.square(curves.basis[k]).sum(axis=-1)
    assert curves.total_residual_m == pytest.approx(np.sqrt(squared.mean()))
    assert curves.residual_m[k] == pytest.approx(np.sqrt((squared * weight).sum() / weight.sum() / len(squared)))


def test_the_table_has_a_line_for_every_curve() -> None:
    lines = solve(smooth_take(3)).table().splitlines()
    assert [line.split()[0] for line in lines[1:53]] == list(CURVES)
    assert "68 points" in lines[-1]


def _ict(names: tuple[str, ...]) -> FaceModel:
    """A model with ICT-FaceKit's expression names over the 68 points, in centimetres: our own basis, other sizes."""
    basis, mean = landmark_basis(MEAN), torch.from_numpy(MEAN * 100).float()
    directions = []
    for name in names:
        ours = name.replace("_L", "Left").replace("_R", "Right")
        merged = name.removesuffix("_L").removesuffix("_R")
        if merged == "browInnerUp":  # ICT-FaceKit has it in halves
            half = (MEAN[:, :1] > 0) if name.endswith("_L") else (MEAN[:, :1] < 0)
            directions.append(basis[merged] * half)
        else:
            directions.append(basis.get(ours, np.full((68, 3), 1e-4)))
    expression = torch.from_numpy(np.stack(directions) * 100).float()
    return FaceModel(mean, torch.zeros(0, 68, 3), expression, torch.zeros(0), torch.ones(len(names)) * 0.3, 0.01, "ict",
                     expression_names=names)  # fmt: skip


def _ict_names() -> tuple[str, ...]:
    sided = ("browInnerUp", "cheekPuff")
    names = []
    for name in CURVES:
        if name in sided:
            names += [f"{name}_L", f"{name}_R"]
        elif name != "tongueOut":
            is_whole = name in ("jawLeft", "jawRight", "mouthLeft", "mouthRight")
            names.append(name if is_whole else name.replace("Left", "_L").replace("Right", "_R"))
    return tuple(names)


def test_ict_facekits_53_expressions_are_the_52_curves_without_a_tongue() -> None:
    names = _ict_names()
    assert len(names) == 53
    take = smooth_take(10)
    curves, ours = solve(take, _ict(names)), solve(take)
    assert curves.source == "ict" and ours.source == "landmarks"
    for name in UNSEEN:
        assert not _of(curves, name).any()
    inner = CURVES.index("browInnerUp")
    # The model's face is not this person's: as large as the eyes are apart, so about as far.
    length = np.linalg.norm(curves.basis[inner]), np.linalg.norm(ours.basis[inner])
    assert length[0] == pytest.approx(length[1], rel=1e-4)
    mirrored_curves = solve(mirrored(take), _ict(names))
    np.testing.assert_allclose(mirrored_curves.values[:, SWAPPED], curves.values, atol=1e-4)


def test_a_model_without_those_names_is_refused() -> None:
    with pytest.raises(ValueError, match="has no eyeBlinkLeft"):
        solve(smooth_take(2), FaceModel.builtin())
