"""Re-dubbing: the mouth is the speech's, all else the video's."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from common.face.model import LIP_STREAM, REST, FaceModel, mouth_opening
from common.face.pos import Pose
from common.media import VideoReader, VideoWriter, read_picture
from common.motion import Motion, Reference
from generate import fitted
from m2v.dub import Footage, dub
from m2v.scene import Scene

PORTRAIT = Path(__file__).parents[2] / "examples" / "portrait.jpg"
FPS = Fraction(30000, 1001)
N = 12
SIZE = (320, 360)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portrait moves to the right, two pixels a frame."""
    picture = Image.fromarray(read_picture(PORTRAIT)).crop((0, 0, 400, 360))
    path = tmp_path_factory.mktemp("video") / "walk.mp4"
    with VideoWriter(path, *SIZE, fps=FPS) as writer:
        for k in range(N):
            writer.write(np.asarray(picture.crop((60 - 2 * k, 0, 380 - 2 * k, 360))))
    return path


@pytest.fixture(scope="module")
def footage(video: Path) -> Footage:
    return Footage.read(video)


def speech(footage: Footage, n_frames: int, fps: float = 25.0, opened: float = 0.0) -> Motion:
    """A Motion for the person in the video, mouth opened by a part of the face model's unit."""
    person = footage.person()
    landmarks = person.lm3d.repeat(n_frames, 1, 1)
    landmarks[:, [*range(5, 12), *range(55, 60), 65, 66, 67], 1] -= opened
    pose = Pose(*(part.expand(n_frames, *part.shape) for part in vars(person.pose).values()))
    return Motion(landmarks, FaceModel.builtin().mean, pose, fps, person.size)


def test_the_head_follows_the_video_and_the_mouth_the_speech(footage: Footage) -> None:
    n_frames = footage.motion.n_frames
    quiet = dub(footage, speech(footage, n_frames, float(FPS)), "hold")
    loud = dub(footage, speech(footage, n_frames, float(FPS), opened=0.3), "hold")
    begin = quiet.begin()
    for made in (quiet, loud):
        assert made.numbers == list(range(n_frames)) and made.motion.fps == pytest.approx(float(FPS))
        rest = list(REST)
        assert (made.motion.posed()[:, rest, :2] - begin[:, rest, :2]).abs().max() < 0.01
    assert (quiet.motion.posed() - begin)[:, :, :2].abs().max() < 3  # tracking trembles
    change = loud.motion.landmarks - quiet.motion.landmarks
    assert torch.allclose(change[:, 8], torch.tensor([0.0, -0.3, 0.0]), atol=1e-4)
    assert not change[:, [k for k in range(68) if k not in LIP_STREAM]].any()


def test_another_persons_motion_moves_this_persons_mouth(footage: Footage) -> None:
    """A Motion made for a picture: not that picture's mouth, but its movement."""
    model, person = FaceModel.builtin(), footage.person()
    other = speech(footage, 30)
    wide = other.landmarks.clone()
    wide[..., 0] += 0.2 * (model.mean + wide)[..., 0]  # somebody with a broader face
    wide[15:, [*range(5, 12), *range(55, 60), 65, 66, 67], 1] -= 0.2
    motion = fitted(replace(other, landmarks=wide, reference=Reference(wide[0], other.pose[0])), person, is_dub=True)
    made = dub(footage, motion, "hold")
    points = made.motion.mean_landmarks + made.motion.landmarks
    own = (made.motion.mean_landmarks + footage.rest)[54, 0] - (made.motion.mean_landmarks + footage.rest)[48, 0]
    assert float((points[0, 54, 0] - points[0, 48, 0]) / own) == pytest.approx(1, abs=0.03)
    assert mouth_opening(points[-1]) > mouth_opening(points[0]) + 0.1


@pytest.mark.parametrize("end", ["loop", "hold"])
def test_a_short_video_lasts_as_long_as_the_speech(footage: Footage, end: str) -> None:
    made = dub(footage, speech(footage, 25), "hold" if end == "hold" else "loop")
    assert made.motion.n_frames == 30 and abs(made.motion.duration_s - 1.0) < 0.5 / FPS
    assert len(list(made.pictures())) == 30
    assert max(made.numbers) == footage.motion.n_frames - 1
    assert (made.numbers[-1] == footage.motion.n_frames - 1) == (end == "hold")


def test_a_long_video_ends_with_the_speech(footage: Footage) -> None:
    assert dub(footage, speech(footage, 5), "loop").motion.n_frames == 6


def test_what_is_rendered_as_it_was_is_the_video_itself(footage: Footage) -> None:
    """And with a renderer that returns the crops unchanged, nothing in the whole frames changes."""
    made = dub(footage, speech(footage, footage.motion.n_frames, float(FPS)), "hold")
    made = replace(made, motion=replace(made.motion, landmarks=footage.motion.landmarks))
    scene = Scene.of_video(made)
    pictures = list(made.pictures())
    layers = (
        torch.from_numpy(crop.cut(picture).copy()).movedim(-1, 0).float()
        for crop, picture in zip(made.crops(), pictures, strict=True)
    )
    frames = list(scene.frames(layers, "full"))
    assert scene.size("full") == SIZE and len(frames) == footage.motion.n_frames
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.abs(frame.astype(int) - picture).max() <= 1


def test_pictures_are_the_videos(footage: Footage, video: Path) -> None:
    made = dub(footage, speech(footage, 25), "loop")
    with VideoReader(video) as reader:
        all_frames = list(reader.frames_at(FPS))
    for number, picture in zip(made.numbers, made.pictures(), strict=True):
        assert np.array_equal(picture, all_frames[footage.first + number])


def test_a_video_without_a_face_is_one_sentence(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "grey.mp4", 160, 160) as writer:
        for _ in range(3):
            writer.write(np.full((160, 160, 3), 90, np.uint8))
    with pytest.raises(InputError, match=r"grey\.mp4.*no face"):
        Footage.read(tmp_path / "grey.mp4")
