"""generate.py --export: a performance without a video, with or without a picture; edited takes back as a video."""

from pathlib import Path

import numpy as np
import pytest

from common.export import formats
from common.media import VideoReader
from common.motion import Motion
from tests.test_generate import PORTRAIT, SPEECH, run, short  # noqa: F401


@pytest.fixture(scope="module")
def folder(short: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Sound and picture as a Motion, and the same run's other files."""
    made = tmp_path_factory.mktemp("made")
    files = [made / name for name in ("take.glb", "take.c3d", "take.csv", "take.json")]
    assert run("--audio", short, "--image", PORTRAIT, "--export", *files, "--motion-only", made / "take.npz") == 0
    return made


def test_sound_alone_is_enough_for_a_performance(short: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "seed=4"
    assert run("--audio", short, "--export", folder / "a.npz", "seed=3", "--fps", 50) == 0
    made = Motion.load(folder / "a.npz")
    assert (made.fps, made.provenance["seed"]) == (50, 3)
    assert (made.rest.landmarks == 0).all()  # the face model's mean face speaks
    assert sorted(path.name for path in folder.iterdir()) == ["a.npz", "a.wav"]


@pytest.mark.parametrize("name", ["take.glb", "take.c3d", "take.csv", "take.json"])
def test_a_take_comes_back_and_renders_as_the_motion_does(folder: Path, tmp_path: Path, name: str) -> None:
    shown = []
    for given in ("take.npz", name):
        out = tmp_path / f"{Path(given).suffix[1:]}.mp4"
        flags = ("--image", PORTRAIT, "--renderer", "warp", "--out", out, "crf=0")
        assert run("--motion", folder / given, *flags) == 0
        with VideoReader(out) as video:
            shown.append(np.stack([frame for _, frame in video]).astype(int))
    assert np.abs(shown[0] - shown[1]).mean() < 0.05


def test_an_edit_is_seen_in_the_file_that_comes_back(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "take.csv").read_text(encoding="utf-8").splitlines()
    names = next(line for line in lines if not line.startswith("#")).split(",")
    (chin,) = [number for number, name in enumerate(names) if name.startswith("frontal_jaw_08_y")]
    edited = [line if line.startswith(("#", "frame")) else _lowered(line, chin) for line in lines]
    (tmp_path / "edited.csv").write_text("\n".join(edited), encoding="utf-8")
    before, after = (formats.read(path).landmarks for path in (folder / "take.csv", tmp_path / "edited.csv"))
    moved = (after - before).abs().amax(dim=(0, 2))
    assert moved.argmax() == 8
    np.testing.assert_allclose(moved[8], 0.1, atol=1e-5)  # a centimetre in decimetres
    assert moved.sort().values[-2] < 1e-6


def _lowered(line: str, column: int) -> str:
    cells = line.split(",")
    cells[column] = f"{float(cells[column]) - 0.01:.9f}"
    return ",".join(cells)


def test_a_motion_made_earlier_is_exported_without_a_picture(folder: Path, tmp_path: Path) -> None:
    assert run("--motion", folder / "take.npz", "--export", tmp_path / "again.json") == 0
    same, again = Motion.load(folder / "take.npz"), formats.read(tmp_path / "again.json")
    np.testing.assert_allclose(again.posed(), same.posed(), atol=1e-3)


def test_a_video_is_made_too_where_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    flags = ("--motion", folder / "take.npz", "--image", PORTRAIT, "--renderer", "warp")
    assert run(*flags, "--out", tmp_path / "v.mp4", "--export", tmp_path / "v.bvh") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.bvh", "v.mp4"]


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--export", "a.glb"], "Give a recording"),
        (["--audio", "a.wav", "--out", "a.mp4", "--export", "a.glb"], "Give a picture"),
        (["--audio", "a.wav", "--image", "b.png", "--fps", "30"], "are of --export"),
        (["--audio", "a.wav", "--export", "a.glb", "--debug-dir", "d"], "leave out"),
        (["--audio", "a.wav", "--export", "a.glb", "--renderer", "warp"], "are of the video"),
        (["--audio", "a.wav", "--motion-only", "a.npz", "--size", "512"], "are of the video"),
        (["--audio", "a.wav", "--export", "seed=3"], "names no file"),
        (["--audio", SPEECH, "--image", PORTRAIT, "--export", "a.npz", "--motion-only", "./a.npz"], "its own name"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    capsys: pytest.CaptureFixture[str], flags: list[str], reason: str
) -> None:
    assert run(*flags) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
