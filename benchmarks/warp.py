"""The warp renderer against the picture repeated, on the test clips, people never seen:

    python -m benchmarks.warp --data DIR

Reference picture: the first valid frame. Motion: the clip's own track, once as it is and once as generate.py would see
it (a Motion, relative to the first frame, large turns held back). Every tenth frame, 256×256; means over persons.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import by_person, clips, interval, is_word, markdown, run_main
from common.face.fit import frontalise
from common.face.framing import ReferencePicture, frame_face
from common.face.model import FaceModel
from common.media import VideoReader
from common.metrics.image import mouth_box, psnr, ssim
from common.motion import Motion
from m2v.drive import drive
from m2v.preview import LIMITS, WarpRenderer
from m2v.source import Still, as_picture

METHODS = (
    "picture repeated",
    "warp, exact",
    "warp, through a Motion",
    "exact − repeated",
    "through a Motion − repeated",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--every", type=int, default=10)
    args = parser.parse_args()
    rows: list[list[object]] = []
    measured = [(row, measure(args.data, row, args.every)) for row in clips(args.data, args.split)]
    for name, wanted in (("running speech", False), ("single words (LRW-AR)", True)):
        part = [(row["person"], values) for row, values in measured if is_word(row) == wanted and values is not None]
        persons = [person for person, _ in part]
        for k, method in enumerate(METHODS):
            cells: list[object] = [name, method, len(part), len(set(persons))]
            for metric in range(4):
                values = [v[k - 2, metric] - v[0, metric] if k > 2 else v[k, metric] for _, v in part]
                low, high = interval(values, persons)
                digits = 1 if metric % 2 == 0 else 3
                cells.append(f"{by_person(values, persons).mean():.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
            rows.append(cells)
    header = ["speech", "method", "clips", "people", "PSNR dB", "SSIM", "mouth PSNR dB", "mouth SSIM"]
    print(markdown(header, rows))


def measure(data_dir: Path, row: dict[str, str], every: int) -> np.ndarray | None:
    """[3 methods, PSNR, SSIM, mouth PSNR, mouth SSIM], means over the frames of one clip."""
    track = np.load(data_dir / "tracks" / f"{row['clip_id']}.npz")
    valid, landmarks = track["valid"], track["landmarks"].astype(np.float32)
    with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
        frames = [frame for _, frame in video]
    first = int(np.flatnonzero(valid)[0])
    chosen = [k for k in range(first + every, min(len(frames), len(valid)), every) if valid[k]]
    if not chosen:
        return None
    model = FaceModel.builtin()
    reference = ReferencePicture.of(frames[first], landmarks[first], model)
    crop = frame_face(landmarks[first], 256, 256)  # small faces are cut out, here as in the reference
    lm3d, pose = frontalise(torch.from_numpy(landmarks[first:]), frames[first].shape[0], model)
    motion = Motion(lm3d, model.mean, pose, 25.0, (256, 256))
    driven = drive(motion, reference, model.mean, LIMITS)[[k - first for k in chosen]]
    renderer = WarpRenderer(Still(reference))
    exact, held = (
        [as_picture(frame) for frame in renderer.render(target)]
        for target in (torch.from_numpy(crop.points(landmarks[chosen])), driven)
    )
    scores = []
    for j, k in enumerate(chosen):
        truth = crop.cut(frames[k])
        box = mouth_box(crop.points(landmarks[k]), truth.shape[0])
        shown = (reference.picture, exact[j], held[j])
        scores.append([[*_score(each, truth), *_score(each[box], truth[box])] for each in shown])
    return np.mean(scores, axis=0)


def _score(picture: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return psnr(picture, truth), ssim(picture, truth)


if __name__ == "__main__":
    run_main(main)
