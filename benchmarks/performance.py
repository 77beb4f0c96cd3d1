"""What stage one costs: seconds per minute of speech and memory by length, and the price of a short delay:

    python -m benchmarks.performance [--seconds 10 60 1800] [--blocks 8 16 32] [--weights small/a2m]

Each length runs in a process of its own, on the example's recording repeated; models are loaded before the clock
starts. Seconds are those of one core: what else the computer is doing hardly changes them. Memory is the largest
resident set so far, before (imports, weights) and after. Streaming takes the speech in pieces of a tenth of a second;
its delay is from the beginning of a block to when it can be made, without the computing.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from a2m.hearing import live_features
from a2m.model import AToMNet
from a2m.pipeline import AudioToMotion
from a2m.speech import analyse
from a2m.streaming import Schedule
from benchmarks.openings import ATOM, load_atom
from benchmarks.report import markdown, peak_memory_mb, run_main
from common.audio import FPS, SAMPLE_RATE_HZ
from common.face.pos import Pose
from common.media import read_audio

SPEECH = Path(__file__).resolve().parents[1] / "examples" / "speech.wav"
_PIECE = SAMPLE_RATE_HZ // 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="*", default=[10.0, 60.0, 1800.0])
    parser.add_argument("--blocks", type=int, nargs="*", default=[8, 16, 32], help="of streaming, beside the longest")
    parser.add_argument("--weights", default=ATOM, help="name or folder")
    parser.add_argument("--steps", type=int, help="of sampling (default: what the weights say)")
    args = parser.parse_args()
    rows: list[list[object]] = []
    for seconds in args.seconds:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            spent_s, before_mb, peak_mb = process.submit(cost, seconds, args.weights, args.steps).result()
        rows.append([f"{seconds:g} s", f"{spent_s:.1f} s", f"{60 * spent_s / seconds:.2f} s"])
        rows[-1] += [f"{before_mb:.0f} MB", f"{peak_mb:.0f} MB"]
    if rows:
        print(markdown(["speech", "to motion", "per minute", "memory before", "peak memory"], rows), "\n")
    torch.set_num_threads(1)
    print(streaming(load_atom(args.weights), args.blocks, args.steps))


def speech(seconds: float) -> Tensor:
    """The example's, repeated: [n]."""
    return torch.from_numpy(np.resize(read_audio(SPEECH), round(seconds * SAMPLE_RATE_HZ)))


def cost(seconds: float, weights: str, n_steps: int | None) -> tuple[float, float, float]:
    """A core's seconds for `AudioToMotion`'s call, the process's peak memory in MB before and after it."""
    torch.set_num_threads(1)
    pipeline, audio = AudioToMotion.from_pretrained(weights), speech(seconds)
    reference, pose = torch.zeros(68, 3), Pose(torch.tensor(90.0), torch.eye(3), torch.tensor([128.0, 128.0]))
    before_mb, started = peak_memory_mb(), time.process_time()
    pipeline(audio, reference, pose, (256, 256), n_steps=n_steps)
    return time.process_time() - started, before_mb, peak_memory_mb()


def streaming(model: AToMNet, blocks: list[int], n_steps: int | None, seconds: float = 30.0) -> str:
    """A table: delay and computing by length of the blocks, the model's own last."""
    audio, own = speech(seconds), Schedule.of(model.config)
    rows: list[list[object]] = []
    for block in sorted({min(block, own.block) for block in [*blocks, own.block]}):
        schedule = Schedule.of(model.config, block)
        spent = np.array(list(block_times(model, audio, block, n_steps)))
        row = [f"{block} frames", f"{schedule.known}", f"{schedule.delay / FPS:.2f} s"]
        rows.append([*row, f"{spent.sum() * 60 / seconds:.2f} s", f"{np.median(spent):.3f} s"])
    return markdown(["block", "frames seen before it", "delay", "computing per minute", "per block"], rows)


def block_times(model: AToMNet, audio: Tensor, block: int, n_steps: int | None) -> Iterator[float]:
    """A core's seconds until each block of a streamed recording [n]."""
    heard = live_features(audio.split(_PIECE), analyse(audio))
    made = model.stream(heard, torch.zeros(68, 3), [Generator().manual_seed(0)], n_steps, block=block)
    started = time.process_time()
    for _ in made:
        yield time.process_time() - started
        started = time.process_time()


if __name__ == "__main__":
    run_main(main)
