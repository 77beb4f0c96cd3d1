"""POS: head pose from orthography and scaling, and the pose that follows from it.

Two spaces meet here. *Image landmarks* are pixels, x right, y down, z in the same scale and negative towards the camera
(FaceMesh's convention). *Face space* is right-handed: x to the image's right, y up, z towards the camera.
`flip_image` is the one function that goes from one to the other; everything else in this module has v up.

The model is scaled orthography: u = s r1·X + t_x, v = s r2·X + t_y. `pos` solves it in closed form, as the
preprocessing of Deep3DFaceRecon does (which keeps only s and t), with 3DDFA's rotation beside it; `align` is the
least-squares pose under a true rotation, in which depth may count as much or as little as it deserves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.face.rotations import GENERATORS, from_axis_angle

DEPTH_WEIGHT = 0.1  # of a squared depth residual beside a squared pixel: monocular depth is some three times noisier
_THIN = 1e-6  # second variance by all of it, below which points lie on one line: 1 mm across where 1 m long
_IRRATIONAL = (1.0, math.pi, math.e)
_MOTIONS = (*GENERATORS, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))  # of projected points: turn, scale


@dataclass(frozen=True)
class Pose:
    """Scaled orthographic pose; any leading shape `...` (frames, mostly).

    scale [...]: pixels per model unit; rotation [..., 3, 3]: rows r1, r2, r3 = r1 x r2; translation [..., 2]: pixels.
    """

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def project(self, points3d: Tensor) -> Tensor:
        """Face space [..., P, 3] -> [..., P, 3]: u and v in pixels (v up) and the depth s r3·X, without an offset."""
        turned = self.scale[..., None, None] * (points3d @ self.rotation.mT)  # [..., P, 3]
        return turned + torch.nn.functional.pad(self.translation, (0, 1))[..., None, :]

    def unproject(self, points: Tensor) -> Tensor:
        """The inverse of `project`: u, v, depth [..., P, 3] -> face space [..., P, 3]."""
        centred = points - torch.nn.functional.pad(self.translation, (0, 1))[..., None, :]
        return (centred / self.scale[..., None, None]) @ self.rotation

    def __getitem__(self, index: int | slice | Tensor) -> Pose:
        return Pose(self.scale[index], self.rotation[index], self.translation[index])


def flip_image(points: Tensor, height: int) -> Tensor:
    """Image landmarks (y down, z away from the camera) <-> u, v, depth (v up, depth towards it); its own inverse.

    points: [..., 2] or [..., 3] in pixels; height: rows of the picture, so that v = height - 1 - row.
    """
    if points.shape[-1] not in (2, 3):
        raise ValueError(f"points must be [..., 2] or [..., 3], got shape {list(points.shape)}")
    flipped = [points[..., 0], (height - 1) - points[..., 1]]
    if points.shape[-1] == 3:
        flipped.append(-points[..., 2])
    return torch.stack(flipped, dim=-1)


def five_points(landmarks: Tensor) -> Tensor:
    """68 points [..., 68, D] -> [..., 5, D]: both eyes (mean of their corners), nose tip, both mouth corners.

    Image left first. The references' selection, for pictures or model points alike.
    """
    eyes = [landmarks[..., corners, :].mean(dim=-2) for corners in ([36, 39], [42, 45])]
    return torch.stack([*eyes, landmarks[..., 30, :], landmarks[..., 48, :], landmarks[..., 54, :]], dim=-2)


def pos_affine(points3d: Tensor, points2d: Tensor, weights: Tensor | None = None) -> Tensor:
    """The affine camera that best maps points3d to points2d: [..., 2, 4], rows k0..k3 (for u) and k4..k7 (for v).

    points3d: [..., P, 3]; points2d: [..., P, 2], v up; weights: [..., P], of the squared residuals. Leading shapes
    broadcast. The minimum-norm solution where the points leave it open (all in a plane, fewer than four).
    """
    _check_pair(points3d, points2d, (2,))
    homogeneous = torch.nn.functional.pad(points3d.double(), (0, 1), value=1.0)  # [..., P, 4]
    target = points2d.double()
    if weights is not None:
        root = weights.double().sqrt()[..., None]
        homogeneous, target = homogeneous * root, target * root
    return (torch.linalg.pinv(homogeneous) @ target).mT.to(points2d.dtype)  # [..., 2, 4]


def pos(points3d: Tensor, points2d: Tensor, weights: Tensor | None = None) -> Pose:
    """Closed-form pose of points3d [..., P, 3] in the picture points2d [..., P, 2] (v up); see `pos_affine`.

    scale = (|R1| + |R2|) / 2 and the translation are the references'; the rotation is the nearest one (polar factor of
    the normalised rows), where the references' rows are not orthogonal under noise. Differentiable. Raises ValueError
    where either points can't tell a pose (see `untellable`).
    """
    _check_pair(points3d, points2d, (2,))
    _check(points3d, points2d, weights)
    return pose_from_affine(pos_affine(points3d, points2d, weights))


def pos_five(points3d: Tensor, points2d: Tensor) -> Pose:
    """`pos` on the five points of 68 landmarks each: what crops of published models were made with; noisy."""
    return pos(five_points(points3d), five_points(points2d))


def pose_from_affine(affine: Tensor) -> Pose:
    """Affine camera [..., 2, 4] -> Pose."""
    tiny = torch.finfo(affine.dtype).tiny ** 0.25
    norms = (affine[..., :3].square().sum(dim=-1) + tiny**2).sqrt()  # [..., 2]; finite gradient at zero
    upright = torch.eye(2, 3, dtype=affine.dtype, device=affine.device)  # for points that all lie in one place
    rows = torch.where(norms[..., None] > 2 * tiny, affine[..., :3] / norms[..., None], upright)
    return Pose(norms.mean(dim=-1), nearest_rotation(rows), affine[..., 3])


def nearest_rotation(rows: Tensor) -> Tensor:
    """The rotation whose first two rows are nearest to `rows` [..., 2, 3]: the polar factor, r3 = r1 x r2.

    (A Aᵀ)^(-1/2) A, with the root of the 2x2 matrix in closed form: an SVD's gradient is infinite where the two
    singular values are equal, which is where a good pose is. Parallel rows have no answer; it stays finite.
    """
    gram = rows @ rows.mT  # [..., 2, 2]
    floor = 1e-6 * gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1).square()
    root_det = (gram[..., 0, 0] * gram[..., 1, 1] - gram[..., 0, 1] ** 2).clamp(min=floor).sqrt()
    trace = gram[..., 0, 0] + gram[..., 1, 1]
    identity = torch.eye(2, dtype=rows.dtype, device=rows.device)
    adjugate = trace[..., None, None] * identity - gram  # of gram
    # sqrt(M) = (M + d I) / q with d = sqrt(det M), q = sqrt(tr M + 2 d), and det sqrt(M) = d; so its inverse is:
    inverse_root = (adjugate + root_det[..., None, None] * identity) / (root_det * (trace + 2 * root_det).sqrt())[
        ..., None, None
    ]
    r12 = inverse_root @ rows
    return torch.cat([r12, torch.linalg.cross(r12[..., 0, :], r12[..., 1, :])[..., None, :]], dim=-2)


def align(
    points3d: Tensor,
    points: Tensor,
    weights: Tensor | None = None,
    depth_weight: float = DEPTH_WEIGHT,
    n_iterations: int = 6,
) -> Pose:
    """The least-squares pose with a true rotation, by Gauss-Newton from `pos`.

    points3d: [..., P, 3]; points: [..., P, 2] (v up), or [..., P, 3] with depth (towards the camera, pixels, any
    offset), whose squared residuals count depth_weight times; weights: [P] or [..., P]. Returns Pose [...]. Raises
    ValueError where either points can't tell a pose (see `untellable`).
    """
    _check_pair(points3d, points, (2, 3))
    _check(points3d, points, weights)
    shape = torch.broadcast_shapes(points3d.shape[:-1], points.shape[:-1])
    weights = torch.ones(shape, dtype=points.dtype, device=points.device) if weights is None else weights
    weights = weights.to(points).expand(shape)
    pose = pose_from_affine(pos_affine(points3d, points[..., :2], weights))
    target, x = points.double(), points3d.double().expand(*shape, 3)
    if points.shape[-1] == 2:
        target, depth_weight = torch.nn.functional.pad(target, (0, 1)), 0.0
    scale, rotation = pose.scale.double(), pose.rotation.double()
    share = weights.double() / weights.double().sum(dim=-1, keepdim=True)  # [..., P]

    def centred(value: Tensor) -> Tensor:  # the best translation, depth's offset included, leaves centred residuals
        return value - (share[..., None] * value).sum(dim=-2, keepdim=True)

    x, target = centred(x), centred(target)
    # Second moments are all that the objective needs of the points; the iterations don't see P.
    spread = (share[..., None] * x).mT @ x  # [..., 3, 3]
    cross = (share[..., None] * target).mT @ x  # [..., 3, 3], rows of the picture, columns of face space
    generators = target.new_tensor(_MOTIONS)  # [4, 3, 3]
    weighted = target.new_tensor([1.0, 1.0, depth_weight])[:, None] * generators
    products = torch.einsum("iab,jac->bcij", generators, weighted).reshape(9, 16)
    eye = torch.eye(4, dtype=target.dtype, device=target.device)
    for _ in range(n_iterations):
        camera = scale[..., None, None] * rotation
        turned = camera @ spread @ camera.mT  # moments of the projected points
        error = cross @ camera.mT - turned
        normal = (turned.flatten(-2) @ products).unflatten(-1, (4, 4))
        gradient = error.flatten(-2) @ weighted.flatten(1).T
        damping = 1e-6 * normal.diagonal(dim1=-2, dim2=-1).sum(dim=-1) + 1e-12
        step = torch.linalg.solve(normal + damping[..., None, None] * eye, gradient).clamp(-0.5, 0.5)  # [..., 4]
        rotation = from_axis_angle(step[..., :3]) @ rotation
        scale = scale * step[..., 3].exp()
    mean3d = (share[..., None] * points3d.double()).sum(dim=-2)  # [..., 3]
    mean2d = (share[..., None] * points[..., :2].double()).sum(dim=-2)
    translation = mean2d - scale[..., None] * (rotation @ mean3d[..., None])[..., :2, 0]
    return Pose(scale.to(points), rotation.to(points), translation.to(points))


def untellable(points: Tensor, weights: Tensor | None = None) -> tuple[int, str] | None:
    """The first item of points [..., P, 2 or 3] that can't tell a pose, by number, and why; None where all can.

    Why: not finite, fewer than four different points, or all on one line. weights: [..., P]; points of weight zero
    don't count.
    """
    points = points.detach().double()
    counts = points.new_ones(points.shape[:-1], dtype=torch.bool)
    if weights is not None:
        counts = counts & (weights > 0)
    # One number tells points apart but for coincidences of irrational odds.
    key = sum((a * values for a, values in zip(_IRRATIONAL, points.unbind(-1), strict=False)), points.new_zeros(()))
    key = torch.where(counts, key, torch.inf).sort(dim=-1).values
    n_different = (key.diff(dim=-1) > 0).sum(dim=-1) + counts.all(dim=-1)
    share = counts / counts.sum(dim=-1, keepdim=True)
    centred = points - (share[..., None] * points).sum(dim=-2, keepdim=True)
    moments = centred.mT @ (share[..., None] * centred)  # [..., D, D]
    total = moments.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    # Of the eigenvalues a >= b >= c: ab + ac + bc by (a + b + c)², about b/a where points are thin.
    second = (total.square() - moments.square().sum(dim=(-2, -1))) / 2
    for is_bad, reason in (
        (~points.isfinite().flatten(-2).all(dim=-1), "are not all finite numbers"),
        (n_different < 4, "are fewer than four different points, and a pose needs four"),
        (second <= _THIN * total.square(), "all lie on one line, which can be seen from any side"),
    ):
        if is_bad.any():
            return int(is_bad.flatten().int().argmax()), reason
    return None


def _check(points3d: Tensor, points: Tensor, weights: Tensor | None) -> None:
    """Raise ValueError where either points can't tell a pose, or weights are none."""
    if weights is not None and not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    for what, each in (("model points", points3d), ("image points", points[..., :2])):
        found = untellable(each, weights)
        if found:
            raise ValueError(f"{what}{f' of item {found[0]}' if each.ndim > 2 else ''} {found[1]}")
    if not points[..., 2:].isfinite().all():
        raise ValueError("depths of image points are not all finite numbers")


def _check_pair(points3d: Tensor, points: Tensor, n_axes: tuple[int, ...]) -> None:
    is_pair = points3d.ndim >= 2 and points.ndim >= 2 and points3d.shape[-2] == points.shape[-2]
    if not is_pair or points3d.shape[-1] != 3 or points.shape[-1] not in n_axes:
        raise ValueError(
            f"a pose needs points [..., P, 3] and [..., P, {' or '.join(map(str, n_axes))}], got "
            f"{list(points3d.shape)} and {list(points.shape)}"
        )
