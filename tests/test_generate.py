"""The main job from its command line: what it writes, what it says, and how it refuses."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import generate
from a2m import control
from common import playback, request
from common.errors import InputError
from common.face import conventions, detect
from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.face.track import track
from common.media import VideoReader, VideoWriter, read_audio, read_picture, write_picture
from common.motion import Motion
from m2v.preview import WarpRenderer
from m2v.source import Still, as_picture
from tests.programs import exit_code

ROOT = Path(__file__).parents[1]
SPEECH, PORTRAIT = ROOT / "examples" / "speech.wav", ROOT / "examples" / "portrait.jpg"


def run(*flags: Any) -> int:
    """generate.py in this process → exit code."""
    return exit_code(generate.main, *flags)


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
    assert run("--audio", short, "--image", PORTRAIT, "--out", path, "--seed", 3) == 0
    return path


def portrait_landmarks() -> np.ndarray:
    return detect.find_faces(read_picture(PORTRAIT))[0].landmarks


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
        assert run("--audio", short, "--image", PORTRAIT, "--out", path, f"seed={seed}") == 0
        assert np.array_equal(frames(path), frames(made)) == same


def test_motion_only_and_motion_are_the_two_halves(made: Path, short: Path, tmp_path: Path) -> None:
    motion_path, video_path = tmp_path / "m.npz", tmp_path / "v.mp4"
    assert run("--audio", short, "--image", PORTRAIT, "--motion-only", motion_path, "--seed", 3) == 0
    assert Motion.load(motion_path).n_frames == len(frames(made))
    flags = ("--motion", motion_path, "--audio", short, "--image", PORTRAIT, "--out", video_path, "--seed", 3)
    assert run(*flags) == 0
    assert np.array_equal(frames(video_path), frames(made))


def test_still_pose_keeps_the_background_still(short: Path, tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    assert run("--audio", short, "--image", PORTRAIT, "--out", path, "--pose", "still", "crf=4") == 0
    shown = frames(path).astype(np.int16)
    border = np.abs(shown - shown[:1])[:, :24].mean()
    assert border < 1.0


@pytest.mark.parametrize("level", [0.0, 0.02])
def test_silence_and_hiss_warn_and_keep_the_mouth_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, level: float
) -> None:
    hiss = level * np.random.default_rng(0).standard_normal(32_000)
    soundfile.write(tmp_path / "silence.wav", hiss, 16_000)
    motion_path = tmp_path / "m.npz"
    assert run("--audio", tmp_path / "silence.wav", "--image", PORTRAIT, "--motion-only", motion_path) == 0
    assert "silent" in caplog.text
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
    cut_picture, sideways = tmp_path / "cut.jpg", tmp_path / "sideways.png"
    cut_picture.write_bytes(PORTRAIT.read_bytes()[:20_000])
    Image.open(PORTRAIT).rotate(-90, expand=True).save(sideways)
    elsewhere = tmp_path / "elsewhere.txt"
    np.savetxt(elsewhere, np.random.default_rng(0).uniform(3000, 3100, (68, 2)))
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
        (["--audio", short, "--image", cut_picture], "cut.jpg"),
        (["--audio", short, "--image", sideways], "turned by 90"),
        ([*good, "--face-index", 7], "--face-index"),
        ([*good, "--face-box", "1,2,3"], "--face-box"),
        ([*good, "--landmarks", elsewhere], "elsewhere.txt"),
        ([*good, "--device", "tpu"], "tpu"),
        ([*good, "--motion", bad_motion, "--pose", "still"], "--pose"),
        ([*good, "--motion-only", tmp_path / "m.npz"], "--out"),
        ([*good, "--motion", bad_motion], "bad.npz"),
        ([*good, "m2v.denoiser=/nowhere/else"], "nowhere"),
        ([*good, "m2v.name=oil"], "oil"),
        ([*good, "--steps", 0], "step"),
        ([*good, "sede=3"], "sede"),
        ([*good, "nonsense"], "nonsense"),
        ([*good, "--pose", "wild"], "wild"),
        ([*good, "a2m.weights=/nowhere/at/all"], "nowhere"),
        (["--image", PORTRAIT], "--audio"),
        (["--audio", short], "--image"),
        ([*good, "--video", PORTRAIT], "--video"),
        (["--audio", short, "--video", tmp_path / "missing.mp4"], "missing.mp4"),
        (["--audio", short, "--video", PORTRAIT, "--pose", "still"], "--pose"),
        ([*good, "--pose", text], "notes.wav"),
        ([*good, "--pose", tmp_path / "missing.mp4"], "missing.mp4"),
        ([*good, "--pose-end", "hold"], "--pose-end"),
        ([*good, "--framing", "wide"], "wide"),
        ([*good, "framing=wide"], "wide"),
        ([*good, "--size", 300], "--size"),
        ([*good, "size=300"], "300"),
        ([*good, "--size", 512, "--framing", "full"], "--framing crop"),
        (["--audio", short, "--video", PORTRAIT, "--size", 512], "--framing crop"),
        ([*good, "--detector", "magic"], "magic"),
        ([*good, "--debug-dir", text], "notes.wav"),
        ([*good, "--debug-dir", tmp_path], "--overwrite"),
        ([*good, "debug_frame=-1"], "debug_frame"),
        ([*good, "debug_frame=1"], "--debug-dir"),
        ([*good, "--debug-dir", tmp_path / ("long" * 100)], "can't be written"),
    ]
    before = sorted(path.name for path in tmp_path.iterdir())
    for flags, word in cases:
        assert run(*flags, "--out", out) == 2, flags
        said = capsys.readouterr().err
        last = said.strip().splitlines()[-1]
        assert last.startswith("error: ") and word in last and "Traceback" not in said, (flags, said)
    assert run(*good, "--out", existing) == 2 and run(*good, "--out", tmp_path / "x.avi") == 2
    assert existing.read_text() == "mine"
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != "out")
    assert left == before and not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("renderer", ["mcvdm", "warp"])
def test_pictures_of_how_a_frame_was_made_lie_where_asked(short: Path, tmp_path: Path, renderer: str) -> None:
    flags = ["--audio", short, "--image", PORTRAIT, "--renderer", renderer, "m2v.steps=2", "--out", tmp_path / "o.mp4"]
    folder = tmp_path / "not" / "there"
    assert run(*flags, "--debug-dir", folder, "debug_frame=9") == 0
    assert "frame 9" in (folder / "index.html").read_text()
    assert (folder / "step_2_frame.png").exists() == (renderer == "mcvdm")
    assert read_picture(folder / "warped.png").shape == (256, 256, 3)
    assert run(*flags, "--overwrite", "--debug-dir", folder, "debug_frame=5000") == 2
    assert run(*flags, "--overwrite", "--debug-dir", folder) == 0


def test_flags_win_over_overrides_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    args, overrides = request.parse(["--audio", "a", "--seed", "3", "--image", "b", "seed=5", "crf=30"])
    config = request.compose(args, overrides)
    assert (config.seed, config.crf) == (3, 30)
    assert "seed=5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override",
    [
        "seed=many",
        "crf=[1]",
        "crf=99",
        "seed=-1",
        "m2v=unheard",
        "m2v=null",
        "a2m.nonsense=1",
        "=3",
        "+sede=3",
        "~a2m",
        "seed=${",
    ],
)
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(InputError):
        request.compose(*request.parse(["--audio", "a", "--image", "b", override]))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--blink", "often"], "every 4s"),
        (["--blink", "every 0.2s"], "1 to 60"),
        (["--blink", "every -3s"], "every 4s"),
        (["--mouth-scale", "-1"], "0 to 3"),
        (["--head-scale", "nan"], "0 to 3"),
        (["--pose", "still", "--head-scale", "0.5"], "nothing to scale"),
        (["pose=still", "expression_scale=2"], "nothing to scale"),
        (["a2m.temperature=-1"], "0 to 2"),
    ],
)
def test_controls_that_make_no_sense_are_refused(flags: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        request.compose(*request.parse(["--audio", "a", "--image", "b", *flags]))


def test_controls_go_with_stage_one_and_with_what_it_makes(walk: Path) -> None:
    for flags in (
        ["--motion", "m.npz", "--image", "b", "--mouth-scale", "0.5"],
        ["--motion", "m.npz", "--image", "b", "blink=off"],
        ["--audio", "a", "--video", str(walk), "--blink", "off"],
        ["--audio", "a", "--image", "b", "--pose", str(walk), "--head-scale", "0.5"],
    ):
        with pytest.raises(InputError, match="leave"):
            request.compose(*request.parse(flags))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--keep", "3"], "both"),
        (["--keyframes", "m.npz"], "both"),
        (["--keyframes", "m.npz", "--keep", "3", "--motion", "n.npz"], "as it is"),
        (["--keyframes", "m.npz", "--keep", "3", "--video", "v.mp4"], "--image"),
    ],
)
def test_keyframes_come_with_the_frames_to_keep(flags: list[str], reason: str) -> None:
    person = [] if "--video" in flags else ["--image", "b"]
    with pytest.raises(InputError, match=reason):
        request.parse(["--audio", "a", *person, *flags])


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-3", "1,,2", "1.5", "0-999999999", "0-99999999999999999999"])
def test_frames_to_keep_are_numbers_and_spans(text: str) -> None:
    with pytest.raises(InputError, match="0,10-20"):
        request.frame_numbers(text)
    assert request.frame_numbers("0, 10-12,7") == [0, 10, 11, 12, 7]


def test_an_edited_motion_goes_in_and_its_frames_come_out(short: Path, tmp_path: Path) -> None:
    first, edited, second = (tmp_path / f"{name}.npz" for name in ("first", "edited", "second"))
    flags = ("--audio", short, "--image", PORTRAIT, "--motion-only")
    assert run(*flags, first) == 0
    motion = Motion.load(first)
    replace(motion, landmarks=motion.landmarks * 1.2).save(edited)
    assert run(*flags, second, "--keyframes", edited, "--keep", "5,20-22", "--seed", 8) == 0
    for frame in (5, 20, 21, 22):
        assert torch.equal(Motion.load(second).landmarks[frame], Motion.load(edited).landmarks[frame])
    assert run(*flags, tmp_path / "x.npz", "--keyframes", edited, "--keep", "5000") == 2
    assert run(*flags, edited, "--keyframes", edited, "--keep", "5", "--overwrite") == 2  # an input


@pytest.mark.parametrize(
    ("text", "meant"), [(None, None), ("auto", "auto"), ("off", "off"), ("every 4s", 4.0), ("every 2.5 s", 2.5)]
)
def test_blinks_are_asked_for_in_words_by_flag_and_override(text: str | None, meant: str | float | None) -> None:
    asked = [[], []] if text is None else [["--blink", text], [f"blink={text}"]]
    for flags in asked:
        config = request.compose(*request.parse(["--audio", "a", "--image", "b", *flags]))
        assert request.blink_of(config.blink) == meant


def test_the_renderer_flag_wins_over_any_way_to_say_it() -> None:
    for override in ("m2v=mcvdm", "m2v.name=mcvdm"):
        args, overrides = request.parse(["--audio", "a", "--image", "b", "--renderer", "warp", override])
        assert request.compose(args, overrides).m2v.name == "warp"


def two_faces(folder: Path) -> Path:
    """The portrait, and a smaller one to its right."""
    picture = Image.open(PORTRAIT)
    canvas = Image.new("RGB", (picture.width * 2, picture.height), (90, 90, 90))
    canvas.paste(picture, (0, 0))
    canvas.paste(picture.resize((picture.width * 2 // 3, picture.height * 2 // 3)), (picture.width, 0))
    canvas.save(folder / "two.png")
    return folder / "two.png"


def test_of_several_faces_the_largest_is_used_and_any_can_be_chosen(
    short: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    motions = []
    box = "110,70,260,230"  # around the left, larger one
    choices: list[list[Any]] = [[], ["--face-index", 1], ["--face-box", box]]
    for k, flags in enumerate(choices):
        path = tmp_path / f"{k}.npz"
        caplog.clear()
        assert (
            run("--audio", short, "--image", two_faces(tmp_path), "--motion-only", path, "--pose", "still", *flags) == 0
        )
        assert ("2 faces" in caplog.text) == (k == 0)
        motions.append(Motion.load(path))
    scales = [float(motion.pose.scale[0]) for motion in motions]
    # Every face is cut to the same size, so they are told apart by what stands around them: the shapes agree.
    assert np.allclose(scales, scales[0], rtol=0.1)
    assert (motions[0].posed() - motions[2].posed())[0, :, :2].abs().mean() < 2


def test_landmarks_of_ones_own_take_the_place_of_detection(short: Path, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "mine.txt", portrait_landmarks()[:, :2])
    flags = ["--audio", short, "--image", PORTRAIT, "--landmarks", tmp_path / "mine.txt", "--out", tmp_path / "o.mp4"]
    assert run(*flags) == 0 and run(*flags) == 2 and run(*flags, "--overwrite") == 0


def test_landmarks_of_another_convention_are_mapped(short: Path, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "mine.txt", portrait_landmarks()[:, :2])
    motions = {}
    for convention in conventions.CONVENTIONS:
        path = tmp_path / f"{convention}.npz"
        flags = ["--audio", short, "--image", PORTRAIT, "--landmarks", tmp_path / "mine.txt", "--motion-only", path]
        assert run(*flags, "--convention", convention) == 0
        motions[convention] = Motion.load(path).rest.landmarks
    moved = (motions["ibug68"] - motions["facemesh68"]).norm(dim=-1)
    assert 0.01 < moved.mean() < 0.5


def test_the_choices_of_the_flags_are_those_of_the_library() -> None:
    """They are written out in common/request.py, which must not wait for torch."""
    assert request.DETECTORS == detect.BACK_ENDS
    assert request.CONVENTIONS == conventions.CONVENTIONS
    assert get_args(playback.End) == request.POSE_ENDS
    assert (control.MOST_SCALE, control.BLINK_EVERY_S) == (request.MOST_SCALE, request.BLINK_EVERY_S)


def test_of_several_pictures_the_one_with_the_mouth_closed_is_used(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = ReferencePicture.of(read_picture(PORTRAIT), portrait_landmarks(), FaceModel.builtin())
    opened = reference.landmarks.clone()
    opened[[6, 7, 8, 9, 10, *range(55, 60), 65, 66, 67], 1] += 12
    write_picture(tmp_path / "open.png", as_picture(next(WarpRenderer(Still(reference)).render(opened[None]))))
    path = tmp_path / "m.npz"
    assert run("--audio", short, "--image", tmp_path / "open.png", PORTRAIT, "--motion-only", path) == 0
    assert "portrait.jpg comes first" in capsys.readouterr().err


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 0.5 s at 23.976 frames/s, with sides that H.264 bears: the portrait moves to the right."""
    picture = Image.open(PORTRAIT).convert("RGB").crop((0, 0, 400, 360))
    path = tmp_path_factory.mktemp("walk") / "walk.mp4"
    with VideoWriter(path, 320, 360, fps=Fraction(24000, 1001)) as writer:
        for k in range(12):
            writer.write(np.asarray(picture.crop((60 - 3 * k, 0, 380 - 3 * k, 360))))
    return path


def test_a_driving_video_may_have_any_name(walk: Path, tmp_path: Path) -> None:
    for name in ("a b/back\\slash.mp4", "it's.mp4", "d$x${y}.mp4", "a=b,c[1].mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(walk.read_bytes())
        args, overrides = request.parse(["--audio", "a", "--image", "b", "--pose", str(path)])
        assert request.compose(args, overrides).pose == str(path)


def test_what_overrides_say_is_checked_like_flags(walk: Path, short: Path) -> None:
    for flags in (
        ["--audio", "a", "--video", str(walk), f"pose={walk}"],
        ["--motion", "m.npz", "--image", "b", f"pose={walk}"],
        ["--audio", "a", "--image", "b", "convention=ibug68"],
        ["--audio", "a", "--image", "b", "--pose-end", "hold", "pose=still"],
    ):
        with pytest.raises(InputError):
            request.compose(*request.parse(flags))
    args, overrides = request.parse(["--audio", str(short), "--image", "b", "--out", str(walk), f"pose={walk}"])
    with pytest.raises(InputError, match="is an input"):
        request.results(args, request.compose(args, overrides))


@pytest.mark.parametrize("renderer", ["mcvdm", "warp"])
def test_the_whole_picture_is_given_back_in_its_own_size(short: Path, tmp_path: Path, renderer: str) -> None:
    odd = tmp_path / "odd.png"
    Image.open(PORTRAIT).resize((501, 745)).save(odd)
    out = tmp_path / "o.mp4"
    flags = ["--audio", short, "--image", odd, "--framing", "full", "--renderer", renderer, "crf=0", "--out", out]
    assert run(*flags) == 0
    shown = frames(out).astype(int)
    assert shown.shape[1:3] == (744, 500)  # H.264 has no odd sides
    assert np.abs(shown - shown[:1])[:, 500:].max() <= 2  # the hands don't move
    assert np.abs(shown - shown[:1])[:, 150:350].max() > 30  # the face does
    assert np.abs(shown[0] - read_picture(odd)[:744, :500]).mean() < 3


@pytest.mark.parametrize(("renderer", "zoom"), [("mcvdm", 2), ("warp", 2), ("warp", 0.5)])
def test_the_crop_is_enlarged_with_what_the_picture_has(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], renderer: str, zoom: float
) -> None:
    shown, picture = {}, tmp_path / "large.png"
    portrait = Image.open(PORTRAIT)
    portrait.resize((round(zoom * portrait.width), round(zoom * portrait.height))).save(picture)
    for size in (256, 512):
        out = tmp_path / f"{size}.mp4"
        flags = ["--audio", short, "--image", picture, "--renderer", renderer, "--out", out, "--size", size]
        assert run(*flags, "crf=0", "m2v.steps=0") == 0
        said = capsys.readouterr().err
        assert ("enlarged" in said) == (size == 512) and ("nothing finer" in said) == (size == 512 and zoom < 1)
        shown[size] = frames(out).astype(np.float32)
    assert shown[512].shape[1:] == (512, 512, 3) and len(shown[512]) == len(shown[256])
    halved = shown[512].reshape(-1, 256, 2, 256, 2, 3).mean(axis=(2, 4))
    assert np.abs(halved - shown[256]).mean() < 3


def test_the_crop_of_a_dubbed_video_is_enlarged(walk: Path, short: Path, tmp_path: Path) -> None:
    flags = ["--audio", short, "--video", walk, "--renderer", "warp", "--framing", "crop", "--size", 512]
    assert run(*flags, "--out", tmp_path / "o.mp4") == 0
    shown = frames(tmp_path / "o.mp4")
    assert shown.shape[1:] == (512, 512, 3) and abs(len(shown) / (24000 / 1001) - 1.3) < 0.05


def test_a_video_is_dubbed_and_keeps_its_rate_and_its_head(walk: Path, short: Path, tmp_path: Path) -> None:
    out, motion_path = tmp_path / "o.mp4", tmp_path / "m.npz"
    assert run("--audio", short, "--video", walk, "--renderer", "warp", "--out", out) == 0
    with VideoReader(out) as video:
        assert (video.fps, video.width, video.height) == (Fraction(24000, 1001), 320, 360)
    with av.open(str(out)) as container:
        assert all("generated" in container.metadata[key] for key in ("comment", "description"))
        assert "picture" not in container.metadata["comment"]  # a video was dubbed
    shown, given = frames(out).astype(int), frames(walk).astype(int)
    assert abs(len(shown) / (24000 / 1001) - 1.3) < 0.05
    there_and_back = [*range(12), *range(10, -1, -1), *range(1, 12)]
    for k in (0, 5, 11, 13, 22, 30):
        assert np.abs(shown[k] - given[there_and_back[k]])[:60].mean() < 4  # what lies above the face
    assert run("--audio", short, "--video", walk, "--pose-end", "hold", "--motion-only", motion_path) == 0
    pose = Motion.load(motion_path).pose
    assert (pose.translation[11:] == pose.translation[11]).all()
    assert pose.translation[11, 0] - pose.translation[0, 0] > 25


def test_the_head_of_a_driving_video_is_followed(walk: Path, short: Path, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.npz" for name in ("video", "natural")}
    assert run("--audio", short, "--image", PORTRAIT, "--pose", walk, "--motion-only", paths["video"]) == 0
    assert run("--audio", short, "--image", PORTRAIT, "--motion-only", paths["natural"]) == 0
    followed, natural = (Motion.load(path) for path in paths.values())
    assert torch.equal(followed.landmarks, natural.landmarks)  # mouth and lids don't change
    across = followed.pose.translation[:, 0]
    assert across.max() - across.min() > 20 and int(across.argmax()) in range(10, 14)


def test_a_tracked_motion_moves_another_picture(walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track(walk).save(tmp_path / "m.npz")
    flags = ["--motion", tmp_path / "m.npz", "--image", PORTRAIT, "--renderer", "warp", "--out", tmp_path / "o.mp4"]
    assert run(*flags) == 0
    assert "another person's" in capsys.readouterr().err
    assert len(frames(tmp_path / "o.mp4")) == 12


def test_a_motion_of_another_length_than_its_sound_is_rendered_with_a_note(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    motion_path = tmp_path / "m.npz"
    assert run("--audio", short, "--image", PORTRAIT, "--motion-only", motion_path) == 0
    Motion.load(motion_path).slice(0, 10).save(tmp_path / "short.npz")
    flags = ["--audio", short, "--image", PORTRAIT, "--motion", tmp_path / "short.npz", "--out", tmp_path / "o.mp4"]
    assert run(*flags) == 0 and "0.40 s" in capsys.readouterr().err
    assert len(frames(tmp_path / "o.mp4")) == 10


def test_a_motion_of_another_face_model_is_refused(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    motion_path = tmp_path / "m.npz"
    assert run("--audio", short, "--image", PORTRAIT, "--motion-only", motion_path) == 0
    replace(Motion.load(motion_path), model="flame").save(tmp_path / "flame.npz")
    assert run("--image", PORTRAIT, "--motion", tmp_path / "flame.npz", "--out", tmp_path / "o.mp4") == 2
    assert "flame" in capsys.readouterr().err


def test_without_a_picture_the_mean_face_speaks(short: Path, tmp_path: Path) -> None:
    assert run("--audio", short, "--motion-only", tmp_path / "m.npz") == 0
    motion = Motion.load(tmp_path / "m.npz")
    assert motion.n_frames == 33 and motion.reference is not None and not motion.reference.landmarks.any()


def test_an_input_is_never_overwritten(
    short: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = tmp_path / "mine.mp4"
    recording.write_bytes(made.read_bytes())
    assert run("--audio", recording, "--image", PORTRAIT, "--out", recording, "--overwrite") == 2
    assert "input" in capsys.readouterr().err and recording.read_bytes() == made.read_bytes()
    picture = tmp_path / "reference.png"
    picture.write_bytes(PORTRAIT.read_bytes())
    folder = ["--debug-dir", tmp_path, "--overwrite"]
    assert run("--audio", short, "--image", picture, "--out", tmp_path / "o.mp4", *folder) == 2
    assert "input" in capsys.readouterr().err and picture.read_bytes() == PORTRAIT.read_bytes()


def test_an_existing_result_is_one_plain_sentence(short: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--audio", short, "--image", PORTRAIT, "--out", made) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"error: {made} exists already: choose another name, or allow it with --overwrite."


def test_a_terminated_run_leaves_nothing(tmp_path: Path) -> None:
    sound = tmp_path / "long.wav"
    soundfile.write(sound, np.resize(read_audio(SPEECH), 16_000 * 300), 16_000)
    command = [sys.executable, str(ROOT / "generate.py"), "--audio", str(sound), "--image", str(PORTRAIT)]
    with subprocess.Popen([*command, "--out", str(tmp_path / "o.mp4")], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "stage two" in line:
                break
        process.terminate()
        process.stderr.read()
        assert process.wait(60) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


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
