"""Fitting the face model to landmarks, and taking the head's pose out of them.

Both find the pose on points that move with the skull (`model.RIGID`), on the shape of this person rather than the mean
one: an open mouth must not pitch the head, and a long nose must not either. Depth from one camera is noisy, so its
residuals count less (`pos.DEPTH_WEIGHT`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.face.model import N_POINTS, RIGID, FaceModel
from common.face.pos import DEPTH_WEIGHT, Pose, align, flip_image

NOISE_M = 0.0015  # what a landmark is off by; sets how far coefficients may leave their prior
_MAX_IDENTITY_FRAMES = 64  # a person's shape is known well enough from so many frames, spread over the clip
_IDENTITY_VOTES = 6.0  # frames of one clip share their errors: all of them together weigh like so many


@dataclass(frozen=True)
class Fit:
    """One person in T frames.

    identity: [K]; expression: [T, E], both in model units; pose: Pose [T], v up; residual_px: [T], the root mean square
    distance in the picture between the 68 landmarks and the fitted model's.
    """

    identity: Tensor
    expression: Tensor
    pose: Pose
    residual_px: Tensor


def fit(model: FaceModel, points: Tensor, height: int, n_rounds: int = 3) -> Fit:
    """Fit one identity, and an expression and pose per frame, to image landmarks [T, 68, 2 or 3] (y down, pixels).

    Alternates the pose of the rigid points with a joint least-squares for all coefficients, under the model's Gaussian
    prior. height: of the picture in pixels.
    """
    _check(points)
    model, seen = model.to(points.device), flip_image(points.float(), height)
    identity = _fit_identity(model, seen, n_rounds)
    expression = seen.new_zeros(len(seen), len(model.expression_std))
    for _ in range(n_rounds - 1):
        pose = _skull_pose(model.shape(identity, expression), seen)
        _, expression = _solve(model, seen, pose, identity)
    error = pose.project(model.shape(identity, expression))[..., :2] - seen[..., :2]
    return Fit(identity, expression, pose, error.square().sum(dim=-1).mean(dim=-1).sqrt())


def frontalise(points: Tensor, height: int, model: FaceModel) -> tuple[Tensor, Pose]:
    """Take one person's pose out of image landmarks: [T, 68, 3] (y down, pixels) -> LM3D [T, 68, 3], Pose [T].

    Only the inverse of a similarity is applied: `pose.project(model.mean + lm3d)`, flipped, is x and y of the input to
    rounding, and its depth up to an offset per frame. height: of the picture in pixels.
    """
    _check(points)
    if points.shape[-1] != 3:
        raise ValueError(f"frontalising needs depth: points must be [T, 68, 3], got {list(points.shape)}")
    model, seen = model.to(points.device), flip_image(points.float(), height)
    skull = model.shape(_fit_identity(model, seen, n_rounds=2))
    pose = _skull_pose(skull, seen)
    return pose.unproject(_without_depth_offset(skull, seen, pose)) - model.mean, pose


def _check(points: Tensor) -> None:
    if points.ndim != 3 or points.shape[1] != N_POINTS or points.shape[2] not in (2, 3) or len(points) == 0:
        raise ValueError(f"landmarks must be [T, 68, 2] or [T, 68, 3], got shape {list(points.shape)}")


def _fit_identity(model: FaceModel, seen: Tensor, n_rounds: int) -> Tensor:
    """One person's coefficients [K] from landmarks [T, 68, 2 or 3], v up; expressions are told apart on the way."""
    seen = seen[_spread(len(seen), _MAX_IDENTITY_FRAMES, seen.device)]
    identity, expression = None, None
    for _ in range(n_rounds):
        pose = _skull_pose(model.shape(identity, expression), seen)
        identity, expression = _solve(model, seen, pose, None)
    assert identity is not None
    return identity


def _spread(n_frames: int, n_wanted: int, device: torch.device) -> Tensor:
    """Numbers of at most n_wanted frames, evenly spread over n_frames."""
    return torch.linspace(0, n_frames - 1, min(n_frames, n_wanted), device=device).round().long()


def _skull_pose(shape: Tensor, seen: Tensor) -> Pose:
    """Pose of `shape` [T or 1, 68, 3] or [68, 3] in `seen` [T, 68, 2 or 3] (v up), from the rigid points."""
    return align(shape[..., RIGID, :].expand(len(seen), -1, 3), seen[:, RIGID], depth_weight=DEPTH_WEIGHT)


def _without_depth_offset(shape: Tensor, seen: Tensor, pose: Pose) -> Tensor:
    """`seen` [T, 68, 3] with depth moved so that the rigid points lie where `shape` has them (a camera can't tell)."""
    modelled = pose.project(shape[..., RIGID, :].expand(len(seen), -1, 3))[..., 2]
    offset = (seen[:, RIGID, 2] - modelled).mean(dim=-1)  # [T]
    return seen - torch.nn.functional.pad(offset[:, None], (2, 0))[:, None]


def _solve(model: FaceModel, seen: Tensor, pose: Pose, identity: Tensor | None) -> tuple[Tensor, Tensor]:
    """Coefficients given the pose: identity [K] (kept where it is given) and expression [T, E].

    Least squares over all frames at once; residuals are turned into face space, where a frame's metric is
    G = Rᵀ diag(1, 1, depth_weight) R, so one product of the bases serves every frame.
    """
    depth_weight = DEPTH_WEIGHT if seen.shape[-1] == 3 else 0.0
    if seen.shape[-1] == 3:
        seen = _without_depth_offset(model.shape(identity), seen, pose)
    else:
        seen = torch.nn.functional.pad(seen, (0, 1))
    residual = pose.unproject(seen) - model.shape(identity)  # [T, 68, 3]
    metric = (pose.rotation.mT * seen.new_tensor([1.0, 1.0, depth_weight])) @ pose.rotation  # [T, 3, 3]
    n_identity = 0 if identity is not None else len(model.identity_std)
    bases = torch.cat([model.identity[:n_identity], model.expression])  # [n, 68, 3]
    products = torch.einsum("npi,mpj->ijnm", bases, bases)
    normal = torch.einsum("tij,ijnm->tnm", metric, products)  # [T, n, n]
    right = torch.einsum("npi,tij,tpj->tn", bases, metric, residual)  # [T, n]
    noise = NOISE_M / model.metres_per_unit
    n_frames = len(seen)
    a_ee = normal[:, n_identity:, n_identity:] + torch.diag((noise / model.expression_std) ** 2)  # [T, E, E]
    if identity is not None:
        return identity, torch.linalg.solve(a_ee, right)
    # Arrow-shaped system: eliminate the frames' own unknowns, solve for the shared ones, go back.
    a_ie, b_i, b_e = normal[:, :n_identity, n_identity:], right[:, :n_identity], right[:, n_identity:]
    gain = torch.linalg.solve(a_ee, a_ie.mT).mT  # [T, K, E]
    schur = (normal[:, :n_identity, :n_identity] - gain @ a_ie.mT).mean(dim=0)
    votes = min(n_frames, _IDENTITY_VOTES)
    prior = torch.diag((noise / model.identity_std) ** 2) / votes
    shared = torch.linalg.solve(schur + prior, (b_i - (gain @ b_e[..., None])[..., 0]).mean(dim=0))
    return shared, torch.linalg.solve(a_ee, b_e - torch.einsum("tke,k->te", a_ie, shared))
