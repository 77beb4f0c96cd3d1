"""The main job from its command line: what it writes, what it says, and how it refuses."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

import generate
from common.errors import InputError
from common.media import VideoReader, read_audio
from common.motion import Motion

ROOT = Path(__file__).parents[1]
SPEECH, PORTRAIT = ROOT / "examples" / "speech.wav", ROOT / "examples" / "portrait.jpg"


def run(*flags: Any) -> tuple[int, str]:
    """generate.py in this process → exit code; what it said is captured by pytest."""
    before = sys.argv
    sys.argv = ["generate.py", *map(str, flags)]
    try:
        generate.main()
        return 0, ""
    except SystemExit as stop:
        return int(stop.code or 0), ""
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.3 s of the example's speech, stereo at 44.1 kHz."""
    path = tmp_path_factory.mktemp("sound") / "short.flac"
    speech = read_audio(SPEECH, 44_100)[22_050 : 22_050 + 57_330]
    soundfile.write(path, np.stack([speech, speech], axis=1), 44_100)
    return path


@pytest.fixture(scope="module")
def made(short: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "new" / "talk.mp4"
    assert run("--audio", short, "--image", PORTRAIT, "--out", path, "--seed", 3)[0] == 0
    return path


def frames(path: Path) -> np.ndarray:
    with VideoReader(path) as video:
        return np.stack([frame for _, frame in video])


def test_the_video_is_what_the_readme_promises(made: Path) -> None:
    with av.open(str(made)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height, video.average_rate) == (256, 256, 25)
        assert audio.codec_context.name == "aac"
        assert "generated" in " ".join(container.metadata.values()).lower()
    assert abs(len(frames(made)) / 25 - 1.3) <= 1 / 25
    assert abs(len(read_audio(made)) / 16_000 - 1.3) <= 1 / 25
    assert [path.name for path in made.parent.iterdir()] == ["talk.mp4"]  # nothing temporary is left


def test_the_face_moves_and_the_frame_does_not_jump(made: Path) -> None:
    shown = frames(made).astype(np.int16)
    steps = np.abs(np.diff(shown, axis=0)).mean(axis=(1, 2, 3))
    assert 0.05 < steps.max() < 12


def test_the_same_seed_gives_the_same_frames_and_another_others(made: Path, short: Path, tmp_path: Path) -> None:
    for seed, same in ((3, True), (4, False)):
        path = tmp_path / f"{seed}.mp4"
        assert run("--audio", short, "--image", PORTRAIT, "--out", path, f"seed={seed}")[0] == 0
        assert np.array_equal(frames(path), frames(made)) == same


def test_motion_only_and_motion_are_the_two_halves(made: Path, short: Path, tmp_path: Path) -> None:
    motion_path, video_path = tmp_path / "m.npz", tmp_path / "v.mp4"
    assert run("--audio", short, "--image", PORTRAIT, "--motion-only", motion_path, "--seed", 3)[0] == 0
    assert Motion.load(motion_path).n_frames == len(frames(made))
    assert run("--motion", motion_path, "--audio", short, "--image", PORTRAIT, "--out", video_path)[0] == 0
    assert np.array_equal(frames(video_path), frames(made))


def test_still_pose_keeps_the_background_still(short: Path, tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    assert run("--audio", short, "--image", PORTRAIT, "--out", path, "--pose", "still", "crf=4")[0] == 0
    shown = frames(path).astype(np.int16)
    border = np.abs(shown - shown[:1])[:, :24].mean()
    assert border < 1.0


def test_silence_warns_and_keeps_the_mouth_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000, np.float32), 16_000)
    motion_path = tmp_path / "m.npz"
    assert run("--audio", tmp_path / "silence.wav", "--image", PORTRAIT, "--motion-only", motion_path)[0] == 0
    assert "silent" in capsys.readouterr().err
    motion = Motion.load(motion_path)
    points = motion.mean_landmarks + motion.landmarks
    gap = (points[:, 62] - points[:, 66]).norm(dim=-1) / (points[:, 36] - points[:, 45]).norm(dim=-1)
    assert gap[5:].max() < 0.02


def picture_without_face(folder: Path) -> Path:
    Image.new("RGB", (200, 150), (90, 140, 60)).save(folder / "meadow.png")
    return folder / "meadow.png"


def test_bad_input_is_one_sentence_and_leaves_nothing(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, cut, empty, existing = (tmp_path / name for name in ("notes.wav", "cut.wav", "empty.wav", "there.mp4"))
    text.write_text("not a sound at all, only words " * 40)
    cut.write_bytes(SPEECH.read_bytes()[:5000])
    soundfile.write(empty, np.zeros(0, np.float32), 16_000)
    existing.write_text("mine")
    bad_motion = tmp_path / "bad.npz"
    np.savez(bad_motion, landmarks=np.zeros((2, 3)))
    meadow, out = picture_without_face(tmp_path), tmp_path / "out" / "o.mp4"
    good: list[Any] = ["--audio", short, "--image", PORTRAIT]
    cases: list[tuple[list[Any], str]] = [
        (["--audio", tmp_path / "missing.wav", "--image", PORTRAIT], "missing.wav"),
        (["--audio", short, "--image", tmp_path / "missing.jpg"], "missing.jpg"),
        (["--audio", text, "--image", PORTRAIT], "notes.wav"),
        (["--audio", cut, "--image", PORTRAIT], "cut.wav"),
        (["--audio", empty, "--image", PORTRAIT], "empty.wav"),
        (["--audio", short, "--image", text], "notes.wav"),
        (["--audio", short, "--image", meadow], "meadow.png"),
        ([*good, "--face-index", 7], "--face-index"),
        ([*good, "--face-box", "1,2,3"], "--face-box"),
        ([*good, "--device", "tpu"], "tpu"),
        ([*good, "--motion", bad_motion], "bad.npz"),
        ([*good, "--renderer", "mcvdm"], "warp"),
        ([*good, "--steps", 0], "step"),
        ([*good, "sede=3"], "sede"),
        ([*good, "nonsense"], "nonsense"),
        ([*good, "--pose", "wild"], "wild"),
        ([*good, "a2m.weights=/nowhere/at/all"], "nowhere"),
        (["--image", PORTRAIT], "--audio"),
        (["--audio", short], "--image"),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    for flags, word in cases:
        assert run(*flags, "--out", out)[0] == 2, flags
        said = capsys.readouterr().err
        last = said.strip().splitlines()[-1]
        assert last.startswith("error: ") and word in last and "Traceback" not in said, (flags, said)
    assert run(*good, "--out", existing)[0] == 2
    assert existing.read_text() == "mine"
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != "out")
    assert left == before and not list(tmp_path.glob("out/*"))


def test_flags_win_over_overrides_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    args, overrides = generate.parse(["--audio", "a", "--seed", "3", "--image", "b", "seed=5", "crf=30"])
    config = generate.compose(args, overrides)
    assert (config.seed, config.crf) == (3, 30)
    assert "seed=5" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["seed=many", "crf=[1]", "m2v=unheard", "a2m.nonsense=1", "=3", "seed=${"])
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(InputError):
        generate.compose(*generate.parse(["--audio", "a", "--image", "b", override]))


def test_it_runs_as_a_program_from_another_folder(short: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "generate.py"),
        "--audio",
        str(short),
        "--image",
        str(PORTRAIT),
        "--out",
        "x.mp4",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "x.mp4" in done.stdout and (tmp_path / "x.mp4").exists()
