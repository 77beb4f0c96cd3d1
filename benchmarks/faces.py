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

from benchmarks.report import clips, interval, is_word, markdown
from common.face import detect
from common.face.fit import frontalise
from common.face.model import FaceModel
from common.media import VideoReader, read_picture

LARGE_TURN_DEG = 25.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--no-faces", type=Path, help="folder of pictures without faces, not seen in training")
    parser.add_argument("--every", type=int, default=10, help="every how many frames of a clip (default 10)")
    args = parser.parse_args()
    print(finder_table(args.data, args.no_faces), flush=True)
    print()
    print(landmark_table(args.data, args.every), flush=True)


def finder_table(data_dir: Path, no_faces_dir: Path | None) -> str:
    """Share of pictures whose face is found (box overlap with the truth), and of faceless ones in which one is seen."""
    groups: dict[str, list[tuple[np.ndarray, tuple[float, float, float, float]]]] = defaultdict(list)
    with (data_dir / "portraits.csv").open() as file:
        for row in csv.DictReader(file):
            if row["split"] == "train" and row["facemesh_found"] == "1":
                continue
            box = tuple(float(row[f"face_{side}"]) for side in ("x0", "y0", "x1", "y1"))
            name = row["kind"] if row["split"] != "train" else "FaceMesh finds none (cartoons)"
            groups[name].append((read_picture(data_dir / "portraits" / f"{row['name']}.jpg"), box))  # type: ignore[arg-type]
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
        ours = [_hit(_face_box(detect.find_faces(picture)), box) for picture, box in pictures]
        cascade = [_hit(_square_box(detect.propose_by_cascade(picture)), box) for picture, box in pictures]
        rows.append(
            [name, len(pictures), f"{sum(ours)} ({np.mean(ours):.1%})", f"{sum(cascade)} ({np.mean(cascade):.1%})"]
        )
    # scikit-image's pictures that are not in `read_backgrounds`: the networks were trained on those.
    unseen = [
        skimage.data.stereo_motorcycle()[0],
        skimage.color.gray2rgb(skimage.data.cell()),
        skimage.data.colorwheel(),
    ]
    rows.append(_false_alarms("no face: scikit-image", unseen))
    if no_faces_dir:
        paths = sorted(path for path in no_faces_dir.iterdir() if path.is_file())
        rows.append(_false_alarms(f"no face: {no_faces_dir.name}", [read_picture(path) for path in paths]))
    return markdown(["pictures", "n", "found: ours", "found: LBP cascade"], rows)


def _false_alarms(name: str, pictures: list[np.ndarray]) -> list[object]:
    ours = [bool(detect.find_faces(picture)) for picture in pictures]
    cascade = [bool(detect.propose_by_cascade(picture)) for picture in pictures]
    return [name, len(pictures), f"{sum(ours)} false", f"{sum(cascade)} false"]


def _face_box(faces: list[detect.Face]) -> tuple[float, float, float, float] | None:
    return faces[0].box if faces else None


def _square_box(squares: list[detect.Square]) -> tuple[float, float, float, float] | None:
    if not squares:
        return None
    square, half = squares[0], squares[0].side / 2
    return square.x - half, square.y - half, square.x + half, square.y + half


def _hit(box: tuple[float, float, float, float] | None, truth: tuple[float, float, float, float]) -> bool:
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
    errors: dict[str, list[tuple[float, str]]] = defaultdict(list)
    missed: dict[str, int] = defaultdict(int)
    table = np.load(data_dir / "portraits_landmarks.npz")
    truth = dict(zip(table["names"].tolist(), table["landmarks"], strict=True))
    with (data_dir / "portraits.csv").open() as file:
        for row in csv.DictReader(file):
            if row["split"] == "train" or row["facemesh_found"] != "1":
                continue
            name = "portraits: photos" if row["kind"] == "photo" else "portraits: painted, drawn, generated"
            result = detect.detect([read_picture(data_dir / "portraits" / f"{row['name']}.jpg")])
            missed[name] += not result.found[0]
            if result.found[0]:
                errors[name].append((_nme(result.landmarks[0], truth[row["name"]]), row["name"]))
    for row in clips(data_dir, "test"):
        track = np.load(data_dir / "tracks" / f"{row['clip_id']}.npz")
        points = torch.from_numpy(track["landmarks"].astype(np.float32))
        _, pose = frontalise(points, 256, model)
        turn_deg = torch.rad2deg(torch.acos(pose.rotation[:, 2, 2].clamp(-1, 1)))
        kind = "clips: single words (LRW-AR)" if is_word(row) else "clips: running speech"
        with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
            for k, (_, frame) in enumerate(video):
                if k % every or k >= len(points) or not track["valid"][k]:
                    continue
                names = [kind] + (
                    [f"of these, turned by more than {LARGE_TURN_DEG:g}°"] if turn_deg[k] > LARGE_TURN_DEG else []
                )
                result = detect.detect([frame])
                for name in names:
                    missed[name] += not result.found[0]
                    if result.found[0]:
                        errors[name].append((_nme(result.landmarks[0], points[k].numpy()), row["person"]))
    rows: list[list[object]] = []
    for name, found in errors.items():
        values, persons = zip(*found, strict=True)
        low, high = interval(values, persons)
        mean = np.mean([np.mean([v for v, p in found if p == person]) for person in set(persons)])
        rows.append(
            [
                name,
                len(values),
                len(set(persons)),
                missed[name],
                f"{mean:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{np.median(values):.2f}",
            ]
        )
    return markdown(
        ["pictures", "n", "people", "not found", "NME %, mean over people", "95 %", "median of pictures"], rows
    )


def _nme(points: np.ndarray, truth: np.ndarray) -> float:
    eye = math.hypot(*(truth[36, :2] - truth[45, :2]))
    return 100 * float(np.linalg.norm(points[:, :2] - truth[:, :2], axis=1).mean()) / eye


if __name__ == "__main__":
    main()
