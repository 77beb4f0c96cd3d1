"""Frames of an edited Motion: they stay to the bit, what is around them bends towards them, strangers are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from a2m.control import AS_MADE, Control
from a2m.keyframes import Keyframes
from a2m.model import AToMConfig, AToMNet
from a2m.pipeline import AudioToMotion
from a2m.pose import REACH, apply_pose, pose_deviation
from common.errors import InputError
from common.face import mouth
from common.face.model import LIP_STREAM, mouth_opening
from common.face.pos import Pose
from common.face.rotations import from_euler_rad
from common.media import read_audio
from common.motion import Motion

SPEECH = Path(__file__).parents[2] / "examples" / "speech.wav"
KEPT = [30, 31, 32, 60]
PICTURE = Pose(torch.tensor(90.0), from_euler_rad(torch.tensor([0.1, -0.1, 0.0])), torch.tensor([128.0, 130.0]))


@pytest.fixture(scope="module")
def a2m() -> AudioToMotion:
    return AudioToMotion.from_pretrained()


@pytest.fixture(scope="module")
def slow(a2m: AudioToMotion) -> AudioToMotion:
    """A network that sees known frames and whose slow stream moves the head; it has learnt nothing."""
    torch.manual_seed(0)
    net = AToMNet(AToMConfig(width=16, n_layers=1, n_heads=2, ff_width=16, window=32, overlap=8, sees_known=True))
    assert isinstance(a2m.model, AToMNet)
    net.space.slow_std.copy_(torch.tensor((*REACH, 0.3)))
    net.space.opening_direction.copy_(a2m.model.space.opening_direction)
    net.space.lip_decoder.mul_(0.01), net.space.rest_decoder.mul_(0.01)
    return AudioToMotion(net, a2m.head, a2m.face_model, uses_slow=True)


@pytest.fixture(scope="module")
def speech() -> Tensor:
    return torch.from_numpy(read_audio(SPEECH))[: 16000 * 4]


def neutral(a2m: AudioToMotion) -> Tensor:
    return mouth.set_lip_gap(a2m.face_model.mean, torch.full((3,), 0.003)) - a2m.face_model.mean


def make(a2m: AudioToMotion, speech: Tensor, control: Control = AS_MADE, **options: object) -> Motion:
    quick = {"n_steps": 3, "guidance_scale": 1.0} | options
    return a2m(speech, neutral(a2m), PICTURE, (256, 256), control=control, **quick)  # type: ignore[arg-type]


def edited(motion: Motion, a2m: AudioToMotion) -> Motion:
    """A mouth wide open and a head turned to the right at all frames."""
    landmarks = motion.landmarks.clone()
    landmarks[:, LIP_STREAM] += 0.3 * a2m.opening_direction
    turned = pose_deviation(PICTURE, motion.pose) + torch.tensor([0.0, 0.05, 0, 0.02, 0, 0])
    return replace(motion, landmarks=landmarks, pose=apply_pose(PICTURE, turned))


@pytest.mark.parametrize("pose", ["natural", "still"])
@pytest.mark.parametrize("which", ["a2m", "slow"])
def test_kept_frames_are_there_to_the_bit_and_others_bend_towards_them(
    request: pytest.FixtureRequest, tmp_path: Path, speech: Tensor, which: str, pose: str
) -> None:
    model = request.getfixturevalue(which)
    plain = make(model, speech, pose=pose, seed=1)
    edited(plain, model).save(tmp_path / "edited.npz")
    asked = Motion.load(tmp_path / "edited.npz")
    motion = make(model, speech, pose=pose, seed=2, keyframes=Keyframes.of(asked, KEPT))
    assert torch.equal(motion.landmarks[KEPT], asked.landmarks[KEPT])
    for part in ("scale", "rotation", "translation"):
        assert torch.equal(getattr(motion.pose, part)[KEPT], getattr(asked.pose, part)[KEPT])
    jump = (
        asked.landmarks[30] - make(model, speech, pose=pose, seed=2).landmarks[29]
    )  # where frames are put in as they are
    bent = motion.landmarks[30] - motion.landmarks[29]
    assert bent.norm() < 0.6 * jump.norm()
    yaw = pose_deviation(PICTURE, motion.pose)[:, 1]
    assert yaw.diff()[20:70].abs().max() < 0.02  # a turn of 0.05 in some frames, not in one
    assert motion.provenance["kept_frames"] == KEPT


def test_all_frames_kept_is_the_motion_itself(a2m: AudioToMotion, speech: Tensor) -> None:
    asked = edited(make(a2m, speech), a2m)
    again = make(a2m, speech, seed=9, keyframes=Keyframes.of(asked, range(asked.n_frames)))
    assert torch.equal(again.landmarks, asked.landmarks) and torch.equal(again.pose.rotation, asked.pose.rotation)


def test_the_network_is_told_what_the_scales_will_make_again(a2m: AudioToMotion, speech: Tensor) -> None:
    assert isinstance(a2m.model, AToMNet)
    space, rest = a2m.model.space, neutral(a2m) + a2m.face_model.mean
    values = [
        Keyframes.of(make(a2m, speech, control, pose="still"), KEPT).known(space, rest, control).values
        for control in (Control(mouth_scale=1.0), Control(mouth_scale=0.5))
    ]
    opening = [part[10:30] @ space.opening_weights() for part in values]  # speech, where no gate closes
    torch.testing.assert_close(opening[0].mean(), opening[1].mean(), rtol=0.1, atol=0.005)


def test_strange_keyframes_are_refused_in_a_sentence(a2m: AudioToMotion, speech: Tensor) -> None:
    motion = make(a2m, speech)
    for frames in ([], [-1], [motion.n_frames]):
        with pytest.raises(InputError, match="no frame"):
            Keyframes.of(motion, frames)
    late = Keyframes.of(motion, [80])
    with pytest.raises(InputError, match="Frame 80"):
        make(a2m, speech[: 16000 * 3], keyframes=late)
    faster = replace(motion, fps=30.0)
    moved = replace(motion, reference=replace(motion.rest, landmarks=motion.rest.landmarks + 0.1))
    for other, reason in ((faster, "25 frames/s"), (moved, "another picture")):
        with pytest.raises(InputError, match=reason):
            make(a2m, speech, keyframes=Keyframes.of(other, KEPT))


def test_keyframes_of_a_shorter_motion_serve_a_longer_recording(a2m: AudioToMotion, speech: Tensor) -> None:
    asked = make(a2m, speech[: 16000 * 2])
    motion = make(a2m, speech, keyframes=Keyframes.of(asked, [10]))
    assert motion.n_frames == 100 and torch.equal(motion.landmarks[10], asked.landmarks[10])


# ---- the slow stream


def test_a_head_of_the_slow_stream_starts_as_in_the_picture_and_keeps_its_limits(
    slow: AudioToMotion, speech: Tensor
) -> None:
    motion = make(slow, speech)
    assert torch.equal(motion.pose.rotation[0], PICTURE.rotation)
    deviation = pose_deviation(PICTURE, motion.pose)
    assert deviation.std(dim=0).min() > 0
    assert (deviation.abs() <= torch.tensor(REACH) + 1e-5).all()
    lips = motion.landmarks[0, LIP_STREAM]  # brows are smoothed over time
    torch.testing.assert_close(lips, neutral(slow)[LIP_STREAM, :], atol=1e-5, rtol=0)


def test_a_head_of_the_slow_stream_is_scaled_and_stilled(slow: AudioToMotion, speech: Tensor) -> None:
    plain, still = make(slow, speech), make(slow, speech, Control(head_scale=0.0, blink="off"))
    assert torch.equal(still.pose.rotation, PICTURE.rotation.expand(still.n_frames, 3, 3))
    assert torch.equal(plain.landmarks[:, LIP_STREAM], still.landmarks[:, LIP_STREAM])
    assert not torch.equal(plain.landmarks, still.landmarks)  # its lids
    assert (mouth_opening(plain.landmarks + plain.mean_landmarks) >= 0).all()
