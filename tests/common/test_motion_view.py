"""A take to look at: points where the views say, every key its frame, curves and sound in step, errors a sentence."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image
from scipy.ndimage import label

from common.errors import InputError
from common.export.take import Take
from common.face.model import INNER_LIP, LIPS
from common.media import VideoReader, read_audio, read_picture
from common.motion_view import (
    BACKGROUND,
    BELOW_PX,
    COLOURS,
    CURSOR,
    DRAWN,
    LEFT_PX,
    N_COLUMNS,
    OPENING,
    PANEL,
    RIGHT_PX,
    SUPERSAMPLING,
    VIEWS,
    WAVE,
    WAVE_LANE,
    Panel,
    Timeline,
    View,
    frames,
    main,
    strip,
)
from tests.common.export.takes import smooth_take

REPOSITORY = Path(__file__).parents[2]
FRONT, SIDE = VIEWS


def bare(panel: Panel) -> Image.Image:
    return Image.new("RGB", (panel.size[0] * SUPERSAMPLING, panel.size[1] * SUPERSAMPLING), BACKGROUND)


def coloured(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 60) -> np.ndarray:
    """[H, W]: where a picture has nearly that colour."""
    return (np.abs(picture.astype(int) - np.array(colour)) <= tolerance).all(axis=-1)


def mouth_in_mm(take: Take, opening_mm: float) -> Take:
    """The same take with the middles of the inner lips so far apart at every key."""
    points = take.points.copy()
    points[:, 66] = points[:, 62] - [0, opening_mm / 1000, 0]
    return replace(take, points=points)


def tone(path: Path, start_s: float, stop_s: float, duration_s: float) -> Path:
    """Silence but for a tone from a time to a time."""
    time_s = np.arange(round(duration_s * 16000)) / 16000
    sound = 0.3 * np.sin(2 * np.pi * 440 * time_s) * ((start_s <= time_s) & (time_s < stop_s))
    soundfile.write(path, sound, 16000)
    return path


def test_the_front_is_what_the_camera_sees_and_the_side_looks_to_the_left() -> None:
    take = smooth_take(1)
    panel = Panel.of(take, PANEL)
    left_of_picture, right_of_picture, nose_tip, nose_root, chin = take.posed[0, [0, 16, 30, 27, 8]]
    assert panel.place(left_of_picture, FRONT)[0] < panel.place(right_of_picture, FRONT)[0]
    for view in VIEWS:
        assert panel.place(nose_root, view)[1] < panel.place(nose_tip, view)[1] < panel.place(chin, view)[1]
    assert panel.place(nose_tip, SIDE)[0] < panel.place((left_of_picture + right_of_picture) / 2, SIDE)[0]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("seed", range(3))
def test_every_key_fits_into_the_panel_at_the_scale_that_is_stated(view: View, seed: int) -> None:
    take = smooth_take(50, seed=seed)
    panel = Panel.of(take, PANEL)
    at = panel.place(take.posed, view)
    assert (at >= 0).all() and (at <= PANEL).all()
    seen = take.posed @ np.stack([view.right, (0, 1, 0)]).T  # metres across and up
    lengths = np.linalg.norm(np.diff(seen, axis=1), axis=-1)
    np.testing.assert_allclose(np.linalg.norm(np.diff(at, axis=1), axis=-1), lengths * panel.px_per_m, atol=1e-9)


@pytest.mark.parametrize("view", VIEWS)
def test_lips_are_drawn_where_their_points_are(view: View) -> None:
    take = mouth_in_mm(smooth_take(1), 12)
    panel = Panel.of(take, PANEL)
    picture = np.asarray(panel.face(bare(panel), take.posed[0], take.position[0], view))
    rows, columns = np.nonzero(coloured(picture, COLOURS[2]))
    at = panel.place(take.posed[0, LIPS], view)
    assert np.abs(at.min(axis=0) - [columns.min(), rows.min()]).max() < 3  # half a line, rounding
    assert np.abs(at.max(axis=0) - [columns.max(), rows.max()]).max() < 3
    x, y = panel.place(take.posed[0, INNER_LIP].mean(axis=0), FRONT).round().astype(int)
    if view is FRONT:
        assert tuple(picture[y, x]) != BACKGROUND  # the open mouth is filled


def test_what_is_near_covers_what_is_far_which_is_fainter() -> None:
    take = smooth_take(1)
    panel = Panel.of(take, PANEL)
    picture = np.asarray(panel.face(bare(panel), take.posed[0], take.position[0], SIDE)).astype(int)
    brightness = []
    for point in (2, 14):  # on the jaw, far from whoever looks at the person's left, and near
        x, y = panel.place(take.posed[0, point], SIDE).round().astype(int)
        brightness.append(picture[y - 2 : y + 3, x - 2 : x + 3].max())
    assert brightness[0] < 0.7 * brightness[1]


@pytest.mark.parametrize("with_sound", [False, True])
def test_the_curve_is_as_high_as_the_mouth_is_open(with_sound: bool) -> None:
    take = smooth_take(100)
    opening_mm = np.where(np.arange(100) < 50, 2.0, 18.0)
    points = take.points.copy()
    points[:, 66] = points[:, 62] - opening_mm[:, None] / 1000 * [0, 1, 0]
    sound = np.zeros(4 * 16000, np.float32) if with_sound else None
    timeline = Timeline.of(replace(take, points=points), sound, 1120)
    picture = np.asarray(timeline.draw(0, 4))
    for time_s, millimetres in ((1.0, 2.0), (3.0, 18.0)):
        x = round(timeline.x(time_s, 0, 4))
        (rows,) = np.nonzero(coloured(picture[:, x], OPENING))
        assert abs(rows.mean() - timeline.y(millimetres)) < 2
    shown = picture[:, LEFT_PX : 1120 - RIGHT_PX]
    assert coloured(shown, WAVE, 10).any() == with_sound


def test_sound_is_drawn_at_its_time_also_on_later_pages(tmp_path: Path) -> None:
    sound = read_audio(tone(tmp_path / "a.wav", 11.0, 12.5, 16))
    timeline = Timeline.of(smooth_take(400), sound, 1120)
    picture = np.asarray(timeline.draw(10, 20))
    loud = coloured(picture[WAVE_LANE[0] + 10 : WAVE_LANE[0] + 20], WAVE, 10).all(axis=0)
    (columns,) = np.nonzero(loud)
    assert abs(columns.min() - timeline.x(11.0, 10, 20)) <= 2 and abs(columns.max() - timeline.x(12.5, 10, 20)) <= 2
    assert not coloured(np.asarray(timeline.draw(0, 10))[WAVE_LANE[0] + 10 : WAVE_LANE[0] + 20], WAVE, 10).any()


@pytest.mark.parametrize(("n_keys", "fps"), [(26, 25.0), (44, 3.0)])
def test_the_cursor_goes_on_evenly_and_begins_again_on_a_new_page(n_keys: int, fps: float) -> None:
    """26 keys are one page, 44 at three a second two of ten seconds."""
    shown = list(frames(smooth_take(n_keys, fps)))
    assert len(shown) == n_keys and all(frame.shape == (PANEL[1] + BELOW_PX, 2 * PANEL[0], 3) for frame in shown)
    cursors = [
        int(coloured(frame[PANEL[1] + WAVE_LANE[0] + 2], CURSOR, 20).nonzero()[0].mean().round()) for frame in shown
    ]
    page_s = min(10.0, n_keys / fps)
    wanted = LEFT_PX + np.arange(n_keys) / fps % page_s / page_s * (2 * PANEL[0] - LEFT_PX - RIGHT_PX)
    assert np.abs(cursors - wanted).max() <= 1


@pytest.mark.parametrize("n_keys", [1, 2, 9, 300])
def test_a_strip_has_a_mouth_for_each_of_its_keys_in_both_rows(n_keys: int) -> None:
    picture = strip(mouth_in_mm(smooth_take(n_keys), 10))
    lips = coloured(picture[:-BELOW_PX], COLOURS[2])
    for row in np.split(lips, 2):
        _, n_found = label(row, structure=np.ones((3, 3)))
        assert n_found >= min(n_keys, N_COLUMNS)


def test_a_motion_file_becomes_a_video_with_its_sound(tmp_path: Path) -> None:
    take = smooth_take(12, fps=30000 / 1001)
    take.motion().save(tmp_path / "take.npz")
    tone(tmp_path / "take.wav", 0, 1, 0.4)
    out_path = tmp_path / "view.mp4"
    command = [sys.executable, "-m", "common.motion", "view", str(tmp_path / "take.npz"), str(out_path)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "12 keys, 0.40 s with the sound of" in ran.stdout  # of the file beside it
    with VideoReader(out_path) as video:
        seen = list(video)
        assert (len(seen), video.width, video.height) == (12, 2 * PANEL[0], PANEL[1] + BELOW_PX)
        assert video.fps == pytest.approx(30000 / 1001)
    drawn = next(frames(Take.of(take.motion()), read_audio(tmp_path / "take.wav")))
    assert np.abs(seen[0][1].astype(int) - drawn).mean() < 3  # coding
    assert np.abs(read_audio(out_path)).max() > 0.1
    with av.open(str(out_path)) as container:
        assert container.metadata["comment"] == DRAWN


def test_a_motion_file_becomes_a_picture_and_no_other_file_is_touched(tmp_path: Path) -> None:
    take_path, out_path = tmp_path / "take.npz", tmp_path / "deep" / "strip.png"
    smooth_take(5).motion().save(take_path)
    main(["view", str(take_path), str(out_path)])
    assert (read_picture(out_path) == strip(Take.of(smooth_take(5).motion()))).all()
    assert sorted(each.name for each in tmp_path.rglob("*.*")) == ["strip.png", "take.npz"]


@pytest.fixture
def refusals(tmp_path: Path) -> Iterator[Path]:
    smooth_take(3).motion().save(tmp_path / "take.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no motion")
    (tmp_path / "there.png").write_bytes(b"a picture")
    tone(tmp_path / "a.wav", 0, 1, 1)
    yield tmp_path
    assert (tmp_path / "there.png").read_bytes() == b"a picture"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["view"], "TAKE"),
        (["look", "take.npz"], "invalid choice"),
        (["view", "none.npz", "a.png"], "none.npz"),
        (["view", "broken.npz", "a.png"], "not a usable motion file"),
        (["view", "take.npz", "a.gif"], "is not named as"),
        (["view", "take.npz", "there.png"], "--overwrite"),
        (["view", "take.npz", "a.png", "--audio", "none.wav"], "none.wav"),
        (["view", "take.npz", "a.png", "--audio", "broken.npz"], "broken.npz"),
        (["view", "take.npz", "take.npz", "--overwrite"], "take.npz"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_sentence(
    refusals: Path, arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(refusals)
    with pytest.raises(InputError, match=reason):
        main(arguments)
    assert not (refusals / "a.png").exists()
