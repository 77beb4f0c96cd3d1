"""The regression and the pipeline around it, with the weights of this repository."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from a2m.data import crops, disturb, lip_motion, person_shares, smooth
from a2m.pipeline import AudioToMotion
from a2m.regression import WEIGHTS, Regression, RegressionConfig, seam_weight, window_spans
from a2m.regression_train import TrainConfig, encode, fit_basis, loss, train_member
from a2m.speech import analyse, levels_db
from common import weights
from common.audio import n_frames
from common.errors import InputError
from common.face import mouth
from common.face.model import FaceModel, eye_distance, mirror, mouth_opening
from common.face.pos import Pose
from common.face.rotations import from_euler_rad
from common.media import read_audio
from common.motion import Motion

SPEECH = Path(__file__).parents[2] / "examples" / "speech.wav"


@pytest.fixture(scope="module")
def a2m() -> AudioToMotion:
    return AudioToMotion.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def speech() -> Tensor:
    return torch.from_numpy(read_audio(SPEECH))[: 16000 * 6]


def pose() -> Pose:
    return Pose(torch.tensor(90.0), from_euler_rad(torch.tensor([0.1, -0.1, 0.0])), torch.tensor([128.0, 130.0]))


def neutral(a2m: AudioToMotion) -> Tensor:
    """LM3D of the mean face with its lips closed."""
    mean = a2m.face_model.mean
    return mouth.set_lip_gap(mean, torch.full((3,), 0.003)) - mean


def make(a2m: AudioToMotion, audio: Tensor, landmarks: Tensor | None = None, **options: object) -> Motion:
    reference = neutral(a2m) if landmarks is None else landmarks
    return a2m(audio, reference, pose(), (256, 256), **options)  # type: ignore[arg-type]


def opening(motion: Motion) -> Tensor:
    return mouth_opening(motion.landmarks + motion.mean_landmarks)


@pytest.mark.parametrize("n", [1, 640, 3200, 3201])
def test_any_length_gives_a_frame_per_640_samples_begun(a2m: AudioToMotion, speech: Tensor, n: int) -> None:
    motion = make(a2m, speech[:n])
    assert motion.n_frames == n_frames(n) and motion.fps == 25
    assert motion.landmarks.isfinite().all()


def test_the_same_seed_gives_the_same_motion_and_another_another(a2m: AudioToMotion, speech: Tensor) -> None:
    a, b, c = (make(a2m, speech, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a.landmarks, b.landmarks) and torch.equal(a.pose.rotation, b.pose.rotation)
    assert not torch.equal(a.pose.rotation, c.pose.rotation)
    assert torch.equal(a.landmarks[:, mouth.LIP_STREAM], c.landmarks[:, mouth.LIP_STREAM])  # the seed is not heard


def test_still_means_the_pictures_pose_and_no_blinks(a2m: AudioToMotion, speech: Tensor) -> None:
    motion = make(a2m, speech, pose="still")
    assert torch.equal(motion.pose.rotation, pose().rotation.expand(motion.n_frames, 3, 3))
    lids = motion.landmarks[:, [37, 41]] - neutral(a2m)[[37, 41]]
    assert lids.norm(dim=-1).max() < 0.02


def test_the_mouth_moves_with_speech_and_the_variance_is_restored(a2m: AudioToMotion, speech: Tensor) -> None:
    raw, stretched = (opening(make(a2m, speech, is_stretched=flag)) for flag in (False, True))
    assert stretched.std() > 1.2 * raw.std()
    assert stretched.max() > 0.1  # of the eye distance: plainly open


@pytest.mark.parametrize("kind", ["digital", "hiss"])
def test_silence_closes_the_mouth_within_a_fifth_of_a_second(a2m: AudioToMotion, speech: Tensor, kind: str) -> None:
    level = {"digital": 0.0, "hiss": 1e-3}[kind]
    speech = speech / speech.abs().max()
    loud_end = int(torch.nonzero(levels_db(speech) > -30)[-1])  # cut where it is loud
    audio = torch.cat([speech[: (loud_end + 1) * 640], torch.zeros(16000 * 2)])
    audio = audio + level * torch.randn(len(audio), generator=torch.Generator().manual_seed(0))
    motion = make(a2m, audio, pose="still")
    after = motion.landmarks[loud_end + 1 + 5 :]
    assert torch.equal(after, neutral(a2m).expand_as(after)) or (after - neutral(a2m)).abs().max() < 1e-6


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
def test_a_recording_without_speech_never_opens_the_mouth(a2m: AudioToMotion, noise: float) -> None:
    audio = noise * torch.randn(16000 * 3, generator=torch.Generator().manual_seed(0))
    assert opening(make(a2m, audio)).max() <= mouth.CLOSED_OPENING


def test_an_open_mouth_in_the_picture_does_not_leak_into_the_speech(a2m: AudioToMotion, speech: Tensor) -> None:
    shut = neutral(a2m)
    wide = shut.clone()
    wide[mouth.LIP_STREAM, :] += 0.15 * a2m.opening_direction
    curves = [opening(make(a2m, speech, landmarks)) for landmarks in (shut, wide)]
    # Not exactly: the picture's own mouth counts as closed up to CLOSED_OPENING.
    assert (curves[0] - curves[1]).abs().max() < 1.5 * mouth.CLOSED_OPENING
    silent = make(a2m, torch.zeros(16000), wide)
    gap = mouth.lip_gap(silent.landmarks + silent.mean_landmarks).max()
    assert gap <= mouth.CLOSED_OPENING * eye_distance(a2m.face_model.mean) + 1e-5
    torch.testing.assert_close(silent.rest.landmarks, wide)  # what the picture shows is still known


def test_lips_never_cross(a2m: AudioToMotion, speech: Tensor) -> None:
    motion = make(a2m, speech)
    assert (mouth.lip_gap(motion.landmarks + motion.mean_landmarks) >= -1e-6).all()


def test_loudness_does_not_matter(a2m: AudioToMotion, speech: Tensor) -> None:
    loud, soft = (opening(make(a2m, gain * speech)) for gain in (1.0, 0.1))
    assert (loud - soft).abs().mean() < 0.05 * loud.std()


def test_windows_joined_equal_the_whole(a2m: AudioToMotion, speech: Tensor) -> None:
    audio = speech.repeat(3)
    voice = analyse(audio)
    assert isinstance(a2m.model, Regression)
    whole = a2m.model.predict(audio, voice)
    joined = a2m.model.predict(audio, voice, window=150, overlap=60)
    assert (whole - joined).abs().max() < 0.05 * whole.std(dim=0).max()  # the GRU forgets in a second


@pytest.mark.parametrize(("T", "window", "overlap"), [(1, 10, 4), (10, 10, 4), (11, 10, 4), (100, 16, 8), (97, 30, 20)])
def test_windows_cover_every_frame_and_seams_add_up_to_one(T: int, window: int, overlap: int) -> None:
    total = torch.zeros(T)
    for first, last in window_spans(T, window, overlap):
        assert last - first <= window
        total[first:last] += seam_weight(first, last, T, overlap)
    torch.testing.assert_close(total, torch.ones(T))


def test_provenance_says_what_made_it_and_survives_a_file(a2m: AudioToMotion, speech: Tensor, tmp_path: Path) -> None:
    make(a2m, speech, seed=5).save(tmp_path / "m.npz")
    loaded = Motion.load(tmp_path / "m.npz")
    assert loaded.provenance["seed"] == 5 and loaded.provenance["a2m"] == a2m.name
    assert loaded.provenance["audio_duration_s"] == len(speech) / 16000


def test_wrong_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    state, config = weights.from_pretrained("small/a2m_regression")
    weights.save(tmp_path / "hubert", state, config | {"features": "hubert"}, torch.float32)
    with pytest.raises(InputError, match="log-mel"):
        AudioToMotion.from_pretrained(tmp_path / "hubert")
    with pytest.raises(InputError):
        Regression.from_pretrained("small/face_model")


# ---- training -------------------------------------------------------------------------------------------------------


def test_lip_motion_is_symmetric_and_zero_for_a_shut_mouth() -> None:
    mean = mouth.set_lip_gap(FaceModel.builtin().mean, torch.full((3,), 0.003))
    swing = torch.sin(torch.arange(60) / 3).clamp(min=0)
    frames = mean.repeat(60, 1, 1)
    frames[:, [66, 57, 8], 1] -= 0.1 * swing[:, None]
    frames[:, 48, 0] -= 0.05 * swing  # one corner only
    moved = lip_motion(frames)
    full = torch.zeros(60, 68, 3)
    full[:, mouth.LIP_STREAM, :] = moved
    torch.testing.assert_close(full, mirror(full))
    still = swing.unfold(0, 9, 1).amax(dim=1) == 0
    assert moved[4:-4][still].norm(dim=-1).max() < 0.01


def test_smoothing_keeps_constants_and_means() -> None:
    torch.testing.assert_close(smooth(torch.full((7, 2), 3.0), 0.8), torch.full((7, 2), 3.0))


def test_disturbing_keeps_the_voice_mean_at_zero_and_depends_on_the_generator_only() -> None:
    mel = torch.randn(4, 20, 4, 64, generator=torch.Generator().manual_seed(0))
    mel = mel - mel.mean(dim=(1, 2), keepdim=True)
    a, b = (disturb(mel, torch.ones(4, 20), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b) and a.isfinite().all()
    assert a.mean(dim=(1, 2)).abs().max() < 0.05


def test_two_clips_are_learnt_by_heart() -> None:
    from a2m.data import Clip

    def clip(name: str, seed: int) -> Clip:
        generator = torch.Generator().manual_seed(seed)
        swing = smooth(torch.randn(50, generator=generator), 2.0)
        mel = torch.randn(50, 4, 64, generator=generator) * 0.1 + swing[:, None, None]
        motion = torch.zeros(50, 37, 3)
        motion[:, mouth.LIP_STREAM.index(66), 1] = -0.1 * swing
        motion[:, 8, 1] = -0.05 * swing
        ones = torch.ones(50)
        lm3d = torch.zeros(50, 68, 3)
        head = Pose(ones, torch.eye(3).expand(50, 3, 3), torch.zeros(50, 2))
        return Clip(name, name, mel, torch.zeros(64), ones > 0, lm3d, head, motion, ones, swing, 0.64)

    clips = [clip("a", 0), clip("b", 1)]
    config = RegressionConfig(n_components=2, n_members=1, conv_width=16, gru_width=16, dropout=0.0)
    model = Regression(config)
    shares = person_shares(clips, 0.4, 6.0)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    targets = fit_basis(model, clips, shares)
    torch.testing.assert_close(model.decode(targets[0])[0], clips[0].lip_motion, atol=1e-3, rtol=0)
    torch.testing.assert_close(encode(model, clips[0].lip_motion), targets[0][:, :-1])
    options = replace(TrainConfig(), steps=150, batch=4)
    trained = train_member(model, clips, targets, shares, options, 0)
    mel, target, mask = crops(clips, targets, shares, 8, 50, torch.Generator().manual_seed(9))
    gap = torch.ones(2)

    def value(member: torch.nn.Module) -> float:
        with torch.no_grad():
            predicted = member(mel.flatten(2)) * model.std + model.mean
        return float(loss(predicted, target, mask, gap, model.std, options))

    assert value(trained) < 0.4 * value(type(trained)(config))
    assert math.isfinite(value(trained))
