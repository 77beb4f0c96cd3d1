"""The face model's fit: how near it comes to real tracks, what it finds again in synthetic ones, how fast it is:

    python -m benchmarks.geometry fit --data DIR

Tracks: all valid frames of the talking clips of one split, pixels of 256x256. The mean face and the identity alone are
placed on all 68 points, each at its best; the whole fit has its pose from the points of the skull, as ever.
Synthetic: persons drawn from the model's prior, heads turned by 11 degrees (standard deviation about each axis), 85
px to a decimetre as in the clips, and noise. Times: the median of several runs, and the slowest.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks.report import clips, count, estimate, is_word, markdown
from common.face.fit import Fit, fit, frontalise
from common.face.model import FaceModel, eye_distance, mouth_opening
from common.face.pos import Pose, align, flip_image
from common.face.rotations import angle_rad, axis_angle, from_euler_rad

HEIGHT = 256
SCALE_PX = 85.0  # pixels of the clips to a unit of the built-in model
TURN_RAD = 0.2
DEPTH_NOISE = 3.0  # of a landmark's depth, beside that of x and y
N_PERSONS, N_FRAMES = 40, 100
N_RUNS = 9
SPEED_FRAMES = 2000
LONG_FRAMES = (1_000, 10_000, 100_000)  # 100 000 frames are 67 minutes
SMOOTHING = (0.0, 0.5, 1.0, 2.0, 4.0)
_PEAK = (
    "import sys; from benchmarks.geometry.fit import peak_mb; print('peak_mb', *peak_mb(int(sys.argv[1]), sys.argv[2]))"
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geometry fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with index.csv and tracks/; without it, no real tracks")
    parser.add_argument("--split", default="test")
    parser.add_argument("--parts", nargs="*", default=["tracks", "smoothing", "synthetic", "speed", "memory"])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.data is not None:
        tracks = list(read_tracks(args.data, args.split))
        if "tracks" in args.parts:
            print(residual_tables(tracks), end="\n\n")
        if "smoothing" in args.parts:
            print(smoothing_table([track for track in tracks if not track[2]]), end="\n\n")
    if "synthetic" in args.parts:
        print(synthetic_table(FaceModel.builtin()), end="\n\n")
    if "speed" in args.parts:
        print(speed_table(), end="\n\n")
    if "memory" in args.parts:
        print(memory_table())


# ---- real tracks ----------------------------------------------------------------------------------------------------

Track = tuple[Tensor, str, bool]  # landmarks [T, 68, 3], the person's label, is a single word


def read_tracks(data_dir: Path, split: str) -> Iterator[Track]:
    for row in clips(data_dir, split):
        with np.load(data_dir / "tracks" / f"{row['clip_id']}.npz") as track:
            points = torch.from_numpy(track["landmarks"][track["valid"]].astype(np.float32))
        if len(points):
            yield points, row["person"], is_word(row)


def residuals_px(model: FaceModel, points: Tensor) -> dict[str, Tensor]:
    """Root mean square distance of the 68 points in the picture, per frame [T], by method."""
    seen = flip_image(points, HEIGHT)
    fits = {"3D points": fit(model, points, HEIGHT), "2D points": fit(model, points[..., :2], HEIGHT)}
    person = model.shape(fits["3D points"].identity)
    return {
        "mean face": placed_px(model.mean, seen),
        "identity": placed_px(person, seen),
        "identity and expression, 3D points": fits["3D points"].residual_px,
        "identity and expression, 2D points": fits["2D points"].residual_px,
    }


def placed_px(shape: Tensor, seen: Tensor) -> Tensor:
    """The same for one shape [68, 3] in its best pose on all points of `seen` [T, 68, 3], v up."""
    error = align(shape, seen[..., :2]).project(shape) - torch.nn.functional.pad(seen[..., :2], (0, 1))
    return error[..., :2].square().sum(dim=-1).mean(dim=-1).sqrt()


def residual_tables(tracks: list[Track]) -> str:
    """Means over a clip's frames, then over persons, running speech and single words told apart."""
    model = FaceModel.builtin()
    rows: list[list[object]] = []
    for name, wanted in (("running speech", False), ("single words (LRW-AR)", True)):
        part = [track for track in tracks if track[2] == wanted]
        persons = [person for _, person, _ in part]
        found = [residuals_px(model, points) for points, _, _ in part]
        eyes = [eye_distance(points[..., :2]) for points, _, _ in part]
        for method in found[0] if found else ():
            px = [float(each[method].mean()) for each in found]
            percent = [100 * float((each[method] / by).mean()) for each, by in zip(found, eyes, strict=True)]
            worst = [float(each[method].quantile(0.95)) for each in found]
            cells = [estimate(values, persons) for values in (px, percent, worst)]
            rows.append([name, count(persons), method, *cells])
    header = ["speech", "n", "fitted", "residual, px", "% of the eyes' distance", "95 % of a clip's frames below, px"]
    return markdown(header, rows)


def smoothing_table(tracks: list[Track]) -> str:
    """What smoothing takes from the tremble of the pose, and what from the mouth."""
    model = FaceModel.builtin()
    persons = [person for _, person, _ in tracks]
    table: dict[float, list[list[float]]] = {}
    for points, _, _ in tracks:
        swing = None
        for smoothing_frames in SMOOTHING:
            found = fit(model, points, HEIGHT, smoothing_frames=smoothing_frames)
            rotation = found.pose.rotation
            turns = axis_angle(rotation[1:] @ rotation[:-1].mT)  # [T - 1, 3]
            tremble = turns.diff(dim=0).norm(dim=-1).square().mean().sqrt().rad2deg()
            opening = mouth_opening(model.shape(found.identity, found.expression)).std()
            swing = opening if swing is None else swing
            values = [float(found.residual_px.mean()), float(tremble), float(opening / swing)]
            table.setdefault(smoothing_frames, []).append(values)
    rows = [
        [f"{smoothing_frames:g}", *(estimate(list(column), persons) for column in zip(*values, strict=True))]
        for smoothing_frames, values in table.items()
    ]
    header = [
        "smoothing_frames",
        "residual, px",
        "tremble of the head, degrees/frame²",
        "share of the mouth's swing left",
    ]
    return f"{count(persons)} of running speech\n\n{markdown(header, rows)}"


# ---- synthetic faces ------------------------------------------------------------------------------------------------


def draw(model: FaceModel, n_frames: int, generator: Generator) -> tuple[Tensor, Tensor, Pose]:
    """A person of the model's prior: identity [K], expression [T, E] and Pose [T]."""
    identity = model.identity_std * torch.randn(len(model.identity_std), generator=generator)
    expression = model.expression_std * torch.randn(n_frames, len(model.expression_std), generator=generator)
    rotation = from_euler_rad(TURN_RAD * torch.randn(n_frames, 3, generator=generator))
    scale = SCALE_PX * (0.1 * torch.randn(n_frames, generator=generator)).exp()
    return identity, expression, Pose(scale, rotation, 128 + 10 * torch.randn(n_frames, 2, generator=generator))


def errors(model: FaceModel, truth: tuple[Tensor, Tensor, Pose], found: Fit) -> dict[str, float]:
    """Of one person, in millimetres (root mean square over the 68 points), degrees, percent and pixels (means)."""
    identity, expression, pose = truth
    mm = 1000 * model.metres_per_unit

    def rms_mm(displacement: Tensor) -> float:
        return mm * float(displacement.square().sum(dim=-1).mean().sqrt())

    of_expression = model.shape(None, found.expression) - model.shape(None, expression)
    angle_deg = angle_rad(found.pose.rotation.double(), pose.rotation.double()).rad2deg()
    return {
        "identity, mm": rms_mm(model.shape(found.identity) - model.shape(identity)),
        "expression, mm": rms_mm(of_expression),
        "of it in the picture, mm": rms_mm((of_expression @ pose.rotation.mT)[..., :2]),
        "rotation, degrees": float(angle_deg.mean()),
        "95 % below": float(angle_deg.quantile(0.95)),
        "scale, %": 100 * float((found.pose.scale / pose.scale).log().abs().mean()),
        "translation, px": float((found.pose.translation - pose.translation).norm(dim=-1).mean()),
    }


def synthetic_table(model: FaceModel, n_persons: int = N_PERSONS, n_frames: int = N_FRAMES) -> str:
    """Means over persons; the first row is what knowing nothing of the person comes to."""
    table: dict[tuple[str, str], list[dict[str, float]]] = {}
    for person in range(n_persons):
        generator = Generator().manual_seed(person)
        truth = draw(model, n_frames, generator)
        exact = truth[2].project(model.shape(truth[0], truth[1]))
        noise = torch.randn(exact.shape, generator=generator) * torch.tensor([1.0, 1.0, DEPTH_NOISE])
        nothing = Fit(torch.zeros_like(truth[0]), torch.zeros_like(truth[1]), truth[2], torch.zeros(n_frames))
        spread = errors(model, truth, nothing)
        unknown = {name: value for name, value in spread.items() if name.endswith("mm")}
        table.setdefault(("–", "mean face, true pose"), []).append(unknown)
        for sigma_px in (0.0, 0.5, 1.0, 2.0):
            seen = flip_image(exact + sigma_px * noise, HEIGHT)
            for name, points in (("3D", seen), ("2D", seen[..., :2])):
                found = fit(model, points, HEIGHT)
                table.setdefault((f"{sigma_px:g}", name), []).append(errors(model, truth, found))
    fields = list(table["1", "3D"][0])
    rows = [
        [*key, *(f"{np.mean([each[field] for each in found]):.2f}" if field in found[0] else "–" for field in fields)]
        for key, found in table.items()
    ]
    title = f"{n_persons} persons of {n_frames} frames; noise of depth {DEPTH_NOISE:g} times that of x and y"
    return f"{title}\n\n{markdown(['noise, px', 'points', *fields], rows)}"


# ---- speed and memory -----------------------------------------------------------------------------------------------


def many_directions(n_identity: int, n_expression: int) -> FaceModel:
    """The built-in face with as many directions as a published model has, made of noise: for its speed alone."""
    mean = FaceModel.builtin().mean
    bases = 0.02 * torch.randn(n_identity + n_expression, *mean.shape, generator=Generator().manual_seed(0))
    ones = torch.ones(n_identity + n_expression)
    return FaceModel(
        mean, bases[:n_identity], bases[n_identity:], ones[:n_identity], ones[n_identity:], 0.1, "of noise"
    )


def speed_table(n_frames: int = SPEED_FRAMES, n_runs: int = N_RUNS) -> str:
    """Frames per second on one thread and on all cores."""
    builtin = FaceModel.builtin()
    identity, expression, pose = draw(builtin, n_frames, Generator().manual_seed(0))
    exact = pose.project(builtin.shape(identity, expression))
    seen = flip_image(exact + torch.randn(exact.shape, generator=Generator().manual_seed(1)), HEIGHT)
    bfm, flame = many_directions(80, 64), many_directions(300, 103)
    calls: Mapping[str, Callable[[], object]] = {
        "fit, built-in (24 + 32), 3D points": lambda: fit(builtin, seen, HEIGHT),
        "fit, built-in, 2D points": lambda: fit(builtin, seen[..., :2], HEIGHT),
        "fit, built-in, 3D points, smoothed": lambda: fit(builtin, seen, HEIGHT, smoothing_frames=1.0),
        "fit, as many directions as BFM (80 + 64)": lambda: fit(bfm, seen, HEIGHT),
        "fit, as many directions as FLAME (300 + 103)": lambda: fit(flame, seen, HEIGHT),
        "frontalise, built-in": lambda: frontalise(seen, HEIGHT, builtin),
    }
    load = f"load average before the runs {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    n_cores = os.cpu_count() or 1
    rows = []
    for name, call in calls.items():
        cells = []
        for n_threads in dict.fromkeys((1, n_cores)):
            torch.set_num_threads(n_threads)
            call()
            seconds = [timed(call) for _ in range(n_runs)]
            cells += [f"{n_frames / float(np.median(seconds)):.0f}", f"{n_frames / max(seconds):.0f}"]
        rows.append([name, *cells])
    torch.set_num_threads(1)
    header = [f"{n_frames} frames"]
    for n_threads in dict.fromkeys((1, n_cores)):
        header += [f"frames/s, {n_threads} thread{'s' * (n_threads > 1)}, median of {n_runs}", "slowest"]
    return f"{n_cores} cores, {load}\n\n{markdown(header, rows)}"


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def memory_table() -> str:
    """Peak memory of long videos, in processes of their own."""
    rows = []
    for name in ("fit", "fit, smoothed", "frontalise"):
        for n_frames in LONG_FRAMES:
            command = [sys.executable, "-c", _PEAK, str(n_frames), name]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak, arrays = (float(word) for word in text.split("peak_mb")[1].split())
            rows.append([name, n_frames, f"{peak:.0f} MB", f"{arrays:.0f} MB"])
    return markdown(["", "frames", "peak of the process", "of it landmarks and results"], rows)


def peak_mb(n_frames: int, name: str) -> tuple[float, float]:
    """The largest resident set of this process, which does nothing else, and the size of the arrays in and out; MB."""
    torch.set_num_threads(1)
    model = FaceModel.builtin()
    identity, expression, pose = draw(model, 1000, Generator().manual_seed(0))
    clip = flip_image(pose.project(model.shape(identity, expression)), HEIGHT)
    points = clip.repeat(n_frames // 1000, 1, 1)
    results: tuple[Tensor, ...]
    if name == "frontalise":
        lm3d, pose = frontalise(points, HEIGHT, model)
        results = (lm3d, pose.scale, pose.rotation, pose.translation)
    else:
        found = fit(model, points, HEIGHT, smoothing_frames=1.0 if name == "fit, smoothed" else 0.0)
        results = (found.expression, found.residual_px, found.pose.scale, found.pose.rotation, found.pose.translation)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of Linux; macOS counts bytes
    return peak_kib / 1024, sum(each.numel() * each.element_size() for each in (points, *results)) / 2**20
