"""What it costs to export ten minutes of a performance: seconds, memory and size of each format.

    python -m benchmarks.exports [--minutes 10] [--take TAKE] [--fps RATE] [--key-errors 0.2 1]

The take is the example's recording, repeated, spoken by the face model's mean face with the built-in weights; or one
that is given. Each file is written in a process of its own, as `python -m common.export convert` does it: the clock
starts when the Motion is in memory and stops when the file is complete, so retiming, ARKit's curves, the mesh's morph
targets and the choice of keys count where a format needs them. Seconds are those of one core; memory is the largest
resident set so far, before (imports and the Motion) and after.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.report import markdown, peak_memory_mb, run_main
from common.export import formats
from common.export.formats import Request
from common.motion import Motion

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One file to write."""

    title: str
    name: str
    is_livelink: bool = False
    key_error_mm: float = 0.0


GLTF = Row("glTF, .glb", "take.glb")
ROWS = (
    GLTF,
    Row("USD, .usda (text)", "take.usda"),
    Row("USD, .usdc (binary)", "take.usdc"),
    Row("Live Link Face, .csv", "take_1_duet.csv", is_livelink=True),
    Row("landmarks, .csv", "take.csv"),
    Row("landmarks, .json", "take.json"),
    Row("landmarks, .npz", "take.npz"),
    Row("C3D", "take.c3d"),
    Row("BVH", "take.bvh"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--take", type=Path, help="a take to export instead: anything that `convert` reads")
    parser.add_argument("--fps", type=float, help="the files' rate (default: the take's, 25)")
    parser.add_argument("--key-errors", type=float, nargs="*", default=[0.2, 1.0], help="mm, a .glb each")
    args = parser.parse_args()
    reduced = [
        replace(GLTF, title=f"{GLTF.title}, keys left out within {error:g} mm", key_error_mm=error)
        for error in args.key_errors
    ]
    with tempfile.TemporaryDirectory() as folder:
        take_path = Path(folder) / "spoken.npz"
        if args.take:
            formats.read(args.take).save(take_path)
        else:
            in_its_own_process(speak, take_path, 60 * args.minutes)
        rows = [[row.title, *in_its_own_process(cost, row, take_path, args.fps)] for row in (*ROWS, *reduced)]
        motion = Motion.load(take_path)
    print(f"{motion.duration_s:.0f} s, {(args.fps or motion.fps):g} keys a second\n")
    print(markdown(["format", "written in", "memory before", "peak memory", "size"], rows))


def in_its_own_process(work: Callable[..., T], *arguments: object) -> T:
    """Peaks are of a process, and one that is started begins with those of the process that starts it: a small one."""
    context = multiprocessing.get_context("spawn")
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # NumPy's; a second one would count as it waits
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(1,)) as process:
        return process.submit(work, *arguments).result()


def speak(take_path: Path, seconds: float) -> None:
    """The example's recording as often as it takes, said by nobody in particular."""
    from a2m.pipeline import AudioToMotion  # here, as it is large
    from benchmarks.performance import speech
    from common.face.framing import ReferencePicture

    pipeline = AudioToMotion.from_pretrained("small/a2m")
    nobody = ReferencePicture.mean(pipeline.face_model)
    pipeline(speech(seconds), nobody.lm3d, nobody.pose, nobody.size).save(take_path)


def cost(row: Row, take_path: Path, fps: float | None) -> list[str]:
    """Seconds to write the file, the process's peak memory before and after it, the file's size."""
    motion = Motion.load(take_path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / row.name
        asked = Request((path,), fps, row.key_error_mm, row.is_livelink)
        before_mb, started = peak_memory_mb(), time.process_time()
        formats.write(motion, asked)
        spent_s, size_mb = time.process_time() - started, path.stat().st_size / 1e6
    return [f"{spent_s:.1f} s", f"{before_mb:.0f} MB", f"{peak_memory_mb():.0f} MB", f"{size_mb:.1f} MB"]


if __name__ == "__main__":
    run_main(main)
