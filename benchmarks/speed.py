"""Seconds of computing per second of video by stage, how memory grows with the length, and the networks' arithmetic:

    python -m benchmarks.speed [--seconds 10 300] [-- FLAGS AND OVERRIDES OF generate.py]

Runs generate.py in processes of their own on the example's recording, repeated to each length. Times by
stage are what the program itself prints; the last one is the whole process, start and imports included; memory is its
largest resident set. Floating-point operations are those of matrix products, convolutions and attention, counted as
they run (torch.utils.flop_counter).
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Generator, nn
from torch.utils.flop_counter import FlopCounterMode

from a2m.model import AToMNet
from a2m.sampling import sample
from benchmarks.openings import ATOM, load_atom
from benchmarks.report import markdown, run_main
from common.face import detect
from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.media import read_picture
from m2v.condition import build
from m2v.denoiser import clip_noise, glance
from m2v.pipeline import AUTOENCODER, DENOISER, MCVDM, N_FADE, N_FRAMES

ROOT = Path(__file__).resolve().parents[1]
FPS = 25
# Measured from inside: the peak of children that a parent sees would be that of the largest so far.
RUN = (
    "import resource, runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); "
    "runpy.run_path(sys.argv[0], run_name='__main__'); "
    "print('peak_kib', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="*", default=[10.0, 300.0])
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "portrait.jpg")
    parser.add_argument("flags", nargs="*", help="for generate.py, after --, such as --renderer warp")
    args = parser.parse_args()
    rows: list[list[object]] = []
    header: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in args.seconds:
            times, wall_s, peak_mb = run(args.image, seconds, Path(folder), args.flags)
            spent = [f"{each:.1f} s ({each / seconds:.3f})" for each in (*times.values(), wall_s)]
            rows.append([f"{seconds:g} s", *spent, f"{peak_mb:.0f} MB"])
            header = ["length", *times, "everything, wall clock", "peak memory"]
    if rows:
        print(markdown(header, rows))
        print(f"\nIn brackets: seconds of computing per second of video. Flags: {' '.join(args.flags) or 'none'}.\n")
    print(arithmetic(args.image))


def run(image_path: Path, seconds: float, folder: Path, more_flags: list[str]) -> tuple[dict[str, float], float, float]:
    """Generate a video of that length → seconds by stage, seconds of the whole process, peak memory in MB."""
    speech, rate_hz = soundfile.read(ROOT / "examples" / "speech.wav", dtype="float32")
    n = round(seconds * rate_hz)
    audio_path = folder / f"speech_{seconds:g}.wav"
    soundfile.write(audio_path, np.resize(speech, n), rate_hz)
    flags = ["--audio", str(audio_path), "--image", str(image_path), "--out", str(folder / "out.mp4"), "--overwrite"]
    command = [sys.executable, "-c", RUN, "generate.py", *flags, *more_flags]
    started = time.perf_counter()
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started
    if out.returncode:
        sys.exit(out.stderr)
    peak_kib = int(re.findall(r"peak_kib (\d+)", out.stdout)[0])
    return stage_times(out.stdout.splitlines()[-2]), wall_s, peak_kib / 1024


def stage_times(line: str) -> dict[str, float]:
    """The program's last line, "out.mp4: ... (loading 1.2 s, motion to video 3.4 s)", as seconds by stage."""
    return {name: float(value) for name, value in re.findall(r"([a-z][a-z ]*) ([\d.]+) s(?=[,)])", line)}


# ---- floating-point operations --------------------------------------------------------------------------------------


def arithmetic(image_path: Path) -> str:
    """A table of the built-in networks: parameters, how often each runs, operations per second of video."""
    picture = read_picture(image_path)
    face = flops(lambda: detect.find_faces(picture))
    networks = detect.networks()
    reference = ReferencePicture.of(picture, detect.find_faces(picture)[0].landmarks, FaceModel.builtin())
    atom, video = load_atom(ATOM), MCVDM.from_pretrained(AUTOENCODER, DENOISER)
    sampled, decoded = clip_flops(video, reference)
    per_second = FPS / (N_FRAMES - N_FADE)  # clips
    steps = f"{video.denoiser.config.n_steps} steps a clip"
    rows: list[list[object]] = [
        ["face finder and landmarks", _millions(*networks), "once a picture", f"{face / 1e9:.3g} (in all)"],
        ["AToM-Net", _millions(atom), f"{atom.config.n_steps} steps", f"{speech_flops(atom) / 1e9:.3g}"],
        ["MC-VDM, denoiser", _millions(video.denoiser), steps, f"{sampled * per_second / 1e9:.3g}"],
        ["MC-VDM, decoder", _millions(video.autoencoder), "once a clip", f"{decoded * per_second / 1e9:.3g}"],
    ]
    return markdown(["network", "parameters", "runs", "GFLOP per second of video"], rows)


def flops(work: Callable[[], object]) -> int:
    """Operations of a call; a product and a sum are two."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def speech_flops(model: AToMNet, seconds: int = 10) -> float:
    """AToM-Net's per second of a recording, windows and guidance included."""
    audio = torch.zeros(seconds * FPS, model.config.n_audio_states, model.config.audio_dim)
    generator = Generator().manual_seed(0)

    def work() -> None:
        sample(model, lambda first, last: audio[first:last], len(audio), torch.zeros(68, 3), [generator])

    return flops(work) / seconds


def clip_flops(model: MCVDM, reference: ReferencePicture) -> tuple[int, int]:
    """Of one clip: the denoiser with its conditions, at its own number of steps; the decoder with its conditions."""
    picture = torch.from_numpy(reference.picture.copy()).movedim(-1, 0).float() / 127.5 - 1
    targets = reference.landmarks[:, :2].expand(N_FRAMES, -1, -1)
    conditions = build(picture, reference.landmarks[:, :2], targets).batched()
    side, channels = model.autoencoder.zeros(conditions).height, model.denoiser.config.plane_channels
    generators = [Generator().manual_seed(frame) for frame in range(N_FRAMES)]
    noise = clip_noise(N_FRAMES, side, channels, torch.zeros(channels, side, side), generators)
    sampled = flops(lambda: model.denoiser.sample(glance(conditions), noise))
    decoded = flops(lambda: model.autoencoder.decode(model.autoencoder.zeros(conditions), conditions))
    return sampled, decoded


def _millions(*networks: nn.Module) -> str:
    return f"{sum(p.numel() for network in networks for p in network.parameters()) / 1e6:.1f} M"


if __name__ == "__main__":
    run_main(main)
