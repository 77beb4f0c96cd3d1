"""Seconds of computing per second of video by stage, and how memory grows with the length:

    python -m benchmarks.speed [--seconds 10 300]

Runs generate.py in processes of their own on the example's recording, repeated to each length. Times by
stage are what the program itself prints; the last one is the whole process, start and imports included; memory is its
largest resident set.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.report import markdown, run_main

ROOT = Path(__file__).resolve().parents[1]
# Measured from inside: the peak of children that a parent sees would be that of the largest so far.
RUN = (
    "import resource, runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); "
    "runpy.run_path(sys.argv[0], run_name='__main__'); "
    "print('peak_kib', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 300.0])
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "portrait.jpg")
    args = parser.parse_args()
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in args.seconds:
            times, wall_s, peak_mb = run(args.image, seconds, Path(folder))
            spent = [f"{each:.1f} s ({each / seconds:.3f})" for each in (*times.values(), wall_s)]
            rows.append([f"{seconds:g} s", *spent, f"{peak_mb:.0f} MB"])
    print(markdown(["length", *times, "everything, wall clock", "peak memory"], rows))
    print("\nIn brackets: seconds of computing per second of video.")


def run(image_path: Path, seconds: float, folder: Path) -> tuple[dict[str, float], float, float]:
    """Generate a video of that length → seconds by stage, seconds of the whole process, peak memory in MB."""
    speech, rate_hz = soundfile.read(ROOT / "examples" / "speech.wav", dtype="float32")
    n = round(seconds * rate_hz)
    audio_path = folder / f"speech_{seconds:g}.wav"
    soundfile.write(audio_path, np.resize(speech, n), rate_hz)
    flags = ["--audio", str(audio_path), "--image", str(image_path), "--out", str(folder / "out.mp4"), "--overwrite"]
    command = [sys.executable, "-c", RUN, "generate.py", *flags]
    started = time.perf_counter()
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started
    if out.returncode:
        sys.exit(out.stderr)
    times = {
        name: float(value)
        for name, value in re.findall(r"([a-z][a-z ]*) ([\d.]+) s(?=[,)])", out.stdout.splitlines()[-2])
    }
    peak_kib = int(re.findall(r"peak_kib (\d+)", out.stdout)[0])
    return times, wall_s, peak_kib / 1024


if __name__ == "__main__":
    run_main(main)
