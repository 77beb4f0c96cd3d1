"""Files of a take as a user asks for them: all or none, the sound beside them, and back again."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.errors import InputError
from common.export import __main__ as program
from common.export import formats
from common.export.take import Take
from common.motion import Motion
from tests.common.export.takes import smooth_take
from tests.programs import exit_code

NAMES = ("take.glb", "take.usda", "take.usdc", "take.c3d", "take.csv", "take.json", "take.npz", "take.bvh")
BACK = [name for name in NAMES if Path(name).suffix in formats.READ]


def run(*words: object) -> int:
    """`python -m common.export` in this process → exit code."""
    return exit_code(program.main, *words)


@pytest.fixture(scope="module")
def motion() -> Motion:
    return smooth_take(30).motion()


@pytest.fixture(scope="module")
def exported(motion: Motion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    motion.save(folder / "made.npz")
    tone = np.sin(np.arange(44_100) / 10)
    soundfile.write(folder / "voice.flac", np.stack([tone, tone / 2], axis=1), 44_100)
    made = [folder / name for name in NAMES]
    assert run("convert", folder / "made.npz", *made, "--audio", folder / "voice.flac") == 0
    return folder


def test_every_format_is_written_with_the_sound_beside_it(exported: Path) -> None:
    assert all((exported / name).stat().st_size for name in NAMES)
    sound, rate = soundfile.read(exported / "take.wav")
    assert rate == 44_100
    np.testing.assert_allclose(sound, soundfile.read(exported / "voice.flac")[0], atol=2**-15)


@pytest.mark.parametrize("name", BACK)
def test_what_can_be_read_is_the_same_performance(exported: Path, motion: Motion, name: str) -> None:
    back = formats.read(exported / name)
    assert back.fps == motion.fps
    # 0.02 mm of a head of 911 pixels per metre are a fiftieth of a pixel.
    np.testing.assert_allclose(back.posed()[..., :2], motion.posed()[..., :2], atol=0.03)
    np.testing.assert_allclose(back.landmarks, motion.landmarks, atol=2e-4)


def test_a_rate_is_what_the_files_have(exported: Path, tmp_path: Path) -> None:
    assert run("convert", exported / "made.npz", tmp_path / "a.csv", tmp_path / "a.npz", "--fps", "29.97") == 0
    for name in ("a.csv", "a.npz"):
        back = formats.read(tmp_path / name)
        assert back.fps == pytest.approx(30000 / 1001)
        assert back.n_frames == 35  # keys from 0 to at most the last of 30 at 25


def test_a_face_model_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nobody\.mat is missing, which .* needs"):
        formats.request([tmp_path / "a.glb"], face_model=str(tmp_path / "nobody.mat"))


def test_all_files_are_written_or_none(motion: Motion, tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("precious")
    with pytest.raises(InputError, match=r"b\.csv exists already"):
        formats.request([tmp_path / "a.json", tmp_path / "b.csv"])
    damaged = tmp_path / "voice.wav"
    damaged.write_bytes(b"RIFF no sound")
    asked = formats.request([tmp_path / "a.json"], sound_path=damaged)
    with pytest.raises(InputError, match=r"voice\.wav"):
        formats.write(motion, asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.csv", "voice.wav"]


def test_a_recording_that_lies_beside_the_files_stays(motion: Motion, tmp_path: Path) -> None:
    voice = tmp_path / "a.wav"
    soundfile.write(voice, np.zeros(1600), 16_000)
    before = voice.read_bytes()
    formats.write(motion, formats.request([tmp_path / "a.json"], [voice], sound_path=voice))
    assert voice.read_bytes() == before


def test_a_sound_of_another_length_is_said(motion: Motion, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "voice.wav", np.zeros(16_000 * 3), 16_000)
    notes, _ = formats.write(motion, formats.request([tmp_path / "a.json"], sound_path=tmp_path / "voice.wav"))
    assert notes == ["the sound lasts 3.00 s, the take 1.20 s: both begin at 0"]


@pytest.mark.parametrize("name", ["far.npz", "far.json"])
def test_points_that_are_no_face_are_refused(tmp_path: Path, name: str) -> None:
    take = smooth_take(5)
    points = take.points.copy()
    points[2, 8, 1] -= 0.4
    far = replace(take, points=points)
    formats.write(far.motion(), formats.request([tmp_path / name]))
    with pytest.raises(InputError, match=f"{name} moves points of the face by 0.4 m"):
        formats.read(tmp_path / name)


def test_live_link_face_is_named_as_its_takes_are(exported: Path, tmp_path: Path) -> None:
    assert run("convert", exported / "made.npz", tmp_path / "talk.csv", "--export-format", "livelink") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["talk_1_duet.csv"]


@pytest.mark.parametrize(
    "words, reason",
    [
        (["a.fbx"], "end in .glb or"),
        (["a.csv", "a.csv"], "twice"),
        (["a.json", "--export-format", "livelink"], "end in .csv"),
        (["a.csv", "--key-error", "1"], "--key-error is for"),
        (["a.csv", "--face-model", "ict"], "--face-model is for"),
        (["a.glb", "--key-error", "-1"], "from 0 to"),
        (["a.csv", "--fps", "0"], "--fps goes from"),
        (["a.csv", "--fps", "nan"], "--fps goes from"),
        (["a.csv", "--audio", "none.wav"], "no sound file"),
        (["a.glb", "--face-model", "small/face_model"], "has no mesh"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    made = [str(tmp_path / word) if "." in word and "/" not in word else word for word in words]
    assert run("convert", exported / "made.npz", *made) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "module"), [("a.usda", "pxr"), ("a.usdc", "pxr"), ("a.c3d", "ezc3d")])
def test_without_its_library_the_extra_is_named_before_any_work(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="extra `export`"):
        formats.request([tmp_path / name])
    if Path(name).suffix in formats.READ:
        with pytest.raises(InputError, match="extra `export`"):
            formats.read(exported / f"take{Path(name).suffix}")


def test_what_does_not_come_back_says_so(exported: Path) -> None:
    for name in ("take.usda", "take.bvh"):
        with pytest.raises(InputError, match=f"{name} doesn't come back as a Motion: give one that ends in .npz, .csv"):
            formats.read(exported / name)


@pytest.mark.parametrize("name", [*BACK, "take.gltf", "take.txt"])
def test_garbage_is_one_sentence_that_names_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match="There is no"):
        formats.read(path)
    for content in (
        b"",
        b"PK\x03\x04",
        b"glTF\x02\x00\x00\x00",
        b"\x02P" + bytes(600),
        b'{"asset": {}}',
        b"# x\n1,2\n",
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="take"):
            formats.read(path)


def test_a_motion_that_is_none_is_refused(tmp_path: Path) -> None:
    take = smooth_take(3)
    broken = take.points.copy()
    broken[1, 5, 2] = np.nan
    for wrong in (
        replace(take, points=broken),
        replace(take, points=take.points[:0], rotation=take.rotation[:0], position=take.position[:0]),
        replace(take, points=take.points[:, :67]),
        replace(take, rotation=take.rotation * 2),
    ):
        with pytest.raises(ValueError, match=r"finite|empty|shape|rotation"):
            wrong.motion()


def test_the_table_of_curves_is_printed(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("curves", exported / "made.npz") == 0
    assert "jawOpen" in capsys.readouterr().out


def test_curves_of_another_model_than_icts_are_refused(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("curves", exported / "made.npz", "--face-model", "small/face_model") == 2
    assert "has no eyeBlinkLeft" in capsys.readouterr().err


def test_a_take_of_one_key_goes_everywhere(tmp_path: Path) -> None:
    still = smooth_take(1)
    paths = [tmp_path / name for name in NAMES]
    formats.write(still.motion(), formats.request(paths, fps=60))
    for path in paths:
        if path.suffix in formats.READ:
            np.testing.assert_allclose(Take.of(formats.read(path)).points, still.points, atol=2e-5)
