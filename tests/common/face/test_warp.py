"""The warp: exact where it can be known, and masks that mark where it can't."""

import time

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from torch import Tensor

from common.face.model import BROWS, LID_PAIRS, MIRROR, FaceModel
from common.face.warp import (
    apply,
    around_eyes,
    backward_grid,
    border_anchors,
    coarse_grid,
    inner_mouth_mask,
    upsample,
    visibility,
)

SIZE = 256


def face(n: int = 1) -> Tensor:
    """The mean face in a picture of 256: [n, 68, 2]."""
    mean = FaceModel.builtin().mean
    return torch.stack([128 + 80 * mean[:, 0], 110 - 80 * mean[:, 1]], dim=-1).expand(n, -1, -1).contiguous()


def moved(seed: int, n: int = 1, amount_px: float = 3.0) -> Tensor:
    """The mean face under a smooth random motion: shift, turn, and a stretch of the lower half."""
    generator = torch.Generator().manual_seed(seed)
    points = face(n)
    centre = points.mean(dim=1, keepdim=True)
    turn = 1 + 0.03 * amount_px / 3 * torch.randn(n, 2, 2, generator=generator) - 1
    points = points + (points - centre) @ turn + amount_px * torch.randn(n, 1, 2, generator=generator)
    drop = amount_px * torch.rand(n, 1, generator=generator)
    points[..., 1] += drop * ((face(n)[..., 1] - 150) / 40).clamp(0, 1)
    return points


def identity_grid(height: int, width: int) -> Tensor:
    xs, ys = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    return torch.stack([xs, ys], dim=-1).float()[None]


def smooth_picture(height: int = SIZE, width: int = SIZE) -> Tensor:
    """Slow waves [1, 3, H, W] that a bilinear look-up reproduces to a thousandth."""
    grid = identity_grid(height, width)[0]
    waves = [torch.sin(grid[..., 0] / 40), torch.cos(grid[..., 1] / 35), torch.sin((grid[..., 0] + grid[..., 1]) / 50)]
    return torch.stack(waves)[None]


@pytest.mark.parametrize(("height", "width"), [(256, 256), (120, 200)])
def test_the_same_landmarks_give_the_picture_back(height: int, width: int) -> None:
    points = face() * torch.tensor([width / SIZE, height / SIZE])
    grid = backward_grid(points, points, height, width)
    torch.testing.assert_close(grid, identity_grid(height, width), atol=1e-3, rtol=0)
    image = smooth_picture(height, width)
    torch.testing.assert_close(apply(image, grid), image, atol=1e-4, rtol=0)
    assert visibility(grid).min() > 0.999


def test_target_landmarks_look_at_source_landmarks_and_the_border_stays() -> None:
    src, dst = face(8), moved(1, 8)
    grid = backward_grid(src, dst, SIZE, SIZE)
    looked_up = apply(grid.permute(0, 3, 1, 2), dst[:, None])[:, :, 0].mT  # the grid's value at each target landmark
    assert (looked_up - src).norm(dim=-1).mean() < 0.2
    assert (looked_up - src).norm(dim=-1).max() < 1.0
    anchors = border_anchors(SIZE, SIZE)
    at_border = apply(grid.permute(0, 3, 1, 2), anchors.expand(8, 1, -1, -1))[:, :, 0].mT
    assert (at_border - anchors).norm(dim=-1).max() < 0.5


def test_knots_equal_scipys_thin_plate_spline() -> None:
    src, dst = face(), moved(2)
    pairs = [torch.cat([points, around_eyes(points)], dim=1)[0].double() for points in (src, dst)]
    centres = torch.cat([pairs[1], border_anchors(SIZE, SIZE)]).numpy()
    moves = np.concatenate([(pairs[0] - pairs[1]).numpy(), np.zeros((16, 2))])
    # SciPy's kernel is r² log r, half of ours, and it adds `smoothing` where we add (2 px / 256)²; units of a picture.
    spline = RBFInterpolator(centres / SIZE, moves, kernel="thin_plate_spline", smoothing=(2 / SIZE) ** 2 / 2, degree=1)
    knots = identity_grid(SIZE, SIZE)[0, ::85, ::85].reshape(-1, 2).double().numpy()  # 0, 85, 170, 255: a grid of 3
    wanted = torch.from_numpy(knots + spline(knots / SIZE)).reshape(4, 4, 2)
    torch.testing.assert_close(coarse_grid(src, dst, SIZE, SIZE, grid=3)[0].double(), wanted, atol=2e-3, rtol=0)


def test_a_blink_moves_lids_but_neither_brows_nor_rims_of_glasses() -> None:
    src = face()
    dst = src.clone()
    for upper, lower in LID_PAIRS:
        dst[:, upper] = 0.1 * src[:, upper] + 0.9 * src[:, lower]
    assert torch.equal(around_eyes(src), around_eyes(dst))
    flow = backward_grid(src, dst, SIZE, SIZE) - identity_grid(SIZE, SIZE)
    height = (src[0, 40, 1] - src[0, 38, 1]).item()  # of the open eye, pixels

    def moved_by(points: torch.Tensor) -> float:
        at = apply(flow.permute(0, 3, 1, 2), points[None, None])[0, :, 0]
        return float(at.norm(dim=0).max()) / height

    assert moved_by(src[0, list(BROWS)]) < 0.05
    assert moved_by(around_eyes(src)[0]) < 0.15
    assert moved_by(dst[0, [37, 38, 43, 44]]) > 0.6


def test_skin_around_the_eyes_goes_with_the_face() -> None:
    points = face()
    turn = torch.tensor([[0.9, -0.3], [0.4, 1.1]])
    shift = torch.tensor([5.0, -7.0])
    torch.testing.assert_close(around_eyes(points @ turn + shift), around_eyes(points) @ turn + shift)
    assert torch.equal(around_eyes(points[:, MIRROR])[:, [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]], around_eyes(points))


def test_an_affine_flow_upsamples_exactly() -> None:
    coarse = identity_grid(5, 5) * torch.tensor([49.75, 24.75])
    torch.testing.assert_close(upsample(coarse, 100, 200), identity_grid(100, 200), atol=1e-3, rtol=0)


def test_a_frame_ignores_the_rest_of_its_batch() -> None:
    src, dst = face(4), moved(3, 4)
    whole = backward_grid(src, dst, SIZE, SIZE)
    torch.testing.assert_close(backward_grid(src[2:3], dst[2:3], SIZE, SIZE), whole[2:3], atol=1e-4, rtol=0)
    masks = inner_mouth_mask(dst, SIZE, SIZE)
    torch.testing.assert_close(inner_mouth_mask(dst[2:3], SIZE, SIZE), masks[2:3], atol=1e-4, rtol=0)


def test_there_and_back_again() -> None:
    """The flows of both directions undo each other, but for the regularised bending and the grid."""
    src, dst = face(), moved(4)
    there, back = backward_grid(src, dst, SIZE, SIZE), backward_grid(dst, src, SIZE, SIZE)
    image = smooth_picture()
    assert (apply(apply(image, there), back) - image)[..., 20:-20, 20:-20].abs().mean() < 0.01


def test_lips_that_meet_do_not_tear_the_picture() -> None:
    """A target whose inner lips coincide: a singular system for an exact spline."""
    dst = face()
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        dst[:, lower] = dst[:, upper]
    grid = backward_grid(face(), dst, SIZE, SIZE)
    assert grid.isfinite().all()
    assert (grid - identity_grid(SIZE, SIZE)).norm(dim=-1).max() < 6


def test_the_mouth_mask_is_the_inside_of_the_lips() -> None:
    points = face()
    angle = -torch.arange(8) * torch.pi / 4 + torch.pi  # 60 is the left corner; then over the upper lip
    points[0, 60:68] = torch.stack([128 + 20 * angle.cos(), 170 - 10 * angle.sin()], dim=-1)
    mask = inner_mouth_mask(points, SIZE, SIZE)
    assert mask.shape == (1, 1, SIZE, SIZE)
    x, y = points[0, 60:68].unbind(-1)
    area = ((x * y.roll(-1) - y * x.roll(-1)).sum() / 2).abs()
    assert mask.sum() == pytest.approx(float(area), rel=0.05)
    assert mask[0, 0, 170, 128] > 0.99
    assert mask[0, 0, 170, 108] == pytest.approx(0.5, abs=0.1)  # on the outline
    assert mask[0, 0, 185, 128] < 0.01 and mask[0, 0, :100].max() == 0


def test_a_shut_mouth_has_no_inside_and_points_outside_the_picture_do_no_harm() -> None:
    shut = face()
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        shut[:, lower] = shut[:, upper]
    shut[:, 64, 1] = shut[:, 60, 1] = shut[:, 62, 1]
    shut[:, 61:64, 1] = shut[:, 65:68, 1] = shut[0, 60, 1]
    assert inner_mouth_mask(shut, SIZE, SIZE).max() < 0.01
    for offset in (-1000.0, 1000.0):
        mask = inner_mouth_mask(face() + offset, SIZE, SIZE)
        assert mask.shape == (1, 1, SIZE, SIZE) and mask.max() < 0.01


def test_folds_and_smears_are_not_visible_but_shifts_are() -> None:
    grid = identity_grid(SIZE, SIZE)
    assert visibility(grid + 7).min() > 0.99
    folded = grid.clone()
    folded[..., 100:140, 0] = 240 - grid[..., 100:140, 0]  # a strip looks backwards
    assert visibility(folded)[..., 110:130].max() < 0.01
    assert visibility(folded)[..., 170:].min() > 0.99
    smeared = grid.clone()
    smeared[..., 100:140, 0] = 100 + (grid[..., 100:140, 0] - 100) * 0.05
    assert visibility(smeared)[..., 110:130].max() < 0.01


def test_landmarks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 68, 3\]"):
        backward_grid(torch.zeros(1, 68, 3), torch.zeros(1, 68, 3), SIZE, SIZE)
    with pytest.raises(ValueError, match="warp needs"):
        apply(torch.zeros(3, SIZE, SIZE), torch.zeros(1, SIZE, SIZE, 2))


def test_gradients_reach_both_sets_of_landmarks() -> None:
    src, dst = face().requires_grad_(), moved(6).requires_grad_()
    apply(smooth_picture(), backward_grid(src, dst, SIZE, SIZE)).square().mean().backward()
    for points in (src, dst):
        assert points.grad is not None and points.grad.isfinite().all() and points.grad.abs().sum() > 0


def test_a_frame_takes_milliseconds() -> None:
    src, dst, image = face(16), moved(5, 16), smooth_picture()

    def render() -> None:
        grid = backward_grid(src, dst, SIZE, SIZE)
        apply(image, grid), inner_mouth_mask(dst, SIZE, SIZE), visibility(grid)

    render()
    start = time.process_time()
    render()
    assert time.process_time() - start < 16 * 0.03  # of processor time; 0.005 s a frame on one quiet core
