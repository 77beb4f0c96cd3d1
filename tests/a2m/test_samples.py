"""What AToM-Net's training adds to talking clips: muted stretches, known frames, clips without speech."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from a2m.model import AToMConfig, AToMNet
from a2m.samples import DataConfig, Speech, shut_while
from common.face.model import FaceModel
from tests.a2m.tiny import PLAIN, clip

CONFIG = AToMConfig(n_lip=3, n_rest=2, width=32, n_layers=1, n_heads=2, ff_width=64, window=32, overlap=8)


def speech(options: DataConfig, silent: bool = False) -> Speech:
    torch.manual_seed(0)
    net, face_model = AToMNet(CONFIG), FaceModel.builtin()
    clips = [clip("a", 0, 60), clip("b", 1, 20)]
    data = Speech(clips, net, face_model, options, 0, [clip("c", 2, 60)] if silent else [])
    net.space.fit(clips, data.shares, face_model, is_points=False)
    data.prepare()
    return data


def test_the_mouth_is_closed_where_the_sound_is_muted() -> None:
    plain, muted = speech(PLAIN), speech(DataConfig(**{**vars(PLAIN), "muted_share": 1.0}))
    n_lip = plain.space.n_lip
    for number in range(20):
        item, as_it_was = muted[number], plain[number]
        shut = (item["x_0"][:, :n_lip] == 0).all(dim=1) & item["is_frame"]
        assert shut.any()
        assert not (as_it_was["x_0"][:, :n_lip] == 0).all(dim=1)[as_it_was["is_frame"]].any()


@given(n=st.integers(1, 64), first=st.integers(0, 63), length=st.integers(1, 64))
def test_the_mouth_closes_and_opens_softly_and_not_beyond_the_muted_stretch(n: int, first: int, length: int) -> None:
    first = min(first, n - 1)
    muted = slice(first, min(n, first + length))
    shut = shut_while(n, muted)
    assert shut.shape == (n,) and shut.min() >= 0 and shut.max() <= 1
    outside = torch.ones(n, dtype=torch.bool)
    outside[muted] = False
    assert (shut[outside] == 0).all()
    assert muted != slice(0, n) or (shut == 1).all()  # no sound at all
    assert muted.stop - muted.start < 9 or shut.max() == 1
    assert (shut_while(n, slice(0)) == 0).all()


@given(prefix=st.sampled_from([0.0, 0.5, 1.0]), keyframes=st.sampled_from([0.0, 0.5]))
def test_known_frames_leave_something_to_make(prefix: float, keyframes: float) -> None:
    data = speech(DataConfig(**{**vars(PLAIN), "prefix_share": prefix, "keyframe_share": keyframes}))
    n_known = []
    for number in range(12):
        item = data[number]
        n, known = int(item["is_frame"].sum()), item["is_known"]
        n_known.append(int(known.sum()))
        assert not known[n:].any() and n_known[-1] <= max(3, min(n // 2, data.options.longest_prefix))
        if prefix == 1.0:
            assert known[0] and not known.int().diff().gt(0).any()  # from the first frame on, without gaps
    assert any(n_known) or prefix + keyframes < 1


def test_clips_without_speech_are_never_heard() -> None:
    data = speech(DataConfig(**{**vars(PLAIN), "silent_share": 0.5}), silent=True)
    heard = [bool(data[number]["has_audio"]) for number in range(60)]
    assert 15 < sum(heard) < 45
    assert all(speech(PLAIN, silent=True)[number]["has_audio"] for number in range(30))  # a share of none
