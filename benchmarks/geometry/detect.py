"""Landmark conventions and following a face through a video:

    python -m benchmarks.geometry detect --pairs pairs.npz --data DIR [--parts mapping following gaps cuts]

mapping: the measured mapping between FaceMesh's points and iBUG's on people it was not fitted to; pairs.npz is made by
`python -m common.face.conventions pairs`, which says how. following: one clip of each person, each frame from the last
one's landmarks, against finding the face anew in every frame. gaps: frames of tracks are left out and interpolated.
cuts: clips are played one after the other, and each for itself. Distances are in % of the eyes' distance.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import clips, count, estimate, is_word, markdown
from common.face import detect
from common.face.conventions import FACEMESH68, IBUG68, IBUG68_3D, convert, skull_pose
from common.face.conventions_fit import Pairs, usable
from common.face.model import BROWS, EYES, JAW, LIPS, NOSE, FaceModel, eye_distance, mouth_opening
from common.face.rotations import euler_rad
from common.face.track import SAME_SHOT, Follower, bridge_gaps, likeness, thumbnail
from common.media import VideoReader

GROUPS = {"jaw": JAW, "brows": BROWS, "nose": NOSE, "eyes": EYES, "lips": LIPS, "all": tuple(range(68))}
TURNS_DEG = ((0, 10), (10, 20), (20, 30), (30, 90))
GAPS_S = (0.12, 0.2, 0.4, 0.8, 1.6)
FPS = 25.0


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geometry detect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=Path, help="for the mapping")
    parser.add_argument("--data", type=Path, help="folder with index.csv, clips/ and tracks/, for the others")
    parser.add_argument("--split", default="test")
    parser.add_argument("--frames", type=int, default=50, help="of each clip, for following")
    parser.add_argument("--parts", nargs="*", default=["mapping", "following", "gaps", "cuts"])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.pairs is not None and "mapping" in args.parts:
        print(mapping_tables(Pairs.load(args.pairs), args.split), end="\n\n")
    if args.data is not None:
        rows = clips(args.data, args.split)
        if "following" in args.parts:
            print(following_table(args.data, rows, args.frames), end="\n\n")
        if "gaps" in args.parts:
            print(gaps_table(args.data, rows), end="\n\n")
        if "cuts" in args.parts:
            print(cuts_lines(args.data, rows))


# ---- the mapping ----------------------------------------------------------------------------------------------------


def mapping_tables(pairs: Pairs, split: str) -> str:
    """How far two conventions lie from each other, as they are and mapped, by points and by the head's turn."""
    of_split = pairs.part(pairs.split == split)
    pairs = of_split.part(usable(of_split))
    persons = pairs.person.tolist()
    facemesh, ibug = torch.from_numpy(pairs.facemesh), torch.from_numpy(pairs.ibug)
    turn_deg = euler_rad(skull_pose(facemesh, FaceModel.builtin().mean).rotation)[:, 1].abs().rad2deg().numpy()
    cases = {
        "as they are": (facemesh, ibug),
        "facemesh68 to ibug68": (convert(facemesh, FACEMESH68, IBUG68), ibug),
        "ibug68 to facemesh68": (convert(ibug, IBUG68, FACEMESH68), facemesh),
        "facemesh68 to ibug68_3d": (convert(facemesh, FACEMESH68, IBUG68_3D), ibug),
        "there and back (ibug68)": (convert(convert(facemesh, FACEMESH68, IBUG68), IBUG68, FACEMESH68), facemesh),
    }
    errors = {name: apart(one, other) for name, (one, other) in cases.items()}
    by_group = [
        [name, *(estimate(error[:, list(points)].mean(1).tolist(), persons) for points in GROUPS.values())]
        for name, error in errors.items()
    ]
    by_turn = []
    for name, error in errors.items():
        bins = [(turn_deg >= low) & (turn_deg < high) for low, high in TURNS_DEG]
        cells = [
            f"{estimate(error[which].mean(1).tolist(), np.array(persons)[which].tolist())}; jaw "
            f"{error[which][:, list(JAW)].mean():.1f}"
            for which in bins
        ]
        by_turn.append([name, *cells])
    numbers = [((turn_deg >= low) & (turn_deg < high)).sum() for low, high in TURNS_DEG]
    openings = [
        [name, estimate((100 * (mouth_opening(one) - mouth_opening(before)).abs()).tolist(), persons)]
        for name, one, before in (
            ("facemesh68 to ibug68", cases["facemesh68 to ibug68"][0], facemesh),
            ("ibug68 to facemesh68", cases["ibug68 to facemesh68"][0], ibug),
        )
    ]
    return "\n\n".join(
        [
            f"{len(pairs)} of {len(of_split)} pictures, {len(set(persons))} people, split {split}; mean (95 %: people)",
            markdown(["% of the eyes' distance", *GROUPS], by_group),
            markdown(
                ["turned by", *(f"{a}° to {b}° (n = {n})" for (a, b), n in zip(TURNS_DEG, numbers, strict=True))],
                by_turn,
            ),
            markdown(["mouth opening changes by, % of the eyes' distance", ""], openings),
        ]
    )


def apart(one: Tensor, other: Tensor) -> np.ndarray:
    """Distances [N, 68] in the picture, % of the eyes' distance in `other`."""
    distance = (one[..., :2] - other[..., :2]).norm(dim=-1)
    return (100 * distance / eye_distance(other[..., :2])[:, None]).numpy()


# ---- following ------------------------------------------------------------------------------------------------------


def following_table(data_dir: Path, rows: Sequence[dict[str, str]], n_frames: int) -> str:
    """One clip of each person: found, agreement with finding the face anew, distance from the tracks, time."""
    first_of = {row["person"]: row for row in reversed(rows)}
    cells: dict[str, list[float]] = {name: [] for name in ("followed", "anew", "agree", "track", "track_anew", "ratio")}
    persons, n_filled, n_cut, times = [], 0, 0, []
    for row in first_of.values():
        truth = np.load(data_dir / "tracks" / f"{row['clip_id']}.npz")
        with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
            frames = [frame for _, frame in zip(range(n_frames), video.frames_at(FPS), strict=False)]
        follower = Follower(FPS)
        start = time.perf_counter()
        followed = [follower.see(frame) for frame in frames]
        middle = time.perf_counter()
        anew = [next((face.landmarks for face in detect.find_faces(frame)), None) for frame in frames]
        times.append(((middle - start) / len(frames), (time.perf_counter() - middle) / len(frames)))
        if any(points is not None for points in followed):
            _, kept, filled = bridge_gaps(followed, FPS)
            n_filled, n_cut = n_filled + filled, n_cut + len(frames) - (kept.stop - kept.start)
        else:
            n_cut += len(frames)
        persons.append(row["person"])
        tracked = [
            points if valid else None
            for points, valid in zip(truth["landmarks"].astype(np.float32), truth["valid"], strict=True)
        ]
        cells["followed"].append(100 * float(np.mean([points is not None for points in followed])))
        cells["anew"].append(100 * float(np.mean([points is not None for points in anew])))
        cells["agree"].append(distance_of(followed, anew))
        cells["track"].append(distance_of(followed, tracked))
        cells["track_anew"].append(distance_of(anew, tracked))
        cells["ratio"].append(times[-1][1] / times[-1][0])
    follow_ms, anew_ms = 1000 * np.median(np.array(times), axis=0)
    lines = markdown(
        ["", "followed", "found anew in every frame"],
        [
            ["frames with a face, %", estimate(cells["followed"], persons), estimate(cells["anew"], persons)],
            ["apart from each other", estimate(cells["agree"], persons), ""],
            ["apart from FaceMesh's tracks", estimate(cells["track"], persons), estimate(cells["track_anew"], persons)],
            ["ms a frame, median of clips, one thread", f"{follow_ms:.0f}", f"{anew_ms:.0f}"],
        ],
    )
    ratio = estimate(cells["ratio"], persons, is_ratio=True)
    return (
        f"{count(persons)}, up to {n_frames} frames of each\n\n{lines}\n\n"
        f"Anew takes {ratio} times as long; {n_filled} frames were interpolated, {n_cut} cut."
    )


def distance_of(some: Sequence[np.ndarray | None], others: Sequence[np.ndarray | None]) -> float:
    """Mean distance where both have landmarks, % of the eyes' distance; NaN where they never do."""
    pairs = [(a, b) for a, b in zip(some, others, strict=False) if a is not None and b is not None]
    if not pairs:
        return float("nan")
    one, other = (torch.from_numpy(np.stack(each)) for each in zip(*pairs, strict=True))
    return float(apart(one, other).mean())


# ---- gaps and cuts --------------------------------------------------------------------------------------------------


def gaps_table(data_dir: Path, rows: Sequence[dict[str, str]]) -> str:
    """What interpolating over a gap of each length costs, in the middle of clips of running speech of 3 s and more."""
    cells: list[list[object]] = []
    tracks = []
    for row in rows:
        with np.load(data_dir / "tracks" / f"{row['clip_id']}.npz") as track:
            if not is_word(row) and len(track["valid"]) >= 3 * FPS and track["valid"].all():
                tracks.append((row["person"], torch.from_numpy(track["landmarks"].astype(np.float32))))
    for gap_s in GAPS_S:
        n = round(gap_s * FPS)
        errors, mouths, persons = [], [], []
        for person, points in tracks:
            for start in range(5, len(points) - n - 5, n + 10):
                weight = (torch.arange(1, n + 1) / (n + 1)).view(-1, 1, 1)
                filled = (1 - weight) * points[start - 1] + weight * points[start + n]
                truth = points[start : start + n]
                errors.append(float(apart(filled, truth).mean()))
                mouths.append(100 * float((mouth_opening(filled) - mouth_opening(truth)).abs().mean()))
                persons.append(person)
        cells.append([f"{gap_s:g}", len(errors), estimate(errors, persons), estimate(mouths, persons)])
    header = ["gap, s", "n", "landmarks off by, % of the eyes' distance", "mouth opening off by, %"]
    return f"{count([person for person, _ in tracks])}\n\n{markdown(header, cells)}"


def cuts_lines(data_dir: Path, rows: Sequence[dict[str, str]]) -> str:
    """False cuts within clips (there is none in any), and cuts found between the clips of different people."""
    n_frames, n_false, ends = 0, 0, []
    for row in rows:
        before, first = None, None
        with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
            for frame in video.frames_at(FPS):
                seen = thumbnail(frame)
                if before is not None:
                    n_frames += 1
                    n_false += likeness(seen, before) < SAME_SHOT
                first, before = seen if first is None else first, seen
        if first is not None and before is not None:
            ends.append((row["person"], first, before))
    found = [likeness(first, last) < SAME_SHOT for one, _, last in ends for other, first, _ in ends if one != other]
    return (
        f"{n_false} false scene cuts in {n_frames} frames; {100 * np.mean(found):.1f} % of {len(found)} cuts from one "
        "person's clip to another's are found."
    )
