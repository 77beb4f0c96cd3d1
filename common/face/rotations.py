"""Rotations: matrices and the other ways to write them, batched over any leading shape, differentiable.

A rotation here is a matrix R [..., 3, 3] that turns column vectors, R x: orthonormal, determinant 1; angles are
radians. For each way to write it there is a pair, `axis_angle` and `from_axis_angle` and so on. Values keep the dtype
of their input; gradients are finite everywhere, also where a value jumps (half turns, gimbal lock). Shapes that don't
fit raise ValueError. The numbers agree with scipy.spatial.transform.Rotation, but for the quaternion's order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HEAD_ORDER = "xyz"  # Euler angles pitch, yaw, roll: R = Rz(roll) Ry(yaw) Rx(pitch)
GENERATORS = (  # small turns about x, y, z
    ((0.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0)),
    ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
)


def axis_angle(rotation: Tensor) -> Tensor:
    """R [..., 3, 3] -> vectors [..., 3] along the axis, as long as the angle, 0 to pi (a half turn: either way)."""
    real, imaginary = quaternion(rotation).split([1, 3], dim=-1)
    half_sine = _length(imaginary)
    return imaginary * (2 * torch.atan2(half_sine, real) / half_sine)


def from_axis_angle(vector_rad: Tensor) -> Tensor:
    """Vectors [..., 3] along the axis, as long as the angle -> R [..., 3, 3] (Rodrigues)."""
    _check(vector_rad, (3,), "axis-angle vectors")
    angle = _length(vector_rad)[..., None]
    skew = (vector_rad @ vector_rad.new_tensor(GENERATORS).flatten(1)).unflatten(-1, (3, 3))
    first, second = torch.sinc(angle / torch.pi), torch.sinc(angle / (2 * torch.pi)).square() / 2
    return torch.eye(3, dtype=vector_rad.dtype, device=vector_rad.device) + first * skew + second * (skew @ skew)


def quaternion(rotation: Tensor) -> Tensor:
    """R [..., 3, 3] -> unit quaternions [..., 4], real part first and not negative.

    Row i of the table below is 4 q_i q, so a row of length 2 or more is always at hand: no root of zero anywhere.
    """
    _check(rotation, (3, 3), "rotation matrices")
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rotation.unbind(-2))
    rows = (
        (1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
        (zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx),
        (xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz),
        (yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz),
    )
    table = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [..., 4, 4]
    longest = table.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)[..., None, None]
    found = table.gather(-2, longest.expand(*longest.shape[:-1], 4)).squeeze(-2)  # [..., 4]
    found = found / found.norm(dim=-1, keepdim=True)
    return torch.where(found[..., :1] < 0, -found, found)


def from_quaternion(value: Tensor) -> Tensor:
    """Quaternions [..., 4], real part first, of any length (zero: no turn) -> R [..., 3, 3]."""
    _check(value, (4,), "quaternions")
    real, imaginary = (value / _length(value)).split([1, 3], dim=-1)
    skew = (imaginary @ imaginary.new_tensor(GENERATORS).flatten(1)).unflatten(-1, (3, 3))
    # With w² + |v|² = 1: R = 1 + 2 w [v] + 2 [v]².
    return torch.eye(3, dtype=value.dtype, device=value.device) + 2 * (real[..., None] * skew + skew @ skew)


def six_d(rotation: Tensor) -> Tensor:
    """R [..., 3, 3] -> its first *column*, then its second, [..., 6], as in Zhou et al. 2019 (pytorch3d keeps rows)."""
    _check(rotation, (3, 3), "rotation matrices")
    return rotation[..., :2].mT.flatten(-2)


def from_six_d(columns: Tensor) -> Tensor:
    """Two columns [..., 6] -> R [..., 3, 3] by Gram-Schmidt (Zhou et al. 2019, eq. B.1).

    The columns need neither length 1 nor a right angle; parallel or zero they have no answer, and it is finite.
    """
    _check(columns, (6,), "6D rotations")
    first, second = columns.split(3, dim=-1)
    x = first / _length(first)
    second = second - (x * second).sum(dim=-1, keepdim=True) * x
    y = second / _length(second)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)


def euler_rad(rotation: Tensor, order: str = HEAD_ORDER) -> Tensor:
    """R [..., 3, 3] -> Euler angles [..., 3], in the order that is written; `from_euler_rad` says what they mean.

    The middle angle lies in -pi/2..pi/2 (0..pi where the first axis is the last). In gimbal lock only the sum or the
    difference of the outer angles is known, and they take half of it each.

    For the head's order (pitch, yaw, roll), positive is: the face looks down, turns to the image's right, and the head
    tips to the image's left (counter-clockwise as seen); locked at a full profile.
    """
    # Bernardes and Viollet 2022, "Quaternion to Euler angles conversion", with outer axes i and k about the middle j.
    i, j, k = _axes(order)
    is_proper = i == k
    k = 3 - i - j if is_proper else k
    sign = (i - j) * (j - k) * (k - i) // 2
    real, *imaginary = quaternion(rotation).unbind(-1)
    a, b, c, d = real, imaginary[i], imaginary[j], sign * imaginary[k]
    if not is_proper:
        a, b, c, d = a - c, b + d, c + a, d - b
    half_sum, half_difference = _atan2(b, a), _atan2(d, c)
    middle = 2 * torch.atan2(_length(torch.stack([c, d], dim=-1)), _length(torch.stack([a, b], dim=-1)))[..., 0]
    first, last = half_sum - half_difference, half_sum + half_difference
    if not is_proper:
        middle, last = middle - torch.pi / 2, sign * last
    first, last = _wrapped(first), _wrapped(last)
    return torch.stack([last, middle, first] if order.isupper() else [first, middle, last], dim=-1)


def from_euler_rad(angles_rad: Tensor, order: str = HEAD_ORDER) -> Tensor:
    """Euler angles [..., 3], in the order that is written -> R [..., 3, 3].

    order: three letters, as in SciPy: "xyz" turns about the fixed x, then the fixed y, then the fixed z axis
    (extrinsic: R = Rz Ry Rx); "XYZ" about the axes that turn along (intrinsic: R = Rx Ry Rz). Neighbours differ: six
    orders with three axes and six with two, such as "zxz".
    """
    _check(angles_rad, (3,), "Euler angles")
    axes = _axes(order)
    angles = angles_rad.flip(-1) if order.isupper() else angles_rad
    first, middle, last = (_about(axis, angle) for axis, angle in zip(axes, angles.unbind(-1), strict=True))
    return last @ middle @ first


def slerp(rotations: Tensor, times_s: Tensor, at_s: Tensor) -> Tensor:
    """Rotations [T, 3, 3] known at rising times [T], at other times [N] -> [N, 3, 3]; beyond the ends, the ends.

    Between two neighbours at constant speed and the shorter way.
    """
    _check(rotations, (len(rotations), 3, 3), "rotations over time")
    if times_s.shape != rotations.shape[:1] or at_s.ndim != 1 or len(times_s) == 0:
        raise ValueError(
            f"slerp needs rotations [T, 3, 3], times [T] and [N], T at least 1, got {list(rotations.shape)}, "
            f"{list(times_s.shape)} and {list(at_s.shape)}"
        )
    times, at = times_s.double(), at_s.double()  # an hour in float32 is known to 0.2 ms
    if not (times[1:] > times[:-1]).all():
        raise ValueError("slerp needs times that rise from each rotation to the next")
    before = (torch.searchsorted(times, at, right=True) - 1).clamp(0, len(times) - 1)
    after = (before + 1).clamp(max=len(times) - 1)
    span = (times[after] - times[before]).clamp(min=torch.finfo(times.dtype).tiny)
    weight = ((at - times[before]) / span).clamp(0, 1).to(rotations)[:, None]
    start = rotations[before]
    return start @ from_axis_angle(weight * axis_angle(start.mT @ rotations[after]))


def angle_rad(one: Tensor, other: Tensor) -> Tensor:
    """The angle between rotations [..., 3, 3] and [..., 3, 3]: [...], 0 to pi."""
    return _length(axis_angle(one.mT @ other))[..., 0]


def _about(axis: int, angle_rad: Tensor) -> Tensor:
    """Turns about one axis, [...] -> [..., 3, 3]; exactly the identity for 0."""
    generator = angle_rad.new_tensor(GENERATORS[axis])
    sine, cosine = angle_rad.sin()[..., None, None], angle_rad.cos()[..., None, None]
    eye = torch.eye(3, dtype=angle_rad.dtype, device=angle_rad.device)
    return eye + sine * generator + (1 - cosine) * (generator @ generator)


def _axes(order: str) -> tuple[int, int, int]:
    """Numbers of the axes in the order in which the turns happen about fixed axes."""
    is_order = len(order) == 3 and (order.islower() or order.isupper()) and set(order.lower()) <= set("xyz")
    if not is_order or order[0] == order[1] or order[1] == order[2]:
        raise ValueError(
            f'an order of Euler angles is three of "xyz" (fixed axes) or of "XYZ" (axes that turn along), neighbours '
            f"unlike, got {order!r}"
        )
    first, middle, last = ("xyz".index(letter) for letter in order.lower())
    return (last, middle, first) if order.isupper() else (first, middle, last)


def _length(vector: Tensor) -> Tensor:
    """[..., D] -> [..., 1], with a finite gradient at zero; lengths below 1e-9 (float32) are taken for about that."""
    tiny = math.sqrt(torch.finfo(vector.dtype).tiny)
    return (vector.square().sum(dim=-1, keepdim=True) + tiny).sqrt()


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    """atan2 that is 0, with gradient 0, where both are as good as zero."""
    is_zero = torch.maximum(y.abs(), x.abs()) < 4 * torch.finfo(y.dtype).eps
    return torch.atan2(torch.where(is_zero, 0.0, y), torch.where(is_zero, 1.0, x))


def _wrapped(angle_rad: Tensor) -> Tensor:
    """Into -pi..pi."""
    return angle_rad - 2 * torch.pi * (angle_rad / (2 * torch.pi)).round()


def _check(value: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(value.shape[-len(shape) :]) != shape or not value.is_floating_point():
        raise ValueError(
            f"{what} must be floats [..., {', '.join(map(str, shape))}], got {list(value.shape)} {value.dtype}"
        )
