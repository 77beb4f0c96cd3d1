"""The ARKit set over the 68 points: how far each curve moves which point at weight 1, in millimetres.

Apple describes its blend shapes in words and pictures (ARFaceAnchor.BlendShapeLocation); this is what they say, put in
the geometry of a face. Millimetres are those of a face whose eye centres are 63 mm apart; other faces' follow theirs.
Movements are listed for the person's left (x > 0) and mirrored for the right, so the basis is symmetric by construction
and that of a mirrored face is the mirrored basis.

Amplitudes are what people can do: the jaw turns by 25 degrees, of the 33 that open a mouth by some 50 mm (Ferrario et
al. 2005, Archives of Oral Biology), and slides by 8 mm forward or to a side; a smile takes the corner of the mouth out
and up alike (Tarantili et al. 2005, AJODO), here by 9 mm each; brows go up by 9 mm; lids meet.

The jaw line is a trap: trackers see the skin of the chin follow the jaw by less than half. In tracks of speech
(regression on the mouth's opening, six people) the chin goes down by 0.42 of what the lower lip does; `_JAW_LINE` holds
what was measured there, and the fit believes the jaw line less than the lips (`common.export.arkit`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from common.face import model
from common.face.lids import CLOSED
from common.face.model import MIRROR

EYE_DISTANCE_M = 0.063  # of the face that the millimetres are of
JAW_OPEN_DEG = 25.0
# The condyle slides forward while the jaw turns, so that the axis of the whole lies lower than the joint, inside the
# ramus (Grant 1973); tracked lips go back by a third of what they go down, which says the same.
HINGE_MM = (0.0, -40.0, 10.0)  # from the middle of the points at the ears
UPPER_LID_SHARE = 0.8  # of a blink's way; lower lids of tracked blinks do 0.0 to 0.35 of it
LEAST_APERTURE = 0.2  # of the eye's width: what an eye that is closed in the neutral face would have to close

Moves = Mapping[int, tuple[float, float, float]]  # point: millimetres outwards (to the person's left), up, forward

# How much of the jaw's movement the skin takes part in; the person's left half and the middle.
_JAW_LINE = {12: 0.05, 11: 0.15, 10: 0.20, 9: 0.33, 8: 0.42}
_LOWER_LIP = {54: 0.3, 55: 0.8, 56: 0.97, 57: 1.0, 64: 0.3, 65: 0.97, 66: 1.0}
_UPPER_LIP = {51: 1.0, 52: 1.0, 53: 0.8, 62: 1.0, 63: 1.0}
# How much of a pull at the corner of the mouth the lips beside it feel.
_CORNER = {54: 1.0, 64: 1.0, 53: 0.55, 55: 0.55, 63: 0.45, 65: 0.45, 52: 0.25, 56: 0.25}


def _pull(out: float, up: float, forward: float) -> Moves:
    return {point: (share * out, share * up, share * forward) for point, share in _CORNER.items()}


def _all(points: Mapping[int, float], out: float, up: float, forward: float) -> Moves:
    return {point: (share * out, share * up, share * forward) for point, share in points.items()}


# fmt: off
# One side at a time: these become ...Left as they stand and ...Right mirrored. Points in the middle move for both.
SIDED: dict[str, Moves] = {
    "eyeSquint": {46: (0, 3.5, 0), 47: (0, 3.5, 0), 43: (0, -1, 0), 44: (0, -1, 0)},
    "eyeWide": {43: (0, 3.5, -0.5), 44: (0, 3.5, -0.5), 46: (0, -0.5, 0), 47: (0, -0.5, 0)},
    "mouthSmile": _pull(9, 9, -6),
    "mouthFrown": _pull(1, -9, -2),
    "mouthDimple": _pull(5, 0.5, -7),
    "mouthStretch": {**_pull(8, -4, -4), 55: (4, -4, -2), 56: (1.5, -3, -1), 65: (3, -2.5, -1)},
    "mouthPress": {53: (0, -3, -1), 52: (0, -3.5, -1), 51: (0, -1.8, -0.5),
                   55: (0, 3, -1), 56: (0, 3.5, -1), 57: (0, 1.8, -0.5)},
    "mouthLowerDown": {54: (0, -1, 0), 55: (1, -5, 0.7), 56: (1, -7, 1), 57: (0.5, -4, 0.6),
                       65: (1, -7, 1), 66: (0.5, -4, 0.6)},
    "mouthUpperUp": {53: (0.5, 4.5, 0), 52: (0.5, 6, 0.5), 51: (0.3, 3.5, 0.3), 63: (0.5, 6, 0.5), 62: (0.3, 3.5, 0.3),
                     35: (0, 0.7, 0), 34: (0, 0.5, 0)},
    "browDown": {22: (-3, -7, 0), 23: (-2.5, -6.5, 0), 24: (-1.5, -5, 0), 25: (-0.5, -3, 0), 26: (0, -1.5, 0)},
    "browOuterUp": {22: (0, 1.5, 0), 23: (0, 4.5, 0), 24: (0, 8, 0), 25: (0.5, 9, -1), 26: (1, 7.5, -1)},
    "noseSneer": {35: (0.5, 4, -0.5), 34: (0.3, 2.5, -0.3), 33: (0, 0.7, 0), 22: (-0.5, -1, 0),
                  53: (0, 3, 0), 52: (0, 3.5, 0), 51: (0, 1.5, 0), 63: (0, 3, 0), 62: (0, 1.5, 0)},
}
# Both sides at once: the left half and the middle; the right half is its mirror image.
BOTH: dict[str, Moves] = {
    "jawForward": {**_all(_JAW_LINE, 0, 0, 8), **_all(_LOWER_LIP, 0, 0, 7)},
    "mouthFunnel": {54: (-6, 0, 2), 53: (-3, 2, 5), 52: (-1, 3.5, 6), 51: (0, 3.5, 6),
                    55: (-3, -3, 5), 56: (-1, -4, 6), 57: (0, -4, 6),
                    64: (-6, 0, 2), 63: (-1, 4, 5), 62: (0, 4, 5), 65: (-1, -4, 5), 66: (0, -4, 5)},
    "mouthPucker": {54: (-9, 0, 5), 53: (-5, 1, 6), 52: (-2, 1, 6), 51: (0, 0.5, 6),
                    55: (-5, -1, 6), 56: (-2, -1, 6), 57: (0, -0.5, 6),
                    64: (-9, 0, 5), 63: (-3, 0, 6), 62: (0, 0, 6), 65: (-3, 0, 6), 66: (0, 0, 6)},
    "mouthRollLower": {55: (0, 3, -3), 56: (0, 4.5, -4), 57: (0, 5, -4), 65: (0, 0.5, -4), 66: (0, 0.5, -4)},
    "mouthRollUpper": {53: (0, -3, -3), 52: (0, -4.5, -3.5), 51: (0, -4.5, -3.5), 63: (0, -0.5, -3.5),
                       62: (0, -0.5, -3.5)},
    "mouthShrugLower": {8: (0, 3, 0), 9: (0, 2, 0), 10: (0, 1, 0), 54: (0, -0.5, 0), 55: (0, 4, 2), 56: (0, 6, 3),
                        57: (0, 6.5, 3), 65: (0, 4, 3), 66: (0, 4.5, 3)},
    "mouthShrugUpper": _all(_UPPER_LIP, 0, 3.5, 3),
    "browInnerUp": {22: (0, 8, 0), 23: (0, 5.5, 0), 24: (0, 2, 0)},
}
# To the person's left as a whole: the right half moves the same way, not the mirrored one.
SIDEWAYS: dict[str, Moves] = {
    "jaw": {**_all(_JAW_LINE, 8, 0, 0), **_all(_LOWER_LIP, 7, 0, 0), **_all({51: 1, 52: 1, 53: 1}, 0.5, 0, 0)},
    "mouth": {**_all({**_CORNER, **_LOWER_LIP, **_UPPER_LIP, 54: 1, 64: 1}, 9, 0, 0), 33: (1, 0, 0), 34: (1, 0, 0)},
}
# fmt: on


def landmark_basis(neutral: np.ndarray) -> dict[str, np.ndarray]:
    """What each curve that 68 points can see moves them by at weight 1: name -> [68, 3] metres.

    neutral: [68, 3] metres, frontal: the face itself; jaw and lids move as its own geometry has it.
    """
    scale = eye_distance(neutral) / EYE_DISTANCE_M
    jaw = _jaw_open(neutral, scale)
    basis = {"jawOpen": jaw, "mouthClose": _mouth_close(jaw)}
    for name, moves in BOTH.items():
        half = _field(moves, scale)
        basis[name] = half + mirror(half) * _not_middle()
    for name, moves in SIDEWAYS.items():
        half = _field(moves, scale)
        whole = half + half[list(MIRROR)] * _not_middle()
        basis[f"{name}Left"], basis[f"{name}Right"] = whole, mirror(whole)
    for name, moves in SIDED.items():
        left = _field(moves, scale)
        basis[f"{name}Left"], basis[f"{name}Right"] = left, mirror(left)
    basis["eyeBlinkLeft"], basis["eyeBlinkRight"] = _blink(neutral), mirror(_blink(mirror(neutral)))
    return basis


def other_side(name: str) -> str:
    """The curve that this one is in a mirrored face: eyeBlinkRight of eyeBlinkLeft; jawOpen of itself."""
    if name.endswith("Left"):
        return name.removesuffix("Left") + "Right"
    return name.removesuffix("Right") + "Left" if name.endswith("Right") else name


def mirror(points: np.ndarray) -> np.ndarray:
    """Face-space points or displacements [..., 68, 3] of the mirrored face."""
    return model.mirror(torch.from_numpy(points)).numpy()


def eye_distance(points: np.ndarray) -> float:
    """Distance of the eye centres of a face [68, 3]."""
    return float(model.eye_distance(torch.from_numpy(points)))


def _field(moves: Moves, scale: float) -> np.ndarray:
    """Displacements [68, 3], metres."""
    field = np.zeros((68, 3))
    for point, move in moves.items():
        field[point] = move
    return field * (scale / 1000)


def _not_middle() -> np.ndarray:
    """[68, 1]: 0 for the points that are their own mirror image."""
    return (np.array(MIRROR) != np.arange(68)).astype(float)[:, None]


def _jaw_open(neutral: np.ndarray, scale: float) -> np.ndarray:
    """The jaw turned about its hinge; the upper lip gives way a little."""
    hinge = (neutral[0] + neutral[16]) / 2 + np.array(HINGE_MM) * (scale / 1000)
    turned = Rotation.from_euler("x", JAW_OPEN_DEG, degrees=True).apply(neutral - hinge) + hinge
    share = np.zeros(68)
    for point, value in {**_JAW_LINE, **_LOWER_LIP}.items():
        share[[point, MIRROR[point]]] = value
    opened = share[:, None] * (turned - neutral)
    for point, value in _UPPER_LIP.items():
        opened[[point, MIRROR[point]], 1] += 0.002 * scale * value
    return opened


def _mouth_close(jaw_open: np.ndarray) -> np.ndarray:
    """Lips that meet although the jaw is open: `jaw_open` and this together leave no gap, and the jaw where it is."""
    close = np.zeros((68, 3))
    lips = [48, *range(54, 61), *range(64, 68)]
    close[lips] = -0.75 * jaw_open[lips]
    down = jaw_open[66] - jaw_open[62]
    for point, value in _UPPER_LIP.items():
        close[[point, MIRROR[point]]] = 0.25 * value * down - [0, jaw_open[62, 1], 0]
    return close


def _blink(neutral: np.ndarray) -> np.ndarray:
    """The lids of the person's left eye meet, as far as trackers see lids meet; the upper one goes most of the way."""
    field = np.zeros((68, 3))
    width = np.linalg.norm(neutral[45] - neutral[42])
    for upper, lower in ((43, 47), (44, 46)):
        gap = neutral[upper] - neutral[lower]
        way = max(gap[1] - CLOSED * width, (LEAST_APERTURE - CLOSED) * width)
        down = gap * (way / max(gap[1], way))
        down[1] = way
        field[upper], field[lower] = -UPPER_LID_SHARE * down, (1 - UPPER_LID_SHARE) * down
    return field
