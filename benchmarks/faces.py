"""How often the face finder finds, how seldom it sees faces where there are none, and how exact the landmarks are:

    python -m benchmarks.faces --data DIR [--no-faces DIR]

Held-out portraits (splits `test` and `exclude` of portraits.csv) and the test clips; beside the LBP cascade.
The truth of the landmarks is FaceMesh's track, so the figure is agreement with FaceMesh, not with a human.
"""

import argparse
import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import skimage.color
import skimage.data
import torch

from benchmarks.report import by_person, clips, interval, is_word, markdown, run_main
from common.face import detect
from common.face.fit import frontalise
from common.face.model import FaceModel
from common.face.pos import Pose
from common.media import VideoReader, read_picture

LARGE_TURN_DEG = 25.0
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--no-faces", type=Path, help="folder of pictures without faces, not seen in training")
    parser.add_argument("--every", type=int, default=20, help="every how many frames of a clip (default 20)")
    args = parser.parse_args()
    print(finder_table(args.data, args.no_faces), flush=True)
    print()
    print(landmark_table(args.data, args.every), flush=True)


def finder_table(data_dir: Path, no_faces_dir: Path | None) -> str:
    """Share of pictures whose face is found (box overlap with the truth), and of faceless ones in which one is seen."""
    groups: dict[str, list[tuple[np.ndarray, Box]]] = defaultdict(list)
    for row in held_out_portraits(data_dir):
        x0, y0, x1, y1 = (float(row[f"face_{side}"]) for side in ("x0", "y0", "x1", "y1"))
        picture = read_picture(data_dir / "portraits" / f"{row['name']}.jpg")
        groups[f"portraits: {row['kind'].replace('_', ' ')}"].append((picture, (x0, y0, x1, y1)))
    seen_persons = set()
    for row in clips(data_dir, "test"):
        if row["person"] in seen_persons:
            continue
        seen_persons.add(row["person"])
        track = np.load(data_dir / "tracks" / f"{row['clip_id']}.npz")
        first = int(np.flatnonzero(track["valid"])[0])
        with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
            frame = next(frame for k, (_, frame) in enumerate(video) if k == first)
        points = track["landmarks"][first].astype(np.float32)
        groups["first frames of test clips"].append((frame, detect.Face(points, 1.0).box))
    rows: list[list[object]] = []
    for name, pictures in groups.items():
        ours = [hit(_face_box(detect.find_faces(picture)), box) for picture, box in pictures]
        cascade = [hit(_square_box(detect.propose_by_cascade(picture)), box) for picture, box in pictures]
        rows.append([name, len(pictures), _share(ours), _share(cascade)])
    # scikit-image's pictures that are not in `read_backgrounds`: the networks were trained on those.
    unseen = [
        skimage.data.stereo_motorcycle()[0],
        skimage.color.gray2rgb(skimage.data.cell()),
        skimage.data.colorwheel(),
    ]
    rows.append(_false_alarms("no face: scikit-image", unseen))
    if no_faces_dir:
        paths = sorted(path for path in no_faces_dir.iterdir() if path.is_file())
        rows.append(_false_alarms("no face: --no-faces", [read_picture(path) for path in paths]))
    return markdown(["pictures", "n", "found: ours", "found: LBP cascade"], rows)


def held_out_portraits(data_dir: Path) -> list[dict[str, str]]:
    """Rows of portraits.csv that no training has seen and in which FaceMesh found a face."""
    with (data_dir / "portraits.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["split"] != "train" and row["facemesh_found"] == "1"]


def _share(hits: list[bool]) -> str:
    """Count, and Wilson's 95 % interval of the share: one miss in thirty says little."""
    n, k, z = len(hits), sum(hits), 1.96
    centre, spread = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    low, high = (centre - spread) / (n + z * z), (centre + spread) / (n + z * z)
    return f"{k} = {k / n:.0%} ({low:.0%}-{high:.0%})"


def _false_alarms(name: str, pictures: list[np.ndarray]) -> list[object]:
    ours = [bool(detect.find_faces(picture)) for picture in pictures]
    cascade = [bool(detect.propose_by_cascade(picture)) for picture in pictures]
    return [name, len(pictures), f"{sum(ours)} false", f"{sum(cascade)} false"]


def _face_box(faces: list[detect.Face]) -> Box | None:
    return faces[0].box if faces else None


def _square_box(squares: list[detect.Square]) -> Box | None:
    if not squares:
        return None
    square, half = squares[0], squares[0].side / 2
    return square.x - half, square.y - half, square.x + half, square.y + half


def hit(box: Box | None, truth: Box) -> bool:
    """Intersection over union above 0.4: the boxes' definitions differ by the forehead."""
    if box is None:
        return False
    width = min(box[2], truth[2]) - max(box[0], truth[0])
    height = min(box[3], truth[3]) - max(box[1], truth[1])
    if width <= 0 or height <= 0:
        return False
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, truth)]
    return width * height / (sum(areas) - width * height) > 0.4


def landmark_table(data_dir: Path, every: int) -> str:
    """Mean error of the 68 points in the picture, by the distance of the outer eye corners, in percent."""
    model = FaceModel.builtin()
    table = Errors()
    known = np.load(data_dir / "portraits_landmarks.npz")
    truth = dict(zip(known["names"].tolist(), known["landmarks"], strict=True))
    for row in held_out_portraits(data_dir):
        name = "photos" if row["kind"] == "photo" else "portraits painted, drawn or generated"
        picture = read_picture(data_dir / "portraits" / f"{row['name']}.jpg")
        _, pose = frontalise(torch.from_numpy(truth[row["name"]])[None], picture.shape[0], model)
        table.add(name, row["name"], picture, truth[row["name"]], _turn_deg(pose)[0])
    for row in clips(data_dir, "test"):
        track = np.load(data_dir / "tracks" / f"{row['clip_id']}.npz")
        points = track["landmarks"].astype(np.float32)
        _, pose = frontalise(torch.from_numpy(points), 256, model)
        turns_deg = _turn_deg(pose)
        name = "clips: single words (LRW-AR)" if is_word(row) else "clips: running speech"
        with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
            for k, (_, frame) in enumerate(video):
                if k % every == 0 and k < len(points) and track["valid"][k]:
                    table.add(name, row["person"], frame, points[k], turns_deg[k])
    header = ["pictures", "n", "people", "not found", "NME %, mean over people", "95 %", "median of pictures"]
    return markdown(header, table.rows())


class Errors:
    """Errors by group of pictures, with those of turned heads once more in groups of their own."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self.missed: dict[str, int] = defaultdict(int)

    def add(self, name: str, person: str, picture: np.ndarray, truth: np.ndarray, turn_deg: float) -> None:
        names = [name] + ([f"{name}, turned by more than {LARGE_TURN_DEG:g}°"] if turn_deg > LARGE_TURN_DEG else [])
        true_box = detect.Face(truth, 1.0).box
        # Of several faces the one that the truth describes: another one's error would say nothing.
        face = next((face for face in detect.find_faces(picture) if hit(face.box, true_box)), None)
        for each in names:
            if face is None:
                self.missed[each] += 1
            else:
                self.found[each].append((_nme(face.landmarks, truth), person))

    def rows(self) -> list[list[object]]:
        rows: list[list[object]] = []
        for name, errors in self.found.items():
            values, persons = zip(*errors, strict=True)
            low, high = interval(values, persons)
            mean, median = by_person(values, persons).mean(), np.median(values)
            count = [name, len(values), len(set(persons)), self.missed[name]]
            rows.append([*count, f"{mean:.2f}", f"{low:.2f}-{high:.2f}", f"{median:.2f}"])
        return rows


def _turn_deg(pose: Pose) -> np.ndarray:
    """How far heads are turned away from the camera, [T] degrees."""
    return torch.rad2deg(torch.acos(pose.rotation[:, 2, 2].clamp(-1, 1))).numpy()


def _nme(points: np.ndarray, truth: np.ndarray) -> float:
    eye = math.hypot(*(truth[36, :2] - truth[45, :2]))
    return 100 * float(np.linalg.norm(points[:, :2] - truth[:, :2], axis=1).mean()) / eye


if __name__ == "__main__":
    run_main(main)
