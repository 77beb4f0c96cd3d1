"""Fitting and frontalising: what made the points is found again, and the mouth does not move the head."""

import time

import pytest
import torch
from torch import Tensor

from common.face.fit import fit, frontalise
from common.face.model import FaceModel
from common.face.pos import Pose, euler_rad, flip_image, from_euler_rad

MODEL = FaceModel.builtin()
MM = MODEL.metres_per_unit * 1000  # millimetres per unit
DEGREE = torch.pi / 180


def face(seed: int, n_frames: int, amount: float = 1.0) -> tuple[Tensor, Tensor]:
    """Random coefficients of one person: identity [K] and expression [T, E]."""
    generator = torch.Generator().manual_seed(seed)
    identity = amount * MODEL.identity_std * torch.randn(len(MODEL.identity_std), generator=generator)
    expression = MODEL.expression_std * torch.randn(n_frames, len(MODEL.expression_std), generator=generator)
    return identity, amount * expression


def poses(seed: int, n_frames: int, spread_rad: float = 0.2) -> Pose:
    generator = torch.Generator().manual_seed(100 + seed)
    angles = spread_rad * torch.randn(n_frames, 3, generator=generator)
    scale = 80 + 10 * torch.rand(n_frames, generator=generator)
    return Pose(scale, from_euler_rad(angles), 128 + 10 * torch.randn(n_frames, 2, generator=generator))


def angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angle between rotations [..., 3, 3] in degrees."""
    trace = (a.double() @ b.double().mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.acos(((trace - 1) / 2).clamp(-1, 1)) / DEGREE


def open_mouth(shape: Tensor, drop: float) -> Tensor:
    """Lower lip and chin of [..., 68, 3] go down and back by a turn of the jaw: `drop` units at the chin."""
    opened = shape.clone()
    share = {8: 1.0, 7: 0.95, 9: 0.95, 6: 0.85, 10: 0.85, 5: 0.6, 11: 0.6, 4: 0.35, 12: 0.35, 3: 0.15, 13: 0.15}
    share |= dict.fromkeys((55, 56, 57, 58, 59, 65, 66, 67), 0.9)
    for point, part in share.items():
        opened[..., point, 1] -= part * drop
        opened[..., point, 2] -= 0.4 * part * drop
    return opened


@pytest.mark.parametrize("depth", [3, 2])
def test_fit_finds_the_face_that_made_the_points(depth: int) -> None:
    identity, expression = face(0, 40)
    pose = poses(0, 40)
    shape = MODEL.shape(identity, expression)
    seen = flip_image(pose.project(shape), 256)[..., :depth]
    found = fit(MODEL, seen, 256)
    error_mm = (found.pose.project(MODEL.shape(found.identity, found.expression)) - pose.project(shape))[..., :2]
    assert (error_mm / pose.scale[:, None, None] * MM).norm(dim=-1).mean() < 0.6  # the prior's pull
    assert angle_deg(found.pose.rotation, pose.rotation).median() < 2.5
    residual = (
        flip_image(found.pose.project(MODEL.shape(found.identity, found.expression)), 256)[..., :2] - seen[..., :2]
    )
    torch.testing.assert_close(found.residual_px, residual.square().sum(-1).mean(-1).sqrt(), atol=1e-3, rtol=0)


def test_frontalising_and_posing_give_the_picture_back_exactly() -> None:
    generator = torch.Generator().manual_seed(5)
    seen = flip_image(poses(5, 30, 0.4).project(MODEL.shape(*face(5, 30))), 300)
    seen = seen + 2 * torch.randn(seen.shape, generator=generator)  # what no basis explains is kept, too
    lm3d, pose = frontalise(seen, 300, MODEL)
    again = flip_image(pose.project(MODEL.mean + lm3d), 300)
    torch.testing.assert_close(again[..., :2], seen[..., :2], atol=1e-3, rtol=0)
    offset = again[..., 2] - seen[..., 2]
    torch.testing.assert_close(offset, offset[:, :1].expand(-1, 68), atol=1e-3, rtol=0)


@pytest.mark.parametrize("n_frames", [1, 25])
def test_a_wide_open_mouth_does_not_pitch_the_head(n_frames: int) -> None:
    """35 mm of chin drop, more than the data have, on ten people, alone or in the midst of a clip."""
    for seed in range(10):
        identity, _ = face(seed, 1)
        shut = MODEL.shape(identity)
        drop = 0.35 * torch.linspace(0, 1, n_frames) if n_frames > 1 else torch.tensor([0.35])
        shapes = torch.stack([open_mouth(shut, float(d)) for d in drop])
        pose = poses(seed, 1)
        pose = Pose(
            pose.scale.expand(n_frames), pose.rotation.expand(n_frames, 3, 3), pose.translation.expand(n_frames, 2)
        )
        _, found = frontalise(flip_image(pose.project(shapes), 256), 256, MODEL)
        _, at_rest = frontalise(flip_image(pose.project(shut[None].expand(n_frames, -1, -1)), 256), 256, MODEL)
        assert angle_deg(found.rotation, at_rest.rotation).max() < 1.0
        # Within one clip the shape is shared, so opening the mouth moves the pose by nothing at all.
        assert angle_deg(found.rotation, found.rotation[:1]).max() < 0.05


def test_a_turning_head_keeps_its_shape() -> None:
    """One face from -50 to 50 degrees of yaw, with a depth that is a fifth too flat and noisy, as FaceMesh's is."""
    generator = torch.Generator().manual_seed(1)
    n = 41
    angles = torch.zeros(n, 3)
    angles[:, 1] = torch.linspace(-50, 50, n) * DEGREE
    pose = Pose(torch.full((n,), 80.0), from_euler_rad(angles), torch.full((n, 2), 128.0))
    seen = pose.project(MODEL.shape(face(2, 1)[0])[None].expand(n, -1, -1))
    seen = seen * torch.tensor([1.0, 1.0, 0.8]) + torch.tensor([0.3, 0.3, 2.0]) * torch.randn(
        n, 68, 3, generator=generator
    )
    lm3d, found = frontalise(flip_image(seen, 256), 256, MODEL)
    yaw = euler_rad(found.rotation)[:, 1] / DEGREE
    assert (torch.diff(yaw) > 0).all()
    assert (yaw - angles[:, 1] / DEGREE).abs().max() < 6
    wander_mm = (lm3d - lm3d.mean(dim=0)).square().mean(dim=(0, 1)).sqrt() * MM
    assert (wander_mm < torch.tensor([3.5, 1.0, 4.5])).all()  # 2 px of noise in depth alone are 2.5 mm


def test_depth_of_a_flat_detector_hardly_turns_the_head() -> None:
    pose = poses(7, 20, 0.3)
    exact = pose.project(MODEL.shape(face(7, 1)[0])[None].expand(20, -1, -1))
    _, right = frontalise(flip_image(exact, 256), 256, MODEL)
    _, flat = frontalise(flip_image(exact * torch.tensor([1.0, 1.0, 0.8]), 256), 256, MODEL)
    assert angle_deg(right.rotation, flat.rotation).max() < 5


def test_a_clip_is_frontalised_the_same_at_any_picture_size() -> None:
    seen = flip_image(poses(3, 10).project(MODEL.shape(*face(3, 10))), 256)
    lm3d, pose = frontalise(seen, 256, MODEL)
    large, large_pose = frontalise(seen * 4, 1024, MODEL)
    torch.testing.assert_close(large, lm3d, atol=1e-3, rtol=0)
    torch.testing.assert_close(large_pose.scale, pose.scale * 4, rtol=1e-3, atol=0)


def test_two_thousand_frames_take_about_a_second() -> None:
    seen = flip_image(poses(4, 2000).project(MODEL.shape(*face(4, 2000))), 256)
    frontalise(seen[:10], 256, MODEL)
    start = time.process_time()
    frontalise(seen, 256, MODEL)
    assert time.process_time() - start < 3  # of processor time; about 0.3 s on one quiet core


@pytest.mark.parametrize("shape", [(68, 3), (5, 67, 3), (0, 68, 3), (5, 68, 4)])
def test_what_is_not_landmarks_is_refused(shape: tuple[int, ...]) -> None:
    for call in (lambda p: fit(MODEL, p, 256), lambda p: frontalise(p, 256, MODEL)):
        with pytest.raises(ValueError, match="landmarks must be"):
            call(torch.zeros(shape))
    with pytest.raises(ValueError, match="depth"):
        frontalise(torch.rand(5, 68, 2), 256, MODEL)
