"""ARKit's 52 curves of a take: bounded least squares over a basis of the 68 points, smooth in time.

The basis is ICT-FaceKit's expressions where that model is given, else one that is built from the geometry of the points
(`common.export.arkit_basis`). 68 points have nothing to say on `UNSEEN`: gaze, cheeks, tongue; those stay 0.

ICT-FaceKit has 53 expressions in ARKit's vocabulary, `_L` and `_R` for Left and Right. `browInnerUp_L` and `_R` (and
`cheekPuff_L` and `_R`) together are ARKit's one curve; it has no tongueOut. That is 53 - 2 + 1 = 52.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.errors import InputError
from common.export.arkit_basis import UPPER_LID_SHARE, eye_distance, landmark_basis, mirror, other_side
from common.export.take import Take
from common.face.model import JAW, LID_PAIRS, LIDS, LIPS, FaceModel
from common.face.mouth import closed, opening_direction

# In Apple's capture order: that of the columns of Live Link Face's recordings.
CURVES = (
    *("eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft"),
    *("eyeSquintLeft", "eyeWideLeft"),
    *("eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight"),
    *("eyeSquintRight", "eyeWideRight"),
    *("jawForward", "jawRight", "jawLeft", "jawOpen"),
    *("mouthClose", "mouthFunnel", "mouthPucker", "mouthRight", "mouthLeft", "mouthSmileLeft", "mouthSmileRight"),
    *("mouthFrownLeft", "mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight"),
    *("mouthStretchLeft", "mouthStretchRight", "mouthRollLower", "mouthRollUpper"),
    *("mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight"),
    *("mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight"),
    *("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut"),
)
UNSEEN = frozenset(
    name for name in CURVES if name.startswith(("eyeLook", "cheek")) or name == "tongueOut"
)  # 68 points have no pupils, no cheeks and no tongue
SEEN = tuple(name for name in CURVES if name not in UNSEEN)

_DEPTH_WEIGHT = 0.25  # of a squared residual beside that of x or y: monocular depth is noisier
_POSE_WEIGHT = 0.05  # of the lower face as a whole going up, down or forward: mostly the head's pose, off by a degree
_ASKEW_WEIGHT = 0.3  # of both lids going up or down other than in a blink: pose again, or a look up or down
_JAW_LINE_WEIGHT = 0.25  # of the chin and cheeks beside the lips: trackers let them slide
_LID_WEIGHT = 4.0  # eight points that move little and are tracked well
# Penalties of a curve that moves the points by _TYPICAL_M in all (root of the sum of squares). Those that move them
# further pay less per millimetre: so an open mouth is the jaw's work first, and the lips' where the jaw won't do.
_TYPICAL_M = 0.012
_RIDGE = 0.06  # makes the answer unique
_SPARSE_M = 0.0005  # tremble below this moves no curve
_SMOOTH_S = 0.015
_MAX_STEPS, _SETTLED = 2000, 1e-6


@dataclass(frozen=True)
class Curves:
    """The 52 curves of T keys, what they move and what they leave.

    values: [T, 52], 0..1; basis: [52, 68, 3] metres at weight 1 (zeros for unseen ones); source: "landmarks" or "ict";
    residual_m, moved_m: [52], root mean square of how far the points are from where all curves together put them, and
    from the neutral face; every point counts by the square of how far this curve moves it (nan for unseen ones);
    total_residual_m: the same over all points alike.
    """

    values: np.ndarray
    basis: np.ndarray
    source: str
    residual_m: np.ndarray
    moved_m: np.ndarray
    total_residual_m: float

    def table(self) -> str:
        """Every curve's mean and greatest value, how far its points move and what the curves leave, in mm."""
        lines = [f"{'curve':20s} {'mean':>6s} {'most':>6s} {'moved mm':>9s} {'left mm':>8s}"]
        for k, name in enumerate(CURVES):
            if name in UNSEEN:
                lines.append(f"{name:20s}      0      0   68 points don't show it")
                continue
            value = self.values[:, k]
            lines.append(
                f"{name:20s} {value.mean():6.3f} {value.max():6.3f} {1000 * self.moved_m[k]:9.2f} "
                f"{1000 * self.residual_m[k]:8.2f}"
            )
        lines.append(
            f"all 68 points: {1000 * self.total_residual_m:.2f} mm are left (root mean square distance; basis: "
            f"{self.source})"
        )
        return "\n".join(lines)


def solve(take: Take, model: FaceModel | None = None) -> Curves:
    """The curves that explain a take's points best.

    model: one with ICT-FaceKit's expression names, whose expressions are then the basis (InputError for another). Of
    all curves between 0 and 1 those that minimise, summed over the keys, the squared distance of the points from where
    the curves put them (depth and jaw line counting less), a ridge, a price per curve and the squared change from key
    to key: convex with one minimum, so that a mirrored take has mirrored curves.
    """
    neutral = closed_mouth(take)
    basis = np.zeros((len(CURVES), 68, 3))
    found = landmark_basis(neutral) if model is None else ict_basis(model, neutral)
    for name in SEEN:
        basis[CURVES.index(name)] = found[name]
    seen = [CURVES.index(name) for name in SEEN]
    moves = take.points - neutral  # [T, 68, 3]
    values = np.zeros((take.n_keys, len(CURVES)))
    values[:, seen] = _bounded(basis[seen], moves, take.fps)
    left = np.square(moves - np.einsum("tk,kpc->tpc", values, basis)).sum(axis=-1).mean(axis=0)  # [68]
    moved = np.square(moves).sum(axis=-1).mean(axis=0)
    share = np.square(basis).sum(axis=-1)  # [52, 68]
    with np.errstate(invalid="ignore"):  # 0 / 0 of unseen curves is their nan
        share = share / share.sum(axis=1, keepdims=True)
    return Curves(
        values,
        basis,
        "landmarks" if model is None else "ict",
        residual_m=np.sqrt(share @ left),
        moved_m=np.sqrt(share @ moved),
        total_residual_m=float(np.sqrt(left.mean())),
    )


def closed_mouth(take: Take) -> np.ndarray:
    """The face that has all curves at 0, [68, 3] metres: the take's neutral one, its mouth closed if it is open."""
    direction = opening_direction(FaceModel.builtin()).double()
    return closed(torch.from_numpy(take.neutral), direction).numpy()


def ict_basis(model: FaceModel, neutral: np.ndarray) -> dict[str, np.ndarray]:
    """ICT-FaceKit's expressions at the 68 points by ARKit's names, as large as this face: name -> [68, 3] metres.

    They are made symmetric, which their vertices are to rounding. InputError for a model without those names.
    """
    small = model.at_landmarks()
    scale = eye_distance(neutral) / eye_distance(small.mean.double().numpy())
    found: dict[str, np.ndarray] = {}
    for ict, direction in zip(small.expression_names, scale * small.expression.double().numpy(), strict=False):
        merged = ict.removesuffix("_L").removesuffix("_R")
        name = merged if merged in CURVES else ict.replace("_L", "Left").replace("_R", "Right")
        found[name] = found.get(name, 0) + direction
    missing = [name for name in SEEN if not np.any(found.get(name, 0))]
    if missing:
        raise InputError(
            f"ARKit's curves need ICT-FaceKit's expressions, and the face model {model.name} has no {missing[0]}: give "
            "ICT-FaceKit's folder"
        )
    return {name: (found[name] + mirror(found[other_side(name)])) / 2 for name in SEEN}


def _bounded(basis: np.ndarray, moves: np.ndarray, fps: float) -> np.ndarray:
    """Curves [T, K], 0..1, of displacements [T, 68, 3] in a basis [K, 68, 3].

    Projected gradients with momentum, started anew where they overshoot (FISTA; O'Donoghue and Candès 2015), on
    u = n w, n being the lengths of the basis' vectors.
    """
    weigh = _weights()
    flat = basis.reshape(len(basis), -1) @ weigh  # [K, 204]
    length = np.linalg.norm(flat, axis=1)
    unit = flat / length[:, None]
    smooth = (_SMOOTH_S * fps) ** 2
    price = _TYPICAL_M / length  # [K]
    gram = unit @ unit.T + np.diag(_RIDGE * price)
    linear = moves.reshape(len(moves), -1) @ (weigh @ unit.T) - _SPARSE_M * price
    step = 1 / (np.linalg.eigvalsh(gram)[-1] + 4 * smooth)
    current = ahead = np.zeros_like(linear)
    momentum = 1.0
    for _ in range(_MAX_STEPS):
        gradient = ahead @ gram - linear
        change = smooth * np.diff(ahead, axis=0)
        gradient[:-1] -= change
        gradient[1:] += change
        stepped = np.clip(ahead - step * gradient, 0, length)
        if ((ahead - stepped) * (stepped - current)).sum() > 0:
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = stepped + (momentum - 1) / following * (stepped - current)
        has_settled = np.abs(stepped - current).max() < _SETTLED * length.min()
        current, momentum = stepped, following
        if has_settled:
            break
    return current / length


def _weights() -> np.ndarray:
    """[204, 204]: what a displacement [68, 3] costs that is left unexplained is the length of its row by this."""
    root = np.ones((68, 3))
    root[list(JAW)] *= np.sqrt(_JAW_LINE_WEIGHT)
    root[list(LIDS)] *= np.sqrt(_LID_WEIGHT)
    root[:, 2] *= np.sqrt(_DEPTH_WEIGHT)
    weigh = np.diag(root.ravel())
    for slide, weight in _slides():
        slide = (slide * root).ravel() / np.linalg.norm(slide * root)
        weigh -= (1 - np.sqrt(weight)) * np.outer(slide, slide) @ weigh
    return weigh.T


def _slides() -> list[tuple[np.ndarray, float]]:
    """Displacements [68, 3] that are seldom an expression, no two of the same points and axis, and what they weigh.

    Of any length. That of an eye's lids, at a right angle to a blink, would be a wide and a squinted eye at once.
    """
    lower_face, slides = [*JAW[4:13], *LIPS], []
    for axis in (1, 2):
        slide = np.zeros((68, 3))
        slide[lower_face, axis] = 1
        slides.append((slide, _POSE_WEIGHT))
    for pairs in (LID_PAIRS[:2], LID_PAIRS[2:]):
        slide = np.zeros((68, 3))
        for upper, lower in pairs:
            slide[upper, 1], slide[lower, 1] = 1 - UPPER_LID_SHARE, UPPER_LID_SHARE
        slides.append((slide, _ASKEW_WEIGHT))
    return slides
