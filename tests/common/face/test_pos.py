"""POS against reference vectors, and the least-squares pose against what made the points."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from common.face.pos import (
    Pose,
    align,
    five_points,
    flip_image,
    nearest_rotation,
    pos,
    pos_affine,
    pos_five,
    pose_from_affine,
    untellable,
)
from common.face.rotations import from_axis_angle, from_euler_rad

VECTORS = load_file(Path(__file__).parents[2] / "vectors" / "pos.safetensors")


def random_poses(n: int, seed: int = 0) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    angles = 0.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return Pose(
        60 + 60 * torch.rand(n, generator=generator, dtype=torch.float64),
        from_euler_rad(angles),
        128 + 30 * torch.randn(n, 2, generator=generator, dtype=torch.float64),
    )


def assert_near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def assert_rotations(rotation: Tensor, atol: float = 1e-9) -> None:
    eye = torch.eye(3, dtype=rotation.dtype).expand(rotation.shape)
    torch.testing.assert_close(rotation @ rotation.mT, eye, atol=atol, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), eye[..., 0, 0], atol=atol, rtol=0)


def test_68_points_equal_the_reference() -> None:
    pose = pos(VECTORS["points3d"], VECTORS["points2d"])
    assert_near(pose.scale, VECTORS["s"])
    assert_near(pose.translation, VECTORS["t"])
    assert_near(pose.rotation, VECTORS["R_nearest"])
    assert_near(pos_affine(VECTORS["points3d"], VECTORS["points2d"]), VECTORS["affine"])


def test_five_points_equal_the_reference() -> None:
    assert_near(five_points(VECTORS["points2d"]), VECTORS["lm5"])
    assert_near(five_points(VECTORS["points3d"]), VECTORS["points3d_5"])
    pose = pos_five(VECTORS["points3d"], VECTORS["points2d"])
    assert_near(pose.scale, VECTORS["s5"])
    assert_near(pose.translation, VECTORS["t5"])


def test_one_case_alone_equals_the_batch_and_float32_follows() -> None:
    whole = pos(VECTORS["points3d"], VECTORS["points2d"])
    alone = pos(VECTORS["points3d"][2].float(), VECTORS["points2d"][2].float())
    assert alone.scale.shape == () and alone.scale.dtype == torch.float32
    torch.testing.assert_close(alone.rotation.double(), whole.rotation[2], atol=1e-5, rtol=0)


def test_points_of_weight_zero_have_no_say() -> None:
    points3d, points2d = VECTORS["points3d"], VECTORS["points2d"].clone()
    points2d[:, 48:] += 40  # a mouth torn away
    weights = torch.ones(68)
    weights[48:] = 0
    rest = pos(points3d[:, :48], points2d[:, :48])
    for solve in (pos, align):
        torch.testing.assert_close(
            solve(points3d, points2d, weights).rotation, solve(points3d[:, :48], points2d[:, :48]).rotation
        )
    torch.testing.assert_close(pos(points3d, points2d, weights).scale, rest.scale)


def test_project_and_unproject_are_inverse() -> None:
    pose = random_poses(8)
    points = VECTORS["points3d"]
    torch.testing.assert_close(pose.unproject(pose.project(points)), points)
    depth = pose.scale[:, None] * (points @ pose.rotation[:, 2, :, None])[..., 0]
    torch.testing.assert_close(pose.project(points)[..., 2], depth)


def test_flip_is_its_own_inverse_and_row_0_is_the_top() -> None:
    points = torch.tensor([[10.0, 0.0, -3.0], [20.0, 255.0, 4.0]])
    flipped = flip_image(points, 256)
    assert flipped.tolist() == [[10.0, 255.0, 3.0], [20.0, 0.0, -4.0]]
    assert torch.equal(flip_image(flipped, 256), points)
    assert torch.equal(flip_image(points[:, :2], 256), flipped[:, :2])
    with pytest.raises(ValueError, match=r"\[5\]"):
        flip_image(torch.zeros(5), 256)


@pytest.mark.parametrize("with_depth", [True, False])
def test_align_recovers_the_pose_that_made_the_points(with_depth: bool) -> None:
    pose = random_poses(50)
    shape = VECTORS["points3d"][:1].expand(50, -1, -1)
    seen = pose.project(shape) + torch.tensor([0.0, 0.0, 17.0])  # a camera can't see depth's origin
    found = align(shape, seen if with_depth else seen[..., :2])
    assert_rotations(found.rotation)
    torch.testing.assert_close(found.rotation, pose.rotation, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.scale, pose.scale, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.translation, pose.translation, atol=1e-4, rtol=0)


def test_align_leaves_no_better_pose_nearby() -> None:
    """A least-squares pose under noise: no small step from it lowers the error, with depth weighted or not."""
    generator = torch.Generator().manual_seed(3)
    pose, shape = random_poses(6, seed=3), VECTORS["points3d"][:6]
    noise = 2 * torch.randn(6, 68, 3, generator=generator, dtype=torch.float64)
    seen = pose.project(shape) + noise

    def error(p: Pose) -> Tensor:
        residual = seen - p.project(shape)
        residual = residual - residual.mean(dim=1, keepdim=True)  # translation is closed-form
        return (residual.square() * torch.tensor([1.0, 1.0, 0.2])).sum(dim=(1, 2))

    found = align(shape, seen, depth_weight=0.2, n_iterations=20)
    assert (error(found) <= error(pos(shape, seen[..., :2]))).all()
    for axis in range(3):
        for step in (-1e-3, 1e-3):
            turn = from_axis_angle(step * torch.eye(3, dtype=torch.float64)[axis])
            assert (error(found) < error(Pose(found.scale, turn @ found.rotation, found.translation))).all()
    for factor in (0.999, 1.001):
        assert (error(found) < error(Pose(found.scale * factor, found.rotation, found.translation))).all()


def test_nearest_rotation_is_the_polar_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(100, 2, 3, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    rotation = nearest_rotation(rows)
    assert_rotations(rotation)
    torch.testing.assert_close(rotation[:, :2], left @ right)


def test_gradients_are_finite_at_an_exact_pose() -> None:
    """Both singular values of [r1; r2] are 1 there, where an SVD's gradient is infinite."""
    points = VECTORS["points3d"][0]
    seen = random_poses(1).project(points)[0, :, :2].requires_grad_()
    pose = pos(points, seen)
    (pose.rotation.sum() + pose.scale).backward()
    assert seen.grad is not None and seen.grad.isfinite().all() and seen.grad.abs().sum() > 0


LINE = torch.linspace(0, 1, 68)[:, None] * torch.tensor([1.0, 2.0, 3.0]) + 40
FACE3D, FACE2D = VECTORS["points3d"][0].float(), VECTORS["points2d"][0].float()


def test_the_affine_camera_of_degenerate_points_is_finite() -> None:
    for points in (LINE, torch.zeros(68, 3), torch.ones(2, 3)):
        pose = pose_from_affine(pos_affine(points, points[:, :2]))
        assert pose.rotation.isfinite().all() and pose.scale.isfinite()


def spoilt(points: Tensor, value: float) -> Tensor:
    points = points.clone()
    points[7, 1] = value
    return points


@pytest.mark.parametrize(
    ("points3d", "points2d", "reason"),
    [
        (LINE, FACE2D, "model points all lie on one line"),
        (FACE3D, LINE[:, :2], "image points all lie on one line"),
        (FACE3D, LINE[:, :2] + 1e-3 * FACE2D / FACE2D.max(), "image points all lie on one line"),  # but for rounding
        (FACE3D, torch.full((68, 2), 17.0), "image points are fewer than four"),
        (FACE3D[:3], FACE2D[:3], "model points are fewer than four"),
        (FACE3D, FACE2D[[0, 30, 8] * 22 + [0, 8]], "image points are fewer than four"),
        (FACE3D[:0], FACE2D[:0], "fewer than four"),
        (spoilt(FACE3D, torch.nan), FACE2D, "model points are not all finite"),
        (FACE3D, spoilt(FACE2D, torch.inf), "image points are not all finite"),
        (torch.zeros(67, 3), torch.zeros(68, 2), r"\[67, 3\]"),
        (FACE3D, torch.zeros(68, 4), r"\[68, 4\]"),
    ],
)
def test_points_that_cannot_tell_a_pose_are_refused(points3d: Tensor, points2d: Tensor, reason: str) -> None:
    for solve in (pos, align):
        with pytest.raises(ValueError, match=reason):
            solve(points3d, points2d)


def test_the_refusal_names_the_frame_and_minds_the_weights() -> None:
    batch = FACE2D.repeat(5, 1, 1)
    batch[3] = LINE[:, :2]
    with pytest.raises(ValueError, match="image points of item 3 all lie"):
        align(FACE3D, batch)
    with pytest.raises(ValueError, match="depths"):
        align(FACE3D, torch.nn.functional.pad(FACE2D, (0, 1), value=torch.nan))
    few = torch.zeros(68)
    few[[0, 30, 8]] = 1
    for weights, reason in ((few, "fewer than four"), (-torch.ones(68), "not negative"), (few * torch.nan, "finite")):
        with pytest.raises(ValueError, match=reason):
            pos(FACE3D, FACE2D, weights)
    assert untellable(FACE2D, few + torch.eye(68)[40]) is None


def test_thin_and_flat_is_not_degenerate() -> None:
    """A face in full profile of a small picture, and four corners of a card."""
    assert untellable(FACE2D * torch.tensor([0.02, 1.0])) is None
    assert untellable(torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 2, 0], [0, 2, 0]])) is None


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), n_points=st.integers(4, 30), log_scale=st.floats(-3, 4))
def test_points_in_general_position_are_never_refused(seed: int, n_points: int, log_scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    points3d = torch.randn(n_points, 3, generator=generator, dtype=torch.float64)
    pose = random_poses(1, seed)
    seen = 10**log_scale * pose.project(points3d)[0, :, :2]
    assert_rotations(align(points3d, seen).rotation, atol=1e-8)
