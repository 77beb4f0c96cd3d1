"""POS against reference vectors, and the least-squares pose against what made the points."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from common.face.pos import (
    Pose,
    align,
    euler_rad,
    exp_rotation,
    five_points,
    flip_image,
    from_euler_rad,
    nearest_rotation,
    pos,
    pos_affine,
    pos_five,
)

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
            turn = exp_rotation(step * torch.eye(3, dtype=torch.float64)[axis])
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


def test_euler_angles_round_trip_and_mean_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    angles = 1.5 * (2 * torch.rand(200, 3, generator=generator, dtype=torch.float64) - 1)
    torch.testing.assert_close(euler_rad(from_euler_rad(angles)), angles, atol=1e-9, rtol=0)
    pitch, yaw, roll = from_euler_rad(0.3 * torch.eye(3, dtype=torch.float64))
    forward, up = torch.tensor([0.0, 0, 1]).double(), torch.tensor([0.0, 1, 0]).double()
    assert (pitch @ forward)[1] < 0  # looks down
    assert (yaw @ forward)[0] > 0  # looks to the image's right
    assert (roll @ up)[0] < 0  # tips to the image's left


def test_gradients_are_finite_where_they_are_awkward() -> None:
    still = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    exp_rotation(still).sum().backward()
    assert still.grad is not None and still.grad.isfinite().all()
    # An exact pose: both singular values of [r1; r2] are 1, where an SVD's gradient is infinite.
    points = VECTORS["points3d"][0]
    seen = random_poses(1).project(points)[0, :, :2].requires_grad_()
    pose = pos(points, seen)
    (pose.rotation.sum() + pose.scale).backward()
    assert seen.grad is not None and seen.grad.isfinite().all() and seen.grad.abs().sum() > 0


def test_degenerate_points_give_finite_poses() -> None:
    line = torch.linspace(0, 1, 68)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    for points3d, points2d in ((line, line[:, :2]), (torch.zeros(68, 3), torch.zeros(68, 2))):
        for pose in (pos(points3d, points2d), align(points3d, points2d)):
            assert pose.rotation.isfinite().all() and pose.scale.isfinite()


def test_points_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[67, 3\]"):
        pos(torch.zeros(67, 3), torch.zeros(68, 2))
