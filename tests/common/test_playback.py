"""A video by the numbers of its frames, forwards and backwards."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import playback
from common.media import VideoReader, VideoWriter

FPS = Fraction(30000, 1001)
N = 150  # three groups of pictures


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame k is lighter than frame k - 1."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    with VideoWriter(path, 32, 16, fps=FPS, crf=1) as writer:
        for k in range(N):
            writer.write(np.full((16, 32, 3), 40 + k, np.uint8))
    return path


def shown(path: Path, numbers: list[int]) -> list[int]:
    with VideoReader(path) as video:
        return [round(float(frame.mean())) - 40 for frame in playback.frames(video, numbers, FPS)]


@given(st.integers(1, 50), st.integers(1, 300), st.sampled_from(["loop", "hold"]))
def test_neighbours_in_time_are_neighbours_in_the_video(n_frames: int, n_wanted: int, end: playback.End) -> None:
    numbers = playback.order(n_frames, n_wanted, end)
    assert len(numbers) == n_wanted and numbers[0] == 0
    assert all(0 <= k < n_frames for k in numbers) and all(abs(b - a) <= 1 for a, b in pairwise(numbers))
    assert numbers[:n_frames] == list(range(min(n_frames, n_wanted)))
    if end == "hold":
        assert set(numbers[n_frames:]) <= {n_frames - 1}
    elif n_frames > 1:
        assert all(a != b for a, b in pairwise(numbers))  # it never rests


@pytest.mark.parametrize("piece", [2, 7, 1000])
def test_frames_come_as_they_are_numbered(video: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playback, "PIECE_BYTES", piece * 32 * 16 * 3)
    for numbers in (
        playback.order(N, 2 * N + 20, "loop"),
        playback.order(N, N + 5, "hold"),
        [70, 71, 75, 75, 74, 73, 100, 99, 20, 21, N - 1, N - 2],
        [N - 1],
        [],
    ):
        got = shown(video, numbers)
        assert len(got) == len(numbers)
        assert all(abs(a - b) <= 1 for a, b in zip(got, numbers, strict=True))  # the encoder rounds


def test_a_file_in_which_nothing_can_be_sought_is_played_too(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.h264"
    with av.open(str(video)) as source, av.open(str(path), "w", format="h264") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with VideoReader(path) as reader:
        rate, n_frames = reader.fps, sum(1 for _ in reader.frames_at(reader.fps))
        numbers = playback.order(n_frames, n_frames + 20, "loop")
        whole = [float(frame.mean()) for frame in reader.frames_at(rate)]
        shown = [float(frame.mean()) for frame in playback.frames(reader, numbers, rate)]
    assert shown == [whole[k] for k in numbers]


def test_a_pass_may_begin_anywhere(video: Path) -> None:
    with VideoReader(video) as reader:
        whole = list(reader.frames_at(FPS))
        for first in (0, 1, 49, 50, 51, 149):
            part = list(reader.frames_at(FPS, first))
            assert len(part) == N - first and all(
                np.array_equal(a, b) for a, b in zip(part, whole[first:], strict=True)
            )
        other = list(reader.frames_at(25))
        assert np.array_equal(np.stack(list(reader.frames_at(25, 60))), np.stack(other[60:]))
