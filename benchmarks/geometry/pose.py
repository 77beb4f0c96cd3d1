"""The head pose taken from a driving video: how well landmarks posed by it lie on that video's own, and its clock.

    python -m benchmarks.geometry pose --data DIR
    python -m benchmarks.geometry pose --drift [--minutes 10]

With --data: clips of the test split, a clip a person, tracked by the built-in detector. Landmarks to be posed: the
person's own face at rest, frontal, and what AToM-Net makes of the clip's sound with that face. Their distance from the
detected ones, in percent of the distance of the eyes. With --drift: a face on a known path, in a video of broadcast's
odd rates, is tracked and resampled to 25 frames/s; how late it is is found by least squares in every ten seconds.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import uniform_filter1d
from torch import Tensor

from a2m.pipeline import AudioToMotion
from benchmarks.report import clips, count, estimate, is_word, markdown
from common.errors import InputError
from common.face.fit import frontalise
from common.face.framing import ReferencePicture
from common.face.lids import aperture
from common.face.model import LIP_STREAM, RIGID, FaceModel, eye_distance, mouth_opening
from common.face.mouth import opening_direction
from common.face.pos import Pose, align, flip_image, pos, pos_five
from common.face.pose_video import PoseTrack, pose_track, read_pose
from common.face.reenact import neutral, reenact, relative_pose
from common.face.rotations import angle_rad, euler_rad
from common.face.track import bridge_gaps, smooth, track_frames
from common.media import VideoReader, VideoWriter, read_audio, read_picture
from common.motion import Motion

PORTRAIT = Path(__file__).parents[2] / "examples" / "portrait.jpg"
UNDER_NOSE = (31, 32, 33, 34, 35)  # moves with the skull, and no method fits it
FPS = 25
WIDE = 0.3  # opening of a mouth, by the distance of the eyes
LEAST_FRAMES, MOST_FRAMES = 25, 250
DRIFT_RATES = (Fraction(24000, 1001), Fraction(30000, 1001))
WINDOW_S = 10


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geometry pose",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="measure alignment on the clips of this folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--drift", action="store_true", help="measure the clock")
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # small batches: more threads only wait for each other
    if args.data is None and not args.drift:
        parser.error("give --data DIR, --drift or both")
    if args.data is not None:
        alignment(args.data, args.split)
    if args.drift:
        print(markdown(DRIFT_HEADER, [drift(fps, args.minutes) for fps in DRIFT_RATES]))


# ---- alignment ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """person: label; points: detected, float32 [T, 68, 3], pixels (y down); sound: float32 [n]."""

    person: str
    points: Tensor
    sound: Tensor


# Pose of landmarks [T, 68, 3], v up, on detected ones [T, 68, 2] (v up), which stand at times of FPS.
Method = Callable[[Tensor, Tensor], Pose]
METHODS: dict[str, Method] = {
    "five-point POS": lambda shape, points: pos_five(shape, points),
    "POS of 68 points": lambda shape, points: pos(shape, points),
}
OURS, OURS_RAW = "skull, smoothed (ours)", "skull"


def alignment(data_dir: Path, split: str) -> None:
    """Two tables: distances, and what the poses themselves do."""
    found = read_clips(data_dir, split)
    model = FaceModel.builtin()
    speak = AudioToMotion.from_pretrained()
    persons = [clip.person for clip in found]
    print(f"{count(persons)}, running speech, {sum(len(clip.points) for clip in found)} frames, 256x256\n")
    distances: dict[tuple[str, str], list[list[float]]] = {}
    behaviour: dict[str, list[list[float]]] = {}
    for clip in found:
        lm3d, raw = frontalise(clip.points, 256, model)
        rest = neutral(model.mean + lm3d, model)
        made = speak(clip.sound, rest - model.mean, raw[0], (256, 256), pose="still", seed=0)
        T = min(len(clip.points), made.n_frames)
        points = clip.points[:T]
        seen = flip_image(points, 256)[..., :2]
        track = pose_track(list(clip.points.numpy()), np.arange(len(clip.points)) / FPS, 256, model)
        for name, shape in (("at rest", rest.repeat(T, 1, 1)), ("generated", model.mean + made.landmarks[:T])):
            poses = {method: solve(shape, seen) for method, solve in METHODS.items()}
            poses |= {OURS_RAW: raw[:T], OURS: track.pose[:T]}
            for method, pose in poses.items():
                away = (pose.project(shape)[..., :2] - seen).norm(dim=-1) / eye_distance(seen)[:, None] * 100
                values = [float(away[:, list(group)].mean()) for group in (RIGID, UNDER_NOSE, range(68))]
                distances.setdefault((name, method), []).append(values)
                if name == "generated":
                    behaviour.setdefault(method, []).append(tremble_and_nod(pose, mouth_opening(seen)))
    rows = [[*key, *(estimate([v[k] for v in values], persons) for k in range(3))] for key, values in distances.items()]
    print(markdown(["landmarks", "pose", "skull, %", "under the nose, %", "all 68, %"], rows), "\n")
    rows = [[key, *(estimate([v[k] for v in values], persons) for k in range(3))] for key, values in behaviour.items()]
    print(markdown(["pose of the generated", "trembles by, °", "place, %", "nod, ° per opening of 1"], rows), "\n")
    off = [own_picture(clip, model) for clip in found]
    rows = [
        [name, *(estimate([each[k][column] for each in off], persons) for column in range(4))]
        for k, name in enumerate(("first frame taken for the picture", "re-enacted"))
    ]
    print("Re-enacted on a picture of the same person; the clip begins where the mouth is widest:\n")
    print(markdown(["", "mouth, %", "lids, %", "turn, °", "all 68, %"], rows), "\n")
    print(f"A still head whose mouth opens to {WIDE}, the landmarks' mouth being closed:\n")
    print(still_head(WIDE), "\n")


def own_picture(clip: Clip, model: FaceModel) -> tuple[list[float], list[float]]:
    """A clip begun where the mouth is widest, and one where it is most closed as the picture: what is off when the

    first frame is taken for the picture, and when it is re-enacted. Mean errors of the mouth's opening and the lids'
    aperture (percent of the eyes' distance and of the eye's width), of the head's turn (degrees) and of the 68 points
    about their mean (percent of the eyes' distance).
    """
    lm3d, pose = frontalise(torch.from_numpy(smooth(clip.points.numpy(), FPS)), 256, model)
    opening = mouth_opening(model.mean + lm3d)
    widest, k = int(opening.argmax()), int(opening.argmin())
    order = torch.arange(widest, widest + len(lm3d)) % len(lm3d)
    truth = Motion(lm3d[order], model.mean, pose[order], float(FPS), (256, 256))
    still = flip_image(pose[k].project(model.mean + lm3d[k]), 256)
    picture = ReferencePicture(np.zeros((256, 256, 3), np.uint8), still, lm3d[k], pose[k])
    first = replace(
        truth,
        landmarks=lm3d[k] + (truth.landmarks - truth.landmarks[0]),
        pose=relative_pose(truth.pose, truth.pose[0], pose[k]),
    )
    off = []
    for made in (first, reenact(truth, picture, model)):
        mouths, lids = (
            abs(f(made.landmarks + model.mean) - f(truth.landmarks + model.mean)) for f in (mouth_opening, aperture)
        )
        turn = angle_rad(made.pose.rotation, truth.pose.rotation).rad2deg().round(decimals=3)
        ours, theirs = (
            each - each.mean(dim=1, keepdim=True) for each in (made.posed()[..., :2], truth.posed()[..., :2])
        )
        ours = ours / made.pose.scale[:, None, None] * truth.pose.scale[:, None, None]
        away = (ours - theirs).norm(dim=-1).mean(dim=1) / eye_distance(theirs)
        off.append([float(each.mean()) for each in (100 * mouths, 100 * lids, turn, 100 * away)])
    return off[0], off[1]


def still_head(opening: float) -> str:
    """What each way to find the pose makes of a still mean face that opens its mouth, the landmarks' stays closed."""
    model = FaceModel.builtin()
    opened = model.mean.clone()
    opened[LIP_STREAM, :] += opening * eye_distance(model.mean) * opening_direction(model)
    skull = list(RIGID)
    poses = {method: solve(model.mean[None], opened[None, :, :2]) for method, solve in METHODS.items()}
    poses[OURS_RAW] = align(model.mean[None, skull], opened[None, skull, :2])
    rows = [
        [method, f"{math.degrees(float(euler_rad(pose.rotation)[0, 0])):+.2f}", f"{100 * float(pose.scale) - 100:+.2f}"]
        for method, pose in poses.items()
    ]
    return markdown(["pose", "nods by, °", "grows by, %"], rows)


def read_clips(data_dir: Path, split: str) -> list[Clip]:
    """The first clip of each person in running speech in which the face is followed for a second."""
    found: dict[str, Clip] = {}
    for row in clips(data_dir, split):
        if row["person"] in found or is_word(row):
            continue
        path = data_dir / "clips" / f"{row['clip_id']}.mp4"
        with VideoReader(path) as video:
            landmarks = list(track_frames(video.frames_at(FPS), FPS))[:MOST_FRAMES]
        try:
            points, kept, _ = bridge_gaps(landmarks, FPS)
        except InputError:
            continue
        if len(points) >= LEAST_FRAMES:
            sound = read_audio(path)[kept.start * 16000 // FPS : kept.stop * 16000 // FPS]
            found[row["person"]] = Clip(row["person"], torch.from_numpy(points), torch.from_numpy(sound.copy()))
    return list(found.values())


def tremble_and_nod(pose: Pose, opening: Tensor) -> list[float]:
    """Of one clip: white noise in the angles (degrees) and in the place (percent of the head's size), both from second

    differences, and by how many degrees the head is seen to nod down as the mouth opens by the eyes' distance (slower
    movements than a second taken out).
    """
    angles = np.rad2deg(np.unwrap(euler_rad(pose.rotation).numpy(), axis=0))
    place = (pose.translation / pose.scale[:, None]).numpy()
    tremble, shake = (float(np.sqrt(np.diff(x, n=2, axis=0) ** 2 / 6).mean()) for x in (angles, place))
    pitch, mouth = (x - uniform_filter1d(x, FPS, mode="nearest") for x in (angles[:, 0], opening.numpy()))
    return [tremble, 100 * shake, float(pitch @ mouth / (mouth @ mouth))]


# ---- the clock ------------------------------------------------------------------------------------------------------

DRIFT_HEADER = ("frames/s", "length", "drift, frames", "most off, frames", "tracked, frames/s")


def sway(time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the face is, and how fast it moves there: pixels sideways, and pixels a second."""
    waves = ((7.0, 0.43, 0.0), (5.0, 0.171, 1.0))  # px, 1/s, rad
    phases = [2 * np.pi * frequency * time_s + start for _, frequency, start in waves]
    place = sum(size * np.sin(phase) for (size, _, _), phase in zip(waves, phases, strict=True))
    speed = sum(2 * np.pi * f * size * np.cos(phase) for (size, f, _), phase in zip(waves, phases, strict=True))
    return np.asarray(place), np.asarray(speed)


def drift(fps: Fraction, minutes: float) -> list[str]:
    """One row: by how many frames of 25 frames/s the head is later at the end than at the start, and at most."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "driver.mp4"
        write_sway(path, fps, int(minutes * 60 * fps))
        started = time.perf_counter()
        track = read_pose(path, FaceModel.builtin())
        rate = len(track.time_s) / (time.perf_counter() - started)
    late = lateness(track, minutes * 60)
    ends = max(1, len(late) // 10)
    cells = [f"{value * FPS:.3f}" for value in (late[-ends:].mean() - late[:ends].mean(), np.abs(late).max())]
    return [f"{fps} = {float(fps):.3f}", f"{minutes:g} min, {len(track.time_s)} frames", *cells, f"{rate:.0f}"]


def write_sway(path: Path, fps: Fraction, n_frames: int) -> None:
    """The example portrait, small, shifted to where it is in the middle of each frame."""
    picture = Image.fromarray(read_picture(PORTRAIT)[:260, :300]).resize((150, 130), Image.Resampling.LANCZOS)
    place, _ = sway((np.arange(n_frames) + 0.5) / float(fps))
    with VideoWriter(path, 150, 130, fps=fps) as writer:
        for shift in place:
            affine = (1, 0, -float(shift), 0, 1, 0)  # from the result's pixels to the picture's
            moved = picture.transform(
                picture.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC, fillcolor=(127, 127, 127)
            )
            writer.write(np.asarray(moved))


def lateness(track: PoseTrack, length_s: float) -> np.ndarray:
    """How late the resampled head is, in seconds, for every WINDOW_S: least squares of its place on 1, the true place

    and the true speed, whose share is the negative delay.
    """
    n_frames = int(length_s * FPS) - 1
    place, speed = sway((np.arange(n_frames) + 0.5) / FPS)
    seen = track.at(n_frames, FPS).translation[:, 0].double().numpy()
    n = min(WINDOW_S * FPS, n_frames)
    late = []
    for start in range(0, n_frames - n + 1, n):
        part = slice(start, start + n)
        columns = np.stack([np.ones(n), place[part], speed[part]], axis=1)
        (_, gain, ahead), *_ = np.linalg.lstsq(columns, seen[part], rcond=None)
        late.append(-ahead / gain)
    return np.array(late)
