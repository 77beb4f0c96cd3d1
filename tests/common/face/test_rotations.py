"""Rotations against SciPy, round trips, and gradients at the awkward points."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from common.face import rotations
from common.face.rotations import (
    angle_rad,
    axis_angle,
    euler_rad,
    from_axis_angle,
    from_euler_rad,
    from_quaternion,
    from_six_d,
    quaternion,
    six_d,
    slerp,
)

FIXED_ORDERS = [
    "".join(letters) for letters in itertools.product("xyz", repeat=3) if letters[0] != letters[1] != letters[2]
]
ORDERS = FIXED_ORDERS + [order.upper() for order in FIXED_ORDERS]
PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "axis-angle": (axis_angle, from_axis_angle),
    "quaternion": (quaternion, from_quaternion),
    "6D": (six_d, from_six_d),
    "euler xyz": (euler_rad, from_euler_rad),
    "euler ZXZ": (lambda R: euler_rad(R, "ZXZ"), lambda angles: from_euler_rad(angles, "ZXZ")),
}
HALF_TURNS = from_axis_angle(
    math.pi * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0, -0.6, 0.8]], dtype=torch.float64)
)
# The middle angle of either kind at both ends of its range: for orders such as "xyz" and such as "zxz".
LOCKED = torch.stack(
    [
        from_euler_rad(torch.tensor([0.3, middle, -0.5], dtype=torch.float64), order)
        for order in ("xyz", "zxz")
        for middle in (math.pi / 2, -math.pi / 2, 0.0, math.pi)
    ]
)
AWKWARD = torch.cat(
    [
        torch.eye(3, dtype=torch.float64)[None],
        torch.diag_embed(torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)),  # exactly pi
        HALF_TURNS,
        LOCKED,
        from_axis_angle(torch.tensor([[1e-9, 0, 0], [0, -1e-5, 0], [1e-20, 1e-20, 0]], dtype=torch.float64)),
        from_axis_angle((math.pi - 1e-7) * torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64)),
    ]
)


def random_rotations(n: int, seed: int = 0) -> tuple[Rotation, Tensor]:
    reference = Rotation.random(n, rng=np.random.default_rng(seed))
    return reference, torch.from_numpy(reference.as_matrix())


def assert_same(found: Tensor, wanted: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


def assert_rotations(rotation: Tensor, atol: float = 1e-9) -> None:
    eye = torch.eye(3, dtype=rotation.dtype).expand(rotation.shape)
    assert_same(rotation @ rotation.mT, eye, atol)
    assert_same(torch.linalg.det(rotation), eye[..., 0, 0], atol)


def test_values_are_scipys() -> None:
    reference, R = random_rotations(200)
    assert_same(axis_angle(R), torch.from_numpy(reference.as_rotvec()))
    assert_same(quaternion(R), torch.from_numpy(reference.as_quat(canonical=True, scalar_first=True)))
    assert_same(from_quaternion(torch.from_numpy(reference.as_quat(scalar_first=True))), R)
    assert_same(from_axis_angle(torch.from_numpy(reference.as_rotvec())), R)


@pytest.mark.parametrize("order", ORDERS)
def test_euler_angles_are_scipys_in_every_order(order: str) -> None:
    reference, R = random_rotations(50)
    angles = torch.from_numpy(reference.as_euler(order))
    assert_same(euler_rad(R, order), angles)
    assert_same(from_euler_rad(angles, order), R)


def test_small_letters_turn_about_fixed_axes_and_capitals_about_turned_ones() -> None:
    a, b, c = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64)
    turns = [from_axis_angle(angle * torch.eye(3, dtype=torch.float64)[k]) for k, angle in enumerate((a, b, c))]
    angles = torch.stack([a, b, c])
    assert_same(from_euler_rad(angles, "xyz"), turns[2] @ turns[1] @ turns[0])
    assert_same(from_euler_rad(angles, "XYZ"), turns[0] @ turns[1] @ turns[2])
    assert_same(from_euler_rad(angles, "xyz"), from_euler_rad(angles.flip(-1), "ZYX"))


def test_pitch_yaw_and_roll_of_a_head_mean_what_they_say() -> None:
    pitch, yaw, roll = from_euler_rad(0.3 * torch.eye(3, dtype=torch.float64))
    forward, up = torch.tensor([0.0, 0, 1]).double(), torch.tensor([0.0, 1, 0]).double()
    assert (pitch @ forward)[1] < 0  # looks down
    assert (yaw @ forward)[0] > 0  # looks to the image's right
    assert (roll @ up)[0] < 0  # tips to the image's left


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_round_trips_return_even_at_the_awkward_points(pair: str, dtype: torch.dtype) -> None:
    there, back = PAIRS[pair]
    R = torch.cat([AWKWARD, random_rotations(100)[1]]).to(dtype)
    value = there(R)
    assert value.dtype == dtype and value.isfinite().all()
    atol = 1e-9 if dtype == torch.float64 else 2e-6
    assert_rotations(back(value), atol)
    assert_same(back(value), R, atol)


@pytest.mark.parametrize("order", ORDERS)
def test_gimbal_lock_in_any_order_still_gives_the_rotation(order: str) -> None:
    is_proper = order[0] == order[2]
    for middle in (0.0, math.pi) if is_proper else (math.pi / 2, -math.pi / 2):
        for off in (0.0, 1e-12, 1e-8, 1e-4):
            R = from_euler_rad(torch.tensor([0.4, middle - off, 0.9], dtype=torch.float64), order)
            assert_same(from_euler_rad(euler_rad(R, order), order), R)


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_are_finite_at_the_awkward_points(pair: str) -> None:
    there, back = PAIRS[pair]
    for dtype in (torch.float64, torch.float32):
        R = AWKWARD.to(dtype, copy=True).requires_grad_()
        there(R).sum().backward()
        assert R.grad is not None and R.grad.isfinite().all()
        value = there(AWKWARD.to(dtype)).detach().requires_grad_()
        back(value).square().sum().backward()
        assert value.grad is not None and value.grad.isfinite().all()
        nothing = torch.zeros_like(value[:1], requires_grad=True)
        back(nothing)[..., 0].sum().backward()  # zero length: of quaternions and columns, too
        assert nothing.grad is not None and nothing.grad.isfinite().all()


@pytest.mark.parametrize("pair", PAIRS)
def test_gradients_are_those_of_finite_differences(pair: str) -> None:
    """Along rotations: R exp(w) at w = 0, away from the points where a value jumps."""
    there, back = PAIRS[pair]
    R = from_axis_angle(torch.tensor([[0.3, -0.4, 0.2], [1.0, 1.2, -0.3], [1e-4, 0.0, 0.0]], dtype=torch.float64))
    w = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: back(there(R @ from_axis_angle(w))), (w,), atol=1e-5)
    kept = slice(0, 2) if pair.startswith("euler Z") else slice(None)  # locked at the identity
    assert torch.autograd.gradcheck(lambda w: there(R @ from_axis_angle(w))[kept], (w,), atol=1e-5)


def test_the_gradient_of_a_vanishing_turn_is_the_turn() -> None:
    """The logarithm at the identity: its derivative along exp(w) is the identity, not merely finite."""
    for dtype in (torch.float64, torch.float32):
        jacobian = torch.autograd.functional.jacobian(
            lambda w: axis_angle(from_axis_angle(w)), torch.zeros(3, dtype=dtype)
        )
        assert_same(jacobian, torch.eye(3, dtype=dtype), 1e-6)


def test_a_rotation_that_is_exactly_none_is_exactly_none() -> None:
    for dtype in (torch.float64, torch.float32):
        eye, zero = torch.eye(3, dtype=dtype), torch.zeros(3, dtype=dtype)
        assert torch.equal(from_axis_angle(zero), eye) and torch.equal(axis_angle(eye), zero)
        assert torch.equal(from_euler_rad(zero), eye) and torch.equal(euler_rad(eye), zero)
        assert quaternion(eye).tolist() == [1, 0, 0, 0] and torch.equal(from_quaternion(torch.zeros(4).to(dtype)), eye)
        assert six_d(eye).tolist() == [1, 0, 0, 0, 1, 0] and torch.equal(from_six_d(six_d(eye)), eye)


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.floats(-20, 20), min_size=6, max_size=6),
    order=st.sampled_from(ORDERS),
)
def test_any_numbers_give_rotations(values: list[float], order: str) -> None:
    six = torch.tensor(values, dtype=torch.float64)
    R = from_euler_rad(six[:3], order)
    assert_rotations(R)
    assert_same(from_euler_rad(euler_rad(R, order), order), R)
    assert_rotations(from_axis_angle(six[:3]), 1e-8)
    if six[:4].norm() > 1e-6:
        assert_rotations(from_quaternion(six[:4]))
    if torch.linalg.cross(six[:3], six[3:]).norm() > 1e-3:
        assert_rotations(from_six_d(six), 1e-6)


@settings(deadline=None, max_examples=50)
@given(vector=st.lists(st.floats(-1.8, 1.8), min_size=3, max_size=3), scale=st.sampled_from([1.0, 1e-3, 1e-6, 1e-9]))
def test_vectors_shorter_than_half_a_turn_return(vector: list[float], scale: float) -> None:
    value = scale * torch.tensor(vector, dtype=torch.float64)
    if value.norm() < math.pi - 1e-6:
        assert_same(axis_angle(from_axis_angle(value)), value, 1e-8 * scale + 1e-15)


def test_6d_is_the_first_two_columns() -> None:
    _, R = random_rotations(3)
    assert torch.equal(six_d(R), torch.cat([R[..., 0], R[..., 1]], dim=-1))
    stretched = torch.cat([3 * R[..., 0], 0.5 * R[..., 1] - 2 * R[..., 0]], dim=-1)
    assert_same(from_six_d(stretched), R)


def test_any_leading_shape_is_a_batch() -> None:
    _, R = random_rotations(6)
    for there, back in PAIRS.values():
        whole = there(R.reshape(2, 3, 3, 3))
        assert_same(whole.reshape(6, -1), torch.stack([there(one) for one in R]))
        assert back(whole).shape == (2, 3, 3, 3)
        assert there(R[:0]).shape[0] == 0 and back(there(R[:0])).shape == (0, 3, 3)


def test_slerp_is_scipys_and_holds_the_ends() -> None:
    reference, R = random_rotations(12, seed=1)
    times = torch.tensor([0.0, 0.04, 0.05, 0.3, 1, 2, 3, 3.5, 4, 5, 6, 7.5])
    at = torch.linspace(0, 7.5, 301, dtype=torch.float64)
    wanted = Slerp(times.double().numpy(), reference)(at.numpy()).as_matrix()
    assert_same(slerp(R, times, at), torch.from_numpy(wanted))
    assert_same(slerp(R, times, times), R)
    assert_same(slerp(R, times, torch.tensor([-3.0, 99.0])), R[[0, -1]])
    assert_same(slerp(R[:1], times[:1], at), R[:1].expand(301, -1, -1))
    assert slerp(R, times, at[:0]).shape == (0, 3, 3)


def test_slerp_goes_the_shorter_way_at_constant_speed() -> None:
    turns = torch.tensor([170.0, -170.0]).double()[:, None].deg2rad() * torch.tensor([0.0, 1.0, 0.0]).double()
    R = slerp(from_axis_angle(turns), torch.tensor([0.0, 1.0]), torch.linspace(0, 1, 21, dtype=torch.float64))
    steps = angle_rad(R[:-1], R[1:])
    assert_same(steps, torch.full_like(steps, math.radians(1.0)))


def test_slerp_of_hours_keeps_its_time() -> None:
    """Ten hours at 30 frames/s: in float32 a time there is known to 4 ms only."""
    n = 1000
    times = 36_000 + torch.arange(n, dtype=torch.float64) / 30
    turn = 0.5 * (times - 36_000)  # rad
    path = torch.stack([torch.zeros(n), turn, torch.zeros(n)], dim=-1)
    at = times[:-1] + 0.01
    found = axis_angle(slerp(from_axis_angle(path).float(), times, at))[:100, 1]
    assert_same(found.double(), 0.5 * (at[:100] - 36_000), 1e-6)


def test_angles_between_rotations() -> None:
    _, R = random_rotations(5)
    turn = from_axis_angle(0.25 * torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64))
    assert_same(angle_rad(R, R @ turn), torch.full((5,), 0.25, dtype=torch.float64))
    assert_same(angle_rad(R, R), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (axis_angle, (3, 2)),
        (quaternion, (4,)),
        (six_d, (2, 3)),
        (euler_rad, ()),
        (from_axis_angle, (4,)),
        (from_quaternion, (3,)),
        (from_six_d, (3, 2)),
        (from_euler_rad, (3, 3, 4)),
    ],
)
def test_other_shapes_and_whole_numbers_are_refused(function: Callable[[Tensor], Tensor], shape: tuple[int]) -> None:
    with pytest.raises(ValueError, match="must be floats"):
        function(torch.zeros(shape))
    with pytest.raises(ValueError, match="must be floats"):
        function(torch.zeros((3, 3), dtype=torch.int64))


@pytest.mark.parametrize("order", ["xxy", "xyZ", "xy", "xyzx", "abc", "", "yxx"])
def test_what_is_no_order_of_axes_is_refused(order: str) -> None:
    with pytest.raises(ValueError, match="order"):
        from_euler_rad(torch.zeros(3), order)
    with pytest.raises(ValueError, match="order"):
        euler_rad(torch.eye(3), order)


def test_times_that_do_not_fit_are_refused() -> None:
    R = torch.eye(3).expand(3, 3, 3)
    for times, at in ((torch.tensor([0.0, 1.0]), torch.zeros(1)), (torch.arange(3.0), torch.zeros(1, 1))):
        with pytest.raises(ValueError, match="slerp needs rotations"):
            slerp(R, times, at)
    for times in (torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0, torch.nan, 1.0])):
        with pytest.raises(ValueError, match="rise"):
            slerp(R, times, torch.zeros(1))
    with pytest.raises(ValueError, match="slerp needs rotations"):
        slerp(R[:0], torch.zeros(0), torch.zeros(1))


def test_the_head_order_is_the_default() -> None:
    _, R = random_rotations(4)
    assert torch.equal(euler_rad(R), euler_rad(R, rotations.HEAD_ORDER))
