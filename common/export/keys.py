"""Key reduction: which keys of a take may be left out, since tools interpolate between those that are kept.

What is left out is checked at every key that was there: the interpolated face and head put no point further from
where it was than is stated. Half of that is the face's, half the head's: a rotation keeps lengths, so the two errors
of a posed point add up to no more than the whole, each track with keys of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from common.export.morphs import MorphMesh
from common.export.take import Take

MOST_TURN = np.cos(np.pi / 8)  # of a head where keys are left out: 45 degrees, as the cosine of half of that
IsWithin = Callable[[int, int], bool]


class Kept(NamedTuple):
    """The keys that a file has: numbers [n], int64, rising, of the face's and of the head's."""

    face: np.ndarray
    head: np.ndarray


def kept(take: Take, error_m: float, meshes: Iterable[MorphMesh] = ()) -> Kept:
    """Keys between which no point of the take, and no vertex of the meshes, is off by more; 0 keeps all of them."""
    if error_m == 0:
        return Kept(np.arange(take.n_keys), np.arange(take.n_keys))
    return Kept(face_keys(take, error_m, meshes), head_keys(take, error_m))


def face_keys(take: Take, error_m: float, meshes: Iterable[MorphMesh] = ()) -> np.ndarray:
    """Numbers of the keys that the face keeps, int64, rising, the first and the last among them.

    Linear between them (and so linear in the weights of morph targets) no landmark, and no vertex of the meshes, is
    further than error_m / 2 from where it is in the head's space. 0 keeps every key. Raises ValueError where error_m is
    negative or not finite.
    """
    tracks = [take.points]
    for mesh in meshes:
        if not mesh.point_names:
            # A vertex moves by Σ Δw · target: at most the length of √K · Δw · (its farthest move).
            farthest = np.linalg.norm(mesh.targets, axis=2).max(axis=1, initial=0)  # [K]
            tracks.append((mesh.weights * farthest * np.sqrt(len(farthest)))[:, None])

    def is_within(start: int, stop: int) -> bool:
        return all(_is_within(track, start, stop, error_m / 2) for track in tracks)

    return kept_keys(take.n_keys, error_m, is_within)


def head_keys(take: Take, error_m: float) -> np.ndarray:
    """Numbers of the keys that the head keeps, as `face_keys`.

    Position linear and rotation by slerp (glTF, USD) or by lerp of `Take.quaternion` (Blender's curves), no posed point
    is further than error_m / 2 from where it is.
    """
    return kept_keys(take.n_keys, error_m, _head_is_within(take, error_m / 2))


def kept_keys(n_keys: int, error: float, is_within: IsWithin) -> np.ndarray:
    """From each kept key on to one as late as is_within(key, later one) allows, found by doubling and halving steps.

    Not always the fewest keys (on speech up to 4 % more than those), as what is allowed for a long step may not be for
    a shorter one, but always allowed ones, in about n_keys · log n_keys work.
    """
    if not 0 <= error < np.inf:
        raise ValueError(f"the error of reduced keys must be 0 or more, got {error}")
    if error == 0:
        return np.arange(n_keys)
    kept = [0]
    while (start := kept[-1]) < n_keys - 1:
        step = 1  # to the next key is always allowed
        while start + 2 * step < n_keys and is_within(start, start + 2 * step):
            step *= 2
        smaller = step
        while smaller:
            if start + step + smaller < n_keys and is_within(start, start + step + smaller):
                step += smaller
            smaller //= 2
        kept.append(start + step)
    return np.array(kept)


def _head_is_within(take: Take, error_m: float) -> IsWithin:
    quaternion, posed = take.quaternion, take.posed

    def is_within(start: int, stop: int) -> bool:
        cosine = quaternion[start] @ quaternion[stop]
        if cosine < MOST_TURN:  # near half a turn, tools may go either way round
            return False
        half_turn, fraction = np.arccos(min(cosine, 1.0)), _fraction(start, stop)[:, None]
        # sin(f a) / sin(a), which tends to f for no turn at all
        ahead, behind = (f * np.sinc(f * half_turn / np.pi) for f in (fraction, 1 - fraction))
        slerp = behind * quaternion[start] + ahead * quaternion[stop]
        position = _lerp(take.position, start, stop)[:, None]
        for turned in (slerp, _lerp(quaternion, start, stop)):
            rotation = Rotation.from_quat(turned).as_matrix()  # which makes their length 1
            moved = take.points[start + 1 : stop] @ rotation.swapaxes(-1, -2) + position - posed[start + 1 : stop]
            if (np.einsum("tnc,tnc->tn", moved, moved) > error_m**2).any():
                return False
        return True

    return is_within


def _is_within(points: np.ndarray, start: int, stop: int, error_m: float) -> bool:
    """Whether points [T, N, D] are no further than error_m from the line between two keys."""
    between = points[start + 1 : stop] - _lerp(points, start, stop)
    return bool((np.einsum("tnc,tnc->tn", between, between) <= error_m**2).all())


def _fraction(start: int, stop: int) -> np.ndarray:
    """[stop - start - 1]: how far each key between two is on the way."""
    return np.arange(1, stop - start) / (stop - start)


def _lerp(values: np.ndarray, start: int, stop: int) -> np.ndarray:
    """[stop - start - 1, ...]: values [T, ...] between two keys, on a straight line."""
    fraction = _fraction(start, stop).reshape(-1, *[1] * (values.ndim - 1))
    return (1 - fraction) * values[start] + fraction * values[stop]
