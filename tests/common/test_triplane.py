"""TriPlane: packing order, round trip, refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.triplane import TriPlane, packed_length, unpack

sizes = st.integers(1, 5)


@given(n_frames=sizes, height=sizes, width=sizes)
def test_unpacking_inverts_packing(n_frames: int, height: int, width: int) -> None:
    packed = torch.arange(6 * packed_length(n_frames, height, width)).reshape(2, 3, -1)
    planes = unpack(packed, n_frames, height, width)
    assert (planes.n_frames, planes.height, planes.width) == (n_frames, height, width)
    assert torch.equal(planes.pack(), packed)


def test_packing_order_is_xy_xt_yt_each_row_by_row() -> None:
    planes = unpack(torch.arange(6 + 12 + 8).reshape(1, 1, -1), n_frames=4, height=2, width=3)
    assert planes.xy[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert planes.xt[0, 0, 0].tolist() == [6, 7, 8]
    assert planes.yt[0, 0, 0].tolist() == [18, 19]


def test_map_acts_on_each_plane() -> None:
    planes = unpack(torch.arange(26.0).reshape(1, 1, -1), n_frames=4, height=2, width=3)
    assert torch.equal(planes.map(lambda plane: 2 * plane).pack(), 2 * planes.pack())


def test_planes_that_disagree_are_refused() -> None:
    xy, xt, yt = torch.zeros(1, 4, 8, 12), torch.zeros(1, 4, 6, 12), torch.zeros(1, 4, 6, 8)
    TriPlane(xy, xt, yt)
    for planes in ((xy, yt, xt), (xy, xt[:, :2], yt), (xy, xt, yt[:, :, :5]), (xy, xt.expand(2, -1, -1, -1), yt)):
        with pytest.raises(ValueError, match="planes must agree"):
            TriPlane(*planes)
    with pytest.raises(ValueError, match="planes must be"):
        TriPlane(xy[0], xt, yt)
    with pytest.raises(ValueError, match=r"pack to \[B, C, 188\].*216"):
        unpack(torch.zeros(1, 4, 216), n_frames=6, height=8, width=10)
