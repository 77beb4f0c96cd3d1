"""What the 68 points mean, and the measured mapping between conventions."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import InputError
from common.face import conventions
from common.face.conventions import CONVENTIONS, FACEMESH68, GAPS, IBUG68, IBUG68_3D, convert
from common.face.conventions_fit import Pairs, fit_correction, fit_mapping, usable
from common.face.model import JAW, MIRROR, FaceModel, eye_distance, mouth_opening
from common.face.pos import Pose, flip_image
from common.face.rotations import euler_rad, from_euler_rad

MOVES = [(source, target) for source in CONVENTIONS for target in CONVENTIONS if source != target]


def faces(n: int = 8, dims: int = 2, seed: int = 0, turn_rad: float = 0.3) -> Tensor:
    """Image landmarks [n, 68, dims] of heads of the built-in model, not too far from the mean, 100 pixels large."""
    generator = torch.Generator().manual_seed(seed)
    model = FaceModel.builtin()

    def draw(std: Tensor) -> Tensor:
        return 0.6 * torch.randn(n, len(std), generator=generator) * std

    shape = model.shape(draw(model.identity_std), draw(model.expression_std))
    angles = turn_rad * (2 * torch.rand(n, 3, generator=generator) - 1)
    pose = Pose(torch.full((n,), 60.0), from_euler_rad(angles), torch.full((n, 2), 128.0))
    return flip_image(pose.project(shape), 256)[..., :dims]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_convention_is_itself(dims: int) -> None:
    points = faces(dims=dims)
    assert all(convert(points, name, name) is points for name in [*CONVENTIONS, "anything"])


@pytest.mark.parametrize(("source", "target"), [("ibug68", "mpeg4"), ("wflw98", "facemesh68"), ("", "ibug68")])
def test_a_pair_that_was_not_measured_is_refused_by_name(source: str, target: str) -> None:
    with pytest.raises(InputError, match=rf"'{source}'.*'{target}'"):
        convert(faces(), source, target)


@pytest.mark.parametrize("shape", [(68,), (67, 2), (3, 68, 4), (5, 68, 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"68, 2 or 3"):
        convert(torch.zeros(shape), FACEMESH68, IBUG68)


def test_numbers_that_are_not_finite_are_refused() -> None:
    points = faces()
    points[1, 5] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        convert(points, FACEMESH68, IBUG68)


@pytest.mark.parametrize(("source", "target"), MOVES)
@given(angle=st.floats(-math.pi, math.pi), zoom=st.floats(0.1, 20), x=st.floats(-500, 500), y=st.floats(-500, 500))
@settings(max_examples=15, deadline=None)
def test_a_moved_turned_or_scaled_picture_gives_moved_turned_or_scaled_points(
    source: str, target: str, angle: float, zoom: float, x: float, y: float
) -> None:
    points = faces(4).double()
    linear = zoom * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    shift = torch.tensor([x, y]).double()
    moved_before = convert(points @ linear.mT + shift, source, target)
    moved_after = convert(points, source, target) @ linear.mT + shift
    assert (moved_before - moved_after).abs().max() < 1e-3 * zoom  # weights are float32, faces 100 px · zoom


@pytest.mark.parametrize(("source", "target"), MOVES)
def test_a_mirrored_face_has_mirrored_points(source: str, target: str) -> None:
    points = faces().double()
    mirrored = points[:, list(MIRROR)] * torch.tensor([-1.0, 1.0])
    once = convert(points, source, target)[:, list(MIRROR)] * torch.tensor([-1.0, 1.0])
    assert (convert(mirrored, source, target) - once).abs().max() < 0.02  # pixels: the range of features is measured


@pytest.mark.parametrize(("source", "target"), [(FACEMESH68, IBUG68), (IBUG68, FACEMESH68)])
def test_mouth_and_lids_open_as_far_as_before(source: str, target: str) -> None:
    before = faces()
    after = convert(before, source, target)
    for one, other in GAPS:
        gap_before, gap_after = ((points[:, one] - points[:, other]).norm(dim=-1) for points in (before, after))
        assert torch.allclose(gap_before, gap_after, atol=1e-3)
    assert torch.allclose(mouth_opening(before), mouth_opening(after), rtol=0.06)  # the eyes' centres move a little


@pytest.mark.parametrize("other", [IBUG68, IBUG68_3D])
@pytest.mark.parametrize("dims", [2, 3])
def test_there_and_back_is_where_it_was(other: str, dims: int) -> None:
    """Both directions to and from the contour are fitted apart: back to 2 % of the eyes' distance, the jaw to 3.5 %."""
    points = faces(64, dims)
    back = convert(convert(points, FACEMESH68, other), other, FACEMESH68)
    error = (back - points)[..., :2].norm(dim=-1) / eye_distance(points[..., :2])[:, None]
    limits = (0.02, 0.035) if other == IBUG68 else (1e-4, 1e-4)  # float32
    assert error.mean() < limits[0] and error[:, list(JAW)].mean() < limits[1]
    assert dims == 2 or other == IBUG68_3D or torch.equal(back[..., 2], points[..., 2])


def test_the_contours_jaw_follows_the_turn_and_the_skulls_does_not() -> None:
    """Turned by 25°, the far cheek's contour lies outside the point on the skull."""
    model = FaceModel.builtin()
    turned = from_euler_rad(torch.tensor([[0.0, math.radians(25), 0.0]]))  # the face looks to the image's right
    pose = Pose(torch.tensor([60.0]), turned, torch.full((1, 2), 128.0))
    points = flip_image(pose.project(model.mean[None]), 256)
    contour, skull = (convert(points, FACEMESH68, name) for name in (IBUG68, IBUG68_3D))
    assert (contour[0, 13:16, 0] > skull[0, 13:16, 0]).all()
    assert convert(points, FACEMESH68, IBUG68_3D)[0, list(JAW), 2].ne(points[0, list(JAW), 2]).any()


def test_the_offset_on_the_skull_turns_with_the_head() -> None:
    """Frontal points converted and then turned are turned points converted."""
    model, offset = FaceModel.builtin(), conventions.builtin().skull_offset
    pose = Pose(torch.tensor([60.0]), from_euler_rad(torch.tensor([[0.1, 0.5, -0.2]])), torch.zeros(1, 2))
    points = flip_image(pose.project(model.mean[None]), 256)
    wanted = flip_image(pose.project((model.mean + offset)[None]), 256)
    assert torch.allclose(convert(points, FACEMESH68, IBUG68_3D), wanted, atol=0.01)


def test_gradients_pass() -> None:
    points = faces().requires_grad_()
    for source, target in MOVES:
        (gradient,) = torch.autograd.grad(convert(points, source, target).square().sum(), points)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def synthetic_pairs(n: int = 120, noise_px: float = 0.3) -> Pairs:
    """facemesh68 faces, and the same moved by the built-in mapping: what a fit must find again."""
    facemesh = faces(n, 3, seed=1)
    ibug = convert(facemesh, FACEMESH68, IBUG68)[..., :2]
    ibug = ibug + noise_px * torch.randn(ibug.shape, generator=torch.Generator().manual_seed(2))
    person = np.array([f"p{k // 4}" for k in range(n)])
    spread, split = np.full(n, 0.01, np.float32), np.array(["train"] * n)
    return Pairs(facemesh.numpy(), ibug.numpy(), spread, person, split, person)


def test_a_fit_finds_the_mapping_that_made_the_pairs(tmp_path: Path) -> None:
    pairs = synthetic_pairs()
    pairs.save(tmp_path / "pairs.npz")
    mapping, table = fit_mapping(Pairs.load(tmp_path / "pairs.npz"))
    conventions.save(tmp_path / "mapping", mapping)
    again = conventions.load(tmp_path / "mapping")
    assert torch.equal(again.to_ibug68.slope, mapping.to_ibug68.slope)
    unseen = faces(40, seed=9)
    error = (again.to_ibug68(unseen) - convert(unseen, FACEMESH68, IBUG68)).norm(dim=-1)
    moved = (unseen - convert(unseen, FACEMESH68, IBUG68)).norm(dim=-1)
    assert error.mean() < 0.25 * moved.mean()
    assert "facemesh68 to ibug68" in table and "ibug68 to facemesh68" in table


def test_a_correction_of_faces_that_agree_is_nothing() -> None:
    points = conventions.normalised(faces(40).double())
    fitted = fit_correction(points, points, conventions.features, 1.0)
    assert fitted.offset.abs().max() == 0 and fitted.slope.abs().max() == 0


def test_pairs_of_different_faces_are_left_out() -> None:
    pairs = synthetic_pairs(8)
    pairs.ibug[3] += 50
    pairs.spread[5] = 0.2
    assert usable(pairs).tolist() == [k not in (3, 5) for k in range(8)]


@given(content=st.binary(min_size=1, max_size=200))
@settings(max_examples=25, deadline=None)
def test_any_other_file_of_pairs_is_one_sentence(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pairs\.npz"):
        Pairs.load(path)


def test_pairs_need_a_predictor_and_dlib_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["pairs", "--data", str(tmp_path), "--out", str(tmp_path / "pairs.npz"), "--predictor"]
    (tmp_path / "predictor.dat").write_bytes(b"not a predictor")
    monkeypatch.setitem(sys.modules, "dlib", None)  # as if it were not installed
    for path, wanted in (("nowhere.dat", "no shape predictor"), ("predictor.dat", "uv pip install dlib-bin")):
        with pytest.raises(InputError, match=wanted):
            conventions.main([*command, str(tmp_path / path)])
    assert not (tmp_path / "pairs.npz").exists()


def test_too_few_people_are_no_measurement() -> None:
    pairs = synthetic_pairs(8)
    with pytest.raises(InputError, match="more people"):
        fit_mapping(pairs)


# What face-alignment's 3D network says of one photograph: some of the reference values of that package's own test.
FACE_ALIGNMENT_3D = {0: (137, 240, -85.9), 4: (152, 327, -53.8), 8: (212, 360, 38.7), 12: (302, 333, -29.4)}
FACE_ALIGNMENT_3D |= {16: (335, 252, -53.9), 20: (188, 198, 24.7), 24: (269, 201, 34.2), 28: (218, 237, 48.3)}
FACE_ALIGNMENT_3D |= {30: (215, 261, 63.4), 36: (170, 228, 7.2), 45: (278, 231, 27.0), 48: (185, 306, 29.9)}
FACE_ALIGNMENT_3D |= {54: (248, 309, 38.2), 57: (224, 315, 52.6)}


def test_face_alignments_depth_points_towards_the_camera() -> None:
    from common.face.pos import align

    model, at = FaceModel.builtin(), list(FACE_ALIGNMENT_3D)
    points = torch.tensor([FACE_ALIGNMENT_3D[k] for k in at], dtype=torch.float32)[None]
    points[..., 2] *= -1  # as our back end does: image landmarks are negative towards the camera
    seen = flip_image(points, 450)
    flat, deep = (align(model.mean[at][None], seen[..., :dims]) for dims in (2, 3))
    assert (euler_rad(flat.rotation) - euler_rad(deep.rotation)).abs().max() < 0.1  # x and y say the same of the head
    modelled = flat.project(model.mean[at][None])[0, :, 2]
    slope, _ = np.polyfit(modelled.numpy(), seen[0, :, 2].numpy(), 1)
    assert 0.85 < slope < 1.15
