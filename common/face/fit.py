"""Fitting a face model to landmarks, and taking the head's pose out of them.

Both find the pose on points that move with the skull (`model.RIGID`), on the shape of this person rather than the mean
one: an open mouth must not pitch the head, and a long nose must not either. Depth from one camera is noisy, so its
residuals count less (`pos.DEPTH_WEIGHT`). From a video to a file of coefficients:

    python -m common.face.fit VIDEO OUT.npz [--model PATH] [--smooth N]
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_solve_banded, cholesky_banded
from torch import Tensor

from common import entry
from common.errors import InputError
from common.face.model import BUILTIN, N_POINTS, RIGID, FaceModel
from common.face.pos import DEPTH_WEIGHT, Pose, align, flip_image, untellable
from common.files import atomic_path, check_result

log = logging.getLogger(__name__)

NOISE_M = 0.0015  # what a landmark is off by; sets how far coefficients may leave their prior
MAX_SMOOTHING_FRAMES = 100.0  # beyond, the smoother's equations lose their digits
_MAX_IDENTITY_FRAMES = 64  # a person's shape is known well enough from so many frames, spread over the clip
_IDENTITY_VOTES = 6.0  # frames of one clip share their errors: all of them together weigh like so many
_CHUNK_FRAMES = 1024  # frames solved at once: beyond its own arrays, a long video needs no more memory than a short one


@dataclass(frozen=True)
class Fit:
    """One person in T frames.

    identity: [K]; expression: [T, E], both in model units; pose: Pose [T], v up; residual_px: [T], the root mean square
    distance in the picture between the 68 landmarks, as they were given, and the fitted model's.
    """

    identity: Tensor
    expression: Tensor
    pose: Pose
    residual_px: Tensor


def fit(model: FaceModel, points: Tensor, height: int, n_rounds: int = 3, smoothing_frames: float = 0.0) -> Fit:
    """Fit one identity, and an expression and pose per frame, to image landmarks [T, 68, 2 or 3] (y down, pixels).

    Alternates the pose of the rigid points with least squares for the coefficients under the model's Gaussian prior:
    first for the identity, jointly over frames spread over the clip, then frame by frame. model: any; its 68 landmarks
    are fitted, in the convention of the points. height: of the picture in pixels. smoothing_frames: see `smoothed`.
    Raises ValueError where landmarks can't tell a pose (`check_posable`).
    """
    check_posable(points)
    if n_rounds < 2:
        raise ValueError(f"fitting needs n_rounds of 2 or more, for a pose and for the shape in it, got {n_rounds}")
    model, given = model.at_landmarks().to(points.device), points.float()
    tracked = smoothed(given, smoothing_frames)
    identity = _fit_identity(model, tracked, height, n_rounds)
    n_frames = len(given)
    expression, residual_px = given.new_empty(n_frames, len(model.expression_std)), given.new_empty(n_frames)
    pose = _empty_pose(given)
    for start in range(0, n_frames, _CHUNK_FRAMES):
        part = slice(start, start + _CHUNK_FRAMES)
        expression[part], found = _fit_frames(model, identity, flip_image(tracked[part], height), n_rounds - 1)
        error = found.project(model.shape(identity, expression[part])) - flip_image(_with_depth(given[part]), height)
        residual_px[part] = error[..., :2].square().sum(dim=-1).mean(dim=-1).sqrt()
        _put(pose, part, found)
    return Fit(identity, expression, pose, residual_px)


def frontalise(points: Tensor, height: int, model: FaceModel) -> tuple[Tensor, Pose]:
    """Take one person's pose out of image landmarks: [T, 68, 3] (y down, pixels) -> LM3D [T, 68, 3], Pose [T].

    Only the inverse of a similarity is applied: `pose.project(model.mean + lm3d)`, flipped, is x and y of the input to
    rounding, and its depth up to an offset per frame. model: its landmarks. height: of the picture in pixels. Raises
    ValueError where landmarks can't tell a pose (`check_posable`).
    """
    check_posable(points)
    if points.shape[-1] != 3:
        raise ValueError(f"frontalising needs depth: points must be [T, 68, 3], got {list(points.shape)}")
    model, points = model.at_landmarks().to(points.device), points.float()
    skull = model.shape(_fit_identity(model, points, height, n_rounds=2))
    lm3d, pose = torch.empty_like(points), _empty_pose(points)
    for start in range(0, len(points), _CHUNK_FRAMES):
        part = slice(start, start + _CHUNK_FRAMES)
        seen = flip_image(points[part], height)
        found = _skull_pose(skull, seen)
        lm3d[part] = found.unproject(_without_depth_offset(skull, seen, found)) - model.mean
        _put(pose, part, found)
    return lm3d, pose


def check_posable(points: Tensor) -> None:
    """Raise ValueError unless points are [T, 68, 2 or 3], T at least 1, and every frame can tell a pose.

    That is: finite numbers, and rigid points (nose bridge, outer eye corners, ears) in four different places that don't
    all lie on one line of the picture.
    """
    if points.ndim != 3 or points.shape[1] != N_POINTS or points.shape[2] not in (2, 3) or len(points) == 0:
        raise ValueError(f"landmarks must be [T, 68, 2] or [T, 68, 3], T at least 1, got shape {list(points.shape)}")
    for start in range(0, len(points), _CHUNK_FRAMES):
        part = points[start : start + _CHUNK_FRAMES]
        is_finite = part.isfinite().flatten(1).all(dim=1)
        if not is_finite.all():
            frame = start + int((~is_finite).int().argmax())
            raise ValueError(f"landmarks of frame {frame} are not all finite numbers: leave out frames without a face")
        found = untellable(part[:, RIGID, :2])
        if found:
            raise ValueError(f"landmarks of the skull (nose, eye corners, ears) in frame {start + found[0]} {found[1]}")


def smoothed(points: Tensor, smoothing_frames: float) -> Tensor:
    """Landmarks [T, 68, D] with their tremble taken out; 0 gives them back as they are.

    The most probable path y under a Gaussian prior on its second differences: of |y - x|² + s⁴ |D² y|² the minimum
    (Whittaker's smoother), s = smoothing_frames, at most 100. It looks both ways, so nothing comes late; a still face
    stays, and so does one at constant speed. A swing is halved where its period is 2 pi s frames (s above 1; in general
    its gain is 1 / (1 + (2 s sin(w / 2))⁴) at w radians per frame), slower ones stay. Solved on the CPU.
    """
    if not 0 <= smoothing_frames <= MAX_SMOOTHING_FRAMES:
        raise ValueError(f"smoothing_frames must lie between 0 and {MAX_SMOOTHING_FRAMES:g}, got {smoothing_frames}")
    n_frames = len(points)
    if smoothing_frames == 0 or n_frames < 3:
        return points
    weight = float(smoothing_frames) ** 4
    bands = np.zeros((3, n_frames))  # the upper diagonals of 1 + weight D²ᵀ D², outermost first
    bands[0, 2:] = weight
    bands[1, 1:-1] -= 2 * weight
    bands[1, 2:] -= 2 * weight
    bands[2] = 1
    for offset, square in ((0, 1), (1, 4), (2, 1)):
        bands[2, offset : n_frames - 2 + offset] += square * weight
    factor = cholesky_banded(bands)
    paths, calm = points.detach().cpu(), torch.empty(points.shape, dtype=points.dtype)
    for k in range(points.shape[1]):
        calm[:, k] = torch.from_numpy(cho_solve_banded((factor, False), paths[:, k].double().numpy()))
    return calm.to(points.device)


def _fit_identity(model: FaceModel, points: Tensor, height: int, n_rounds: int) -> Tensor:
    """One person's coefficients [K] from image landmarks [T, 68, 2 or 3]; expressions are told apart on the way."""
    seen = flip_image(points[_spread(len(points), _MAX_IDENTITY_FRAMES, points.device)], height)
    identity, expression = None, None
    for _ in range(n_rounds):
        pose = _skull_pose(model.shape(identity, expression), seen)
        identity, expression = _solve_both(model, seen, pose, model.shape(identity))
    assert identity is not None
    return identity


def _fit_frames(model: FaceModel, identity: Tensor, seen: Tensor, n_rounds: int) -> tuple[Tensor, Pose]:
    """Expression [T, E] and Pose [T] of one person in landmarks [T, 68, 2 or 3], v up; every frame by itself."""
    person = model.shape(identity)
    shape = person
    for _ in range(n_rounds):
        pose = _skull_pose(shape, seen)
        expression = _solve_expression(model, seen, pose, person)
        shape = person + torch.tensordot(expression, model.expression, 1)
    return expression, pose


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


def _solve_expression(model: FaceModel, seen: Tensor, pose: Pose, person: Tensor) -> Tensor:
    """Expression [T, E] of a person's shape [68, 3] given the pose; every frame by itself."""
    bases = model.expression * model.expression_std[:, None, None]
    normal, right = _normal_equations(bases, *_face_space(seen, pose, person, person))
    factor = torch.linalg.cholesky(normal + _prior(model, len(bases), seen))
    return torch.cholesky_solve(right[..., None], factor)[..., 0] * model.expression_std


def _solve_both(model: FaceModel, seen: Tensor, pose: Pose, person: Tensor) -> tuple[Tensor, Tensor]:
    """Identity [K] of all frames and expression [T, E] of each, given the pose; person: the shape so far, [68, 3]."""
    k = len(model.identity_std)
    std = torch.cat([model.identity_std, model.expression_std])
    bases = torch.cat([model.identity, model.expression]) * std[:, None, None]
    normal, right = _normal_equations(bases, *_face_space(seen, pose, person, model.mean))
    # Arrow-shaped system: eliminate the frames' own unknowns, solve for the shared ones, go back.
    factor = torch.linalg.cholesky(normal[:, k:, k:] + _prior(model, len(std) - k, seen))
    a_ie, b_i, b_e = normal[:, :k, k:], right[:, :k], right[:, k:, None]
    gain = torch.cholesky_solve(a_ie.mT, factor).mT  # [T, K, E]
    schur = (normal[:, :k, :k] - gain @ a_ie.mT).mean(dim=0)
    prior = _prior(model, k, seen) / min(len(seen), _IDENTITY_VOTES)
    shared = torch.linalg.solve(schur + prior, (b_i - (gain @ b_e)[..., 0]).mean(dim=0))
    own = torch.cholesky_solve(b_e - (a_ie.mT @ shared)[..., None], factor)[..., 0]
    return shared * std[:k], own * std[k:]


def _face_space(seen: Tensor, pose: Pose, person: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals [T, 68, 3] against `origin` [68, 3] in face space, and their metric there, [T, 3, 3].

    There, what counts in the picture is G = Rᵀ diag(1, 1, depth_weight) R, so one product of the bases serves all
    frames. person: the shape that depth's offset is found on.
    """
    has_depth = seen.shape[-1] == 3
    seen = _without_depth_offset(person, seen, pose) if has_depth else _with_depth(seen)
    weight = seen.new_tensor([1.0, 1.0, DEPTH_WEIGHT if has_depth else 0.0])
    return pose.unproject(seen) - origin, (pose.rotation.mT * weight) @ pose.rotation


def _normal_equations(bases: Tensor, residual: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Left side [T, n, n] and right side [T, n] of least squares in bases [n, 68, 3]."""
    n = len(bases)
    products = torch.einsum("npi,mpj->ijnm", bases, bases).reshape(9, n * n)
    return (metric.flatten(1) @ products).unflatten(1, (n, n)), (residual @ metric).flatten(1) @ bases.flatten(1).mT


def _prior(model: FaceModel, n: int, like: Tensor) -> Tensor:
    """What the Gaussian prior adds to the normal equations of n coefficients, counted in standard deviations."""
    noise = NOISE_M / model.metres_per_unit
    return noise**2 * torch.eye(n, dtype=like.dtype, device=like.device)


def _with_depth(points: Tensor) -> Tensor:
    """[T, 68, 2] -> [T, 68, 3] with depth 0; what has depth stays."""
    return torch.nn.functional.pad(points, (0, 3 - points.shape[-1]))


def _empty_pose(points: Tensor) -> Pose:
    """Room for Pose [T] of points [T, ...]: joining chunks at the end would take it all twice."""
    n_frames = len(points)
    return Pose(points.new_empty(n_frames), points.new_empty(n_frames, 3, 3), points.new_empty(n_frames, 2))


def _put(pose: Pose, part: slice, found: Pose) -> None:
    pose.scale[part], pose.rotation[part], pose.translation[part] = found.scale, found.rotation, found.translation


# ---- a video on the command line ------------------------------------------------------------------------------------


def fit_video(
    video_path: Path, model: FaceModel, smoothing_frames: float = 0.0, detector: str = "builtin"
) -> tuple[Fit, dict[str, Any]]:
    """Track a video's largest face and fit the model to it -> the fit, and what its frames are.

    That is fps; image_size, width and height; n_video_frames; first_frame, the video's, which is frame 0 of the fit;
    interpolated_frames [N, 2], the first and the last of each gap that was filled in, counted from there; and
    smoothing_frames. Raises InputError where there is no face, or no way from the tracker's landmarks to the model's
    convention.
    """
    from common.face.conventions import convert  # these need this module
    from common.face.detect import CONVENTION_OF
    from common.face.track import follow

    # Is there a way? Asked before hours of video are read.
    convert(torch.zeros(0, N_POINTS, 3), CONVENTION_OF[detector], model.convention)
    seen = follow(video_path, detector, "cuda" if torch.cuda.is_available() else "cpu")
    points = convert(torch.from_numpy(seen.points), seen.convention, model.convention)
    try:
        fitted = fit(model, points, seen.size[1], smoothing_frames=smoothing_frames)
    except ValueError as error:
        raise InputError(f"{video_path}: {error}") from error
    gaps = np.array(seen.gaps, np.int64).reshape(-1, 2)
    frames = {"fps": seen.fps, "image_size": seen.size, "first_frame": seen.first, "interpolated_frames": gaps}
    return fitted, frames | {"n_video_frames": seen.n_frames, "smoothing_frames": smoothing_frames}


def save(path: Path, fitted: Fit, model: FaceModel, frames: dict[str, Any], overwrite: bool = False) -> None:
    """Write an .npz of plain arrays: the fields of Fit and its pose, the model's name, and what `fit_video` says."""
    tensors = {
        "identity": fitted.identity,
        "expression": fitted.expression,
        "scale": fitted.pose.scale,
        "rotation": fitted.pose.rotation,
        "translation": fitted.pose.translation,
        "residual_px": fitted.residual_px,
    }
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    arrays |= {name: np.array(value) for name, value in frames.items()}
    arrays |= {"model": np.array(model.name), "convention": np.array(model.convention)}
    arrays["expression_names"] = np.array(model.expression_names, dtype=np.str_)
    with atomic_path(path, overwrite) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def main(argv: list[str]) -> None:
    from common.face.detect import BACK_ENDS  # it needs this module

    parser = entry.Parser(
        prog="python -m common.face.fit",
        description="Follow the largest face of a video and save what a face model makes of it: identity, and "
        "expression, pose and residual of every frame (.npz of plain arrays).",
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path, help="the .npz to write")
    parser.add_argument(
        "--model", default=BUILTIN, help="a face model: bfm, flame, ict, gnm, or a path to one (default: built-in)"
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="N",
        help="take the tremble out of the landmarks: swings under 6 N frames go; 1 is gentle (default: 0, none)",
    )
    parser.add_argument("--detector", choices=BACK_ENDS, default=BACK_ENDS[0], help="whose landmarks")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    if not 0 <= args.smooth <= MAX_SMOOTHING_FRAMES:
        raise InputError(f"--smooth takes 0 to {MAX_SMOOTHING_FRAMES:g} frames, not {args.smooth:g}")
    check_result(args.out, (".npz",), [args.video], args.overwrite)
    model = FaceModel.load(args.model)
    fitted, frames = fit_video(args.video, model, args.smooth, args.detector)
    save(args.out, fitted, model, frames, args.overwrite)
    residual, first = fitted.residual_px, frames["first_frame"]
    n_filled = int((np.diff(frames["interpolated_frames"]) + 1).sum())
    print(
        f"{args.out}: frames {first} to {first + len(residual) - 1} of {frames['n_video_frames']} at "
        f"{frames['fps']:g} frames/s, {n_filled} interpolated; residual {residual.median():.2f} px (median), "
        f"{residual.quantile(0.95):.2f} px (95 %), {residual.max():.2f} px in frame {first + int(residual.argmax())} "
        "(the worst)"
    )


if __name__ == "__main__":
    entry.run(main)
