"""A data folder that travels: the same clips, frames and landmarks come out, within the limit or not at all."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2m.data import read_clips as read_speech
from common import pack
from common.errors import InputError
from common.face.model import FaceModel
from common.media import VideoReader, read_audio
from m2v.data import read_clips as read_pictures
from tests.tiny_data import write_data

CLIPS = [
    ("a_00", "anna", "train", "talking", 30),
    ("a_01", "anna", "train", "talking", 30),
    ("b_00", "bert", "train", "silent", 25),
    ("c_00", "cleo", "val", "talking", 25),
    ("d_00", "dora", "test", "talking", 25),
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "given", CLIPS)


@pytest.fixture(scope="module")
def unpacked_dir(data_dir: Path) -> Path:
    zip_path = data_dir.parent / "train.zip"
    pack.run(["--data", str(data_dir), "--out", str(zip_path), "--threads", "1"])
    pack.run(["--unpack", str(zip_path), "--out", str(data_dir.parent / "unpacked")])
    return data_dir.parent / "unpacked"


def test_every_clip_of_the_splits_travels_and_no_other(data_dir: Path, unpacked_dir: Path) -> None:
    rows = [list(csv.DictReader((folder / "index.csv").open())) for folder in (data_dir, unpacked_dir)]
    assert rows[1] == [row for row in rows[0] if row["split"] != "test"]
    for kind, suffix in (("clips", ".mp4"), ("tracks", ".npz")):
        names = sorted(path.name for path in (unpacked_dir / kind).iterdir())
        assert names == [f"{row['clip_id']}{suffix}" for row in rows[1]]


def test_frames_stay_in_place(data_dir: Path, unpacked_dir: Path) -> None:
    """The picture moves by a pixel a frame: a frame is nearer to its original than to that one's neighbours."""
    for name in ("a_00", "b_00"):
        before, after = (
            np.stack([frame for _, frame in VideoReader(folder / "clips" / f"{name}.mp4")]).astype(np.float32)
            for folder in (data_dir, unpacked_dir)
        )
        assert before.shape == after.shape
        own = ((before - after) ** 2).mean(axis=(1, 2, 3))
        other = ((before[1:] - after[:-1]) ** 2).mean(axis=(1, 2, 3))
        assert own.max() < 0.25 * other.min()


def test_sound_stays_in_time(data_dir: Path, unpacked_dir: Path) -> None:
    """To half a millisecond; and as long as it was."""
    before, after = (read_audio(folder / "clips" / "a_00.mp4") for folder in (data_dir, unpacked_dir))
    assert len(before) == len(after)
    lags = range(-100, 101)
    likeness = [np.corrcoef(before[200:-200], after[200 + lag : len(after) - 200 + lag])[0, 1] for lag in lags]
    assert abs(lags[int(np.argmax(likeness))]) <= 8
    assert max(likeness) > 0.95


def test_landmarks_are_rounded_and_no_more(data_dir: Path, unpacked_dir: Path) -> None:
    for name in ("a_00", "b_00"):
        before, after = (np.load(folder / "tracks" / f"{name}.npz") for folder in (data_dir, unpacked_dir))
        error = np.abs(before["landmarks"].astype(np.float32) - after["landmarks"].astype(np.float32))
        assert (error.max(axis=(0, 1)) <= np.array([1 / 16, 1 / 16, 1 / 8])).all()
        assert after["landmarks"].dtype == np.float16
        assert (before["valid"] == after["valid"]).all()


def test_both_stages_read_the_unpacked_folder_as_the_one_given(
    data_dir: Path, unpacked_dir: Path, tmp_path: Path
) -> None:
    model = FaceModel.builtin()
    before, after = (read_speech(folder, "train", model) for folder in (data_dir, unpacked_dir))
    assert [clip.name for clip in before] == [clip.name for clip in after] == ["a_00", "a_01"]
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a.opening, b.opening, atol=0.01, rtol=0)  # of the distance of the eyes
        assert a.mel.shape == b.mel.shape
        assert (a.mel - b.mel)[:, :, :40].square().mean().sqrt() < 0.5  # of 10 dB; the top bands hold only noise
    pictures = [read_pictures(d, "train", 8, tmp_path / d.name, ("talking",)) for d in (data_dir, unpacked_dir)]
    assert [clip.frames.shape for clip in pictures[0]] == [clip.frames.shape for clip in pictures[1]]


def test_the_same_data_gives_the_same_bytes(data_dir: Path, unpacked_dir: Path, tmp_path: Path) -> None:
    pack.run(["--data", str(data_dir), "--out", str(tmp_path / "again.zip"), "--threads", "2"])
    assert (tmp_path / "again.zip").read_bytes() == (data_dir.parent / "train.zip").read_bytes()


def test_the_limit_is_kept(data_dir: Path, unpacked_dir: Path, tmp_path: Path) -> None:
    most = int(0.6 * (data_dir.parent / "train.zip").stat().st_size)
    about = pack.pack(data_dir, tmp_path / "small.zip", ["train", "val"], most, n_threads=1)
    assert about["bytes"] == (tmp_path / "small.zip").stat().st_size <= most
    assert about["crf"] > pack.CRFS[0]


def test_a_limit_that_cannot_be_met_is_an_error_and_leaves_nothing(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="raise --most-mb"):
        pack.run(["--data", str(data_dir), "--out", str(tmp_path / "x.zip"), "--most-mb", "0.002", "--threads", "1"])
    assert not list(tmp_path.iterdir())


@given(
    minutes=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=30),
    n_people=st.integers(1, 5),
    share=st.floats(0.05, 1.5),
)
def test_plan_takes_all_at_the_best_quality_that_fits_or_caps_people(
    minutes: list[float], n_people: int, share: float
) -> None:
    clips = [
        pack.Clip({"clip_id": f"c{k}", "person": f"p{k % n_people}", "seconds": str(60 * m)}, int(1e6 * m))
        for k, m in enumerate(minutes)
    ]
    ratio = {crf: 2.0 ** (-(crf - 18) / 6) for crf in pack.CRFS}
    tracks = {clip.name: 10_000 for clip in clips}
    most = share * sum(clip.n_bytes for clip in clips)

    def size(some: list[pack.Clip], crf: int) -> float:
        return 2000 + 700 * len(clips) + sum(10_000 + ratio[crf] * clip.n_bytes for clip in some)

    try:
        chosen, crf = pack.plan(clips, tracks, ratio, most)
    except InputError:
        assert size(clips, pack.CRFS[-1]) > most
        return
    assert size(chosen, crf) <= most
    if len(chosen) < len(clips):
        assert crf == pack.CRFS[-1]
    elif crf > pack.CRFS[0]:
        assert size(clips, crf - 1) > most


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--out", "x.zip"], "either"),
        (["--data", "nowhere", "--out", "x.zip"], "nowhere"),
        (["--unpack", "nowhere.zip", "--out", "x"], "nowhere.zip"),
        (["--data", "d", "--out", "x.zip", "--split", "holdout"], "holdout"),
        (["--data", "d", "--out", "x.zip", "--most-mb", "-1"], "most-mb"),
    ],
)
def test_wrong_flags_give_one_sentence(
    argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        pack.run(argv)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_hostile_and_broken_zips_write_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "deep" / "x.zip"
    outside.parent.mkdir()
    for name in ("../escaped.txt", "clips/../../escaped.mp4", "/etc/x", "clips/a.sh", "index.csv.exe"):
        with zipfile.ZipFile(outside, "w") as made:
            made.writestr("index.csv", "clip_id\n")
            made.writestr(name, "x")
        with pytest.raises(InputError, match="no packed data"):
            pack.unpack(outside, tmp_path / "deep" / "out")
    with zipfile.ZipFile(outside, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("index.csv", "0" * 10_000_000)
    with pytest.raises(InputError, match="times its size"):
        pack.unpack(outside, tmp_path / "deep" / "out")
    outside.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="whole zip"):
        pack.unpack(outside, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.zip"]


def test_a_broken_clip_is_named(data_dir: Path, tmp_path: Path) -> None:
    broken = write_data(tmp_path / "data", [("x_00", "xaver", "train", "silent", 20)])
    (broken / "clips" / "x_00.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"x_00\.mp4"):
        pack.run(["--data", str(broken), "--out", str(tmp_path / "x.zip"), "--threads", "1"])
    assert not (tmp_path / "x.zip").exists()
