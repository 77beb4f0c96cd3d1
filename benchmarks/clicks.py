"""Are sound and picture together, at the start and after ten minutes?

    python -m benchmarks.clicks [--minutes 10]

Writes a recording of clicks and a Motion whose mouth is thrown open for one frame at each click, renders them with
`generate.py --motion`, decodes the video and compares: the sample at which a click sounds, the frame that shows it.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.report import markdown, run_main
from common.face import detect
from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.face.pos import Pose
from common.media import VideoReader, read_audio, read_picture
from common.motion import Motion, Reference

ROOT = Path(__file__).resolve().parents[1]
RATE_HZ, FPS = 48_000, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "portrait.jpg")
    args = parser.parse_args()
    n_frames = round(args.minutes * 60 * FPS) + 2 * FPS
    asked = [5, FPS, 2 * FPS + 7, n_frames // 2 + 3, n_frames - 2 * FPS + 9, n_frames - FPS, n_frames - 4]
    with tempfile.TemporaryDirectory() as folder:
        video_path = render_clicks(args.image, asked, n_frames, Path(folder))
        sounded, shown, n_shown = read_clicks(video_path, asked)
    rows: list[list[object]] = []
    for frame, sample, seen in zip(asked, sounded, shown, strict=True):
        wanted = click_sample(frame)
        rows.append(
            [f"{frame / FPS:.2f} s", frame, seen, wanted, sample, f"{1000 * (sample - wanted) / RATE_HZ:.2f} ms"]
        )
    print(markdown(["click at", "frame", "frame that shows it", "sample", "sample heard", "off by"], rows))
    print(f"\n{n_shown} frames of {n_frames}")


def click_sample(frame: int) -> int:
    """The middle of a frame."""
    return round((frame + 0.5) * RATE_HZ / FPS)


def render_clicks(image_path: Path, asked: list[int], n_frames: int, folder: Path) -> Path:
    picture = read_picture(image_path)
    model = FaceModel.builtin()
    reference = ReferencePicture.of(picture, detect.find_faces(picture)[0].landmarks, model)
    sound = np.zeros(n_frames * RATE_HZ // FPS, np.float32)
    landmarks = reference.lm3d.repeat(n_frames, 1, 1)
    drop = 0.25 * (model.mean[42:48].mean(0) - model.mean[36:42].mean(0)).norm()
    for frame in asked:
        sound[click_sample(frame) : click_sample(frame) + 24] = 0.9
        landmarks[frame, [5, 6, 7, 8, 9, 10, 11, *range(55, 60), 65, 66, 67], 1] -= drop
    pose = Pose(
        *(
            each.expand(n_frames, *each.shape)
            for each in (reference.pose.scale, reference.pose.rotation, reference.pose.translation)
        )
    )
    size = reference.picture.shape[1], reference.picture.shape[0]
    rest = Reference(reference.lm3d, reference.pose)
    provenance = {"made_by": "benchmarks.clicks"}
    motion = Motion(landmarks, model.mean, pose, FPS, size, model.name, model.convention, provenance, rest)
    motion.save(folder / "clicks.npz")
    soundfile.write(folder / "clicks.wav", sound, RATE_HZ)
    command = [sys.executable, "generate.py", "--audio", str(folder / "clicks.wav"), "--image", str(image_path)]
    command += ["--motion", str(folder / "clicks.npz"), "--out", str(folder / "clicks.mp4")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "clicks.mp4"


def read_clicks(video_path: Path, asked: list[int]) -> tuple[list[int], list[int], int]:
    """Where each click sounds (sample) and shows (frame) in the video, looked for within half a second."""
    with VideoReader(video_path) as video:
        first: np.ndarray | None = None
        change = []
        for _, frame in video:
            first = frame.astype(np.int16) if first is None else first
            change.append(float(np.abs(frame - first).mean()))
    sound = np.abs(read_audio(video_path, RATE_HZ))
    sounded, shown = [], []
    for wanted in asked:
        low = max(0, wanted - FPS // 2)
        shown.append(low + int(np.argmax(change[low : wanted + FPS // 2])))
        start = max(0, click_sample(wanted) - RATE_HZ // 2)
        part = sound[start : click_sample(wanted) + RATE_HZ // 2]
        sounded.append(start + int(np.flatnonzero(part > 0.5 * part.max())[0]))
    return sounded, shown, len(change)


if __name__ == "__main__":
    run_main(main)
