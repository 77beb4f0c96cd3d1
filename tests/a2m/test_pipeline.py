"""Speech to Motion by AToM-Net, with the weights of this repository: silence, seeds, lengths, the picture's mouth."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from a2m.control import Control
from a2m.model import AToMConfig, AToMNet
from a2m.pipeline import AudioToMotion
from a2m.pose import REACH, HeadPrior, find_blinks, relative_aperture, spectral_radius
from a2m.regression import WEIGHTS as REGRESSION
from a2m.samples import DataConfig
from a2m.speech import levels_db
from a2m.training import save
from common import weights
from common.audio import n_frames
from common.errors import InputError
from common.face import mouth
from common.face.model import LID_PAIRS, LIP_STREAM, REST, eye_distance, mouth_opening
from common.face.pos import Pose
from common.face.rotations import euler_rad, from_euler_rad
from common.media import read_audio
from common.motion import Motion

SPEECH = Path(__file__).parents[2] / "examples" / "speech.wav"
QUICK = {"n_steps": 4, "guidance_scale": 1.0}  # enough for what does not depend on how good a sample is


@pytest.fixture(scope="module")
def a2m() -> AudioToMotion:
    return AudioToMotion.from_pretrained()


@pytest.fixture(scope="module")
def regression() -> AudioToMotion:
    return AudioToMotion.from_pretrained(REGRESSION)


@pytest.fixture(scope="module")
def speech() -> Tensor:
    return torch.from_numpy(read_audio(SPEECH))[: 16000 * 5]


def picture() -> Pose:
    return Pose(torch.tensor(90.0), from_euler_rad(torch.tensor([0.1, -0.1, 0.0])), torch.tensor([128.0, 130.0]))


def neutral(a2m: AudioToMotion) -> Tensor:
    """LM3D of the mean face with its lips closed."""
    mean = a2m.face_model.mean
    return mouth.set_lip_gap(mean, torch.full((3,), 0.003)) - mean


def make(a2m: AudioToMotion, audio: Tensor, landmarks: Tensor | None = None, **options: object) -> Motion:
    reference = neutral(a2m) if landmarks is None else landmarks
    return a2m(audio, reference, picture(), (256, 256), **(QUICK | options))  # type: ignore[arg-type]


def opening(motion: Motion) -> Tensor:
    return mouth_opening(motion.landmarks + motion.mean_landmarks)


def test_the_weights_say_which_model_they_are(a2m: AudioToMotion) -> None:
    assert a2m.name == "atom" and isinstance(a2m.model, AToMNet)
    assert AudioToMotion.from_pretrained(REGRESSION).name == "regression"


@pytest.mark.parametrize("n", [1, 640, 3201, 64 * 640 + 1])
def test_any_length_gives_a_frame_per_640_samples_begun(a2m: AudioToMotion, speech: Tensor, n: int) -> None:
    motion = make(a2m, speech[:n])
    assert motion.n_frames == n_frames(n) and motion.fps == 25
    assert motion.landmarks.isfinite().all()


def test_the_same_seed_gives_the_same_motion_and_another_another(a2m: AudioToMotion, speech: Tensor) -> None:
    a, b, c = (make(a2m, speech[:32000], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a.landmarks, b.landmarks) and torch.equal(a.pose.rotation, b.pose.rotation)
    assert not torch.equal(a.pose.rotation, c.pose.rotation)
    assert not torch.equal(a.landmarks[:, LIP_STREAM], c.landmarks[:, LIP_STREAM])


@pytest.mark.parametrize("level", [0.0, 1e-3])
def test_silence_closes_the_mouth_within_a_fifth_of_a_second(a2m: AudioToMotion, speech: Tensor, level: float) -> None:
    speech = speech / speech.abs().max()
    loud_end = int(torch.nonzero(levels_db(speech) > -30)[-1])  # cut where it is loud
    audio = torch.cat([speech[: (loud_end + 1) * 640], torch.zeros(16000 * 2)])
    audio = audio + level * torch.randn(len(audio), generator=torch.Generator().manual_seed(0))
    motion = make(a2m, audio, pose="still")
    after = motion.landmarks[loud_end + 1 + 5 :]
    torch.testing.assert_close(after, neutral(a2m).expand_as(after), atol=1e-6, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_a_recording_without_speech_never_opens_the_mouth(a2m: AudioToMotion, noise: float) -> None:
    audio = noise * torch.randn(16000 * 3, generator=torch.Generator().manual_seed(0))
    assert opening(make(a2m, audio)).max() <= mouth.CLOSED_OPENING


def test_an_open_mouth_in_the_picture_does_not_leak_into_the_speech(a2m: AudioToMotion, speech: Tensor) -> None:
    shut = neutral(a2m)
    wide = shut.clone()
    wide[LIP_STREAM, :] += 0.15 * a2m.opening_direction
    curves = [opening(make(a2m, speech, landmarks)) for landmarks in (shut, wide)]
    # Not exactly: the picture's own mouth counts as closed up to CLOSED_OPENING.
    assert (curves[0] - curves[1]).abs().max() < 1.5 * mouth.CLOSED_OPENING
    silent = make(a2m, torch.zeros(16000), wide)
    gap = mouth.lip_gap(silent.landmarks + silent.mean_landmarks).max()
    assert gap <= mouth.CLOSED_OPENING * eye_distance(a2m.face_model.mean) + 1e-5


def test_lips_move_with_speech_and_never_cross(a2m: AudioToMotion, speech: Tensor) -> None:
    motion = make(a2m, speech, pose="still")
    assert (mouth.lip_gap(motion.landmarks + motion.mean_landmarks) >= -1e-6).all()
    assert opening(motion).max() > 0.06
    moved = motion.landmarks - neutral(a2m)
    assert torch.equal(moved[:, list(REST)], torch.zeros(motion.n_frames, len(REST), 3))  # still: nothing else moves


def test_frames_at_seams_of_windows_move_no_faster_than_others(a2m: AudioToMotion, speech: Tensor) -> None:
    audio = speech.repeat(3)
    lips = make(a2m, audio, pose="still", n_steps=8).landmarks[:, LIP_STREAM]
    speed = lips.diff(n=2, dim=0).flatten(1).norm(dim=1)
    assert isinstance(a2m.model, AToMNet)
    window, overlap = a2m.model.config.window, a2m.model.config.overlap
    is_seam = torch.zeros(len(speed), dtype=torch.bool)
    for first in range(window - overlap, len(speed) - overlap, window - overlap):
        is_seam[first : first + overlap] = True
    rates = speed[is_seam].square().mean().sqrt(), speed[~is_seam].square().mean().sqrt()
    assert rates[0] < 1.5 * rates[1]


def test_the_head_starts_near_the_pictures_and_stays_within_its_limits(a2m: AudioToMotion, speech: Tensor) -> None:
    motion = make(a2m, speech.repeat(2))
    turned = euler_rad(motion.pose.rotation @ picture().rotation.mT)
    assert turned[0].abs().max() < math.radians(1)
    assert (turned.abs() <= torch.tensor(REACH[:3]) + 1e-3).all()
    assert turned.std(dim=0).max() > math.radians(0.2)
    prior = torch.cat(list(a2m.head.transition), dim=1)
    assert spectral_radius(prior) < 1


LIDS = [k for pair in LID_PAIRS for k in pair]
EYES_CLOSE = Control(blink=2.0)


def parts(motion: Motion) -> dict[str, Tensor]:
    """The parts of a Motion that its controls speak of; brows and nose for the expression, whose eyes blinks close."""
    pose = torch.cat([motion.pose.rotation.flatten(1), motion.pose.translation, motion.pose.scale[:, None]], dim=1)
    others = [k for k in REST if k not in LIDS]
    return {
        "mouth_scale": motion.landmarks[:, LIP_STREAM],
        "expression_scale": motion.landmarks[:, others],
        "head_scale": pose,
        "blink": motion.landmarks[:, LIDS],
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("mouth_scale", 0.5), ("mouth_scale", 0.0), ("expression_scale", 2.0), ("head_scale", 0.0), ("blink", "off")],
)
@pytest.mark.parametrize("model", ["atom", "regression"])
def test_each_control_moves_its_own_part_and_leaves_the_others_to_the_bit(
    a2m: AudioToMotion, regression: AudioToMotion, speech: Tensor, model: str, name: str, value: Any
) -> None:
    chosen = {"atom": a2m, "regression": regression}[model]
    plain = parts(make(chosen, speech[:48000], seed=1, control=EYES_CLOSE))
    moved = parts(make(chosen, speech[:48000], seed=1, control=replace(EYES_CLOSE, **{name: value})))
    with_it = {name, "blink"} if name == "expression_scale" else {name}  # lids belong to both
    for part in plain:
        if part not in with_it:
            assert torch.equal(plain[part], moved[part]), part
    if (model, name) != ("regression", "expression_scale"):  # its brows never move
        assert not torch.equal(plain[name], moved[name])


def test_scales_are_what_they_say(a2m: AudioToMotion, speech: Tensor) -> None:
    audio = speech[:48000]
    mute = make(a2m, audio, control=Control(0.0, 0.0, 0.0, "off"))
    silent = neutral(a2m).expand(mute.n_frames, 68, 3)
    torch.testing.assert_close(mute.landmarks, silent, atol=1e-6, rtol=0)
    assert torch.equal(mute.pose.rotation, picture().rotation.expand(mute.n_frames, 3, 3))
    shares = [opening(make(a2m, audio, control=Control(scale))) for scale in (1.0, 0.5)]
    wide = shares[0] > shares[0].median()  # where no lip meets the other
    torch.testing.assert_close(shares[1][wide].mean() / shares[0][wide].mean(), torch.tensor(0.5), atol=0.1, rtol=0)


def test_a_still_pose_blinks_only_where_that_is_asked_for(a2m: AudioToMotion, speech: Tensor) -> None:
    audio = speech.repeat(2)
    still, blinking = (make(a2m, audio, pose="still", control=Control(blink=blink)) for blink in (None, 2.0))
    assert torch.equal(still.landmarks[:, LIDS], still.landmarks[:1, LIDS].expand(still.n_frames, -1, -1))
    lids = relative_aperture(blinking.landmarks + blinking.mean_landmarks)
    assert 3 <= len(find_blinks(lids)) <= 7  # ten seconds
    assert torch.equal(still.landmarks[:, LIP_STREAM], blinking.landmarks[:, LIP_STREAM])


@pytest.mark.parametrize("wrong", [{"mouth_scale": -0.1}, {"head_scale": math.nan}, {"blink": "often"}, {"blink": 0.1}])
def test_controls_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Control(**wrong)


def test_loudness_does_not_matter(a2m: AudioToMotion, speech: Tensor) -> None:
    loud, soft = (opening(make(a2m, gain * speech)) for gain in (1.0, 0.1))
    assert (loud - soft).abs().mean() < 0.1 * loud.std()


def test_provenance_says_what_made_it(a2m: AudioToMotion, speech: Tensor, tmp_path: Path) -> None:
    make(a2m, speech[:16000], seed=5, guidance_scale=1.5).save(tmp_path / "m.npz")
    provenance = Motion.load(tmp_path / "m.npz").provenance
    assert (provenance["a2m"], provenance["seed"], provenance["n_steps"]) == ("atom", 5, 4)
    assert provenance["guidance_scale"] == 1.5


def test_weights_of_another_kind_are_refused_in_a_sentence(tmp_path: Path) -> None:
    state, config = weights.from_pretrained("small/a2m")
    hears_hubert = AToMNet(AToMConfig(features="hubert", audio_dim=8, width=16, n_heads=2, ff_width=16))
    save(hears_hubert, HeadPrior(), DataConfig(), tmp_path / "hubert")
    weights.save(tmp_path / "newer", state, config | {"model": config["model"] | {"depth": 3}})
    for name, reason in (("hubert", "name its folder or hub id"), ("newer", "this version")):
        with pytest.raises(InputError, match=reason):
            AudioToMotion.from_pretrained(tmp_path / name)
