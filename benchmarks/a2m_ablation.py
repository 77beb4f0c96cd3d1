"""The paper's Table 3 in small: what the reference and the two streams bring to AToM-Net.

    python -m benchmarks.a2m_ablation --data DIR --out RUNS [--steps 500] [--split val] [KEY=VALUE ...]

Three models that differ by two switches: one stream that hears and sees no reference (the baseline), one that also sees
the reference, and two streams (AToM-Net itself). All else is alike: the same samples in the same order, the same noise,
as many steps. KEY=VALUE are overrides of train_a2m.py for all three: `lags=FILE`, `model=paper hubert=DIR`. Runs that
lie in RUNS already are gone on with, or taken as they are where they have ended.

The distance of the landmarks (LMD) is taken in the frontal face, x and y, in percent of the eyes' distance. Here all
three diffuse the residual to the reference, which is added again: what the baseline lacks is to see the face.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

import train_a2m
from a2m.data import Clip, read_clips, read_lags, realigned
from a2m.hearing import clip_features, load_hubert, with_states
from a2m.model import AToMNet
from a2m.sampling import clip_reference, sample
from benchmarks.openings import STILL, load_atom, score, shown
from benchmarks.report import Column, count, run_main, table
from common.command import compose
from common.face.model import LIP_STREAM, REST, FaceModel
from common.face.mouth import keep_lips_apart, lip_gap
from common.memory import keep_freed_memory
from common.metrics.motion import landmark_distance

BASELINE, REFERENCE, STREAMS = "baseline", "+ reference", "+ two streams"
VARIANTS = {
    BASELINE: ("baseline", ["model.has_reference=false", "model.has_streams=false"]),
    REFERENCE: ("reference", ["model.has_streams=false"]),
    STREAMS: ("streams", []),
}
PAIRS = [(REFERENCE, BASELINE), (STREAMS, REFERENCE), (STREAMS, BASELINE), (STREAMS, STILL)]


@dataclass(frozen=True)
class Quality:
    """Of samples the mean over them; distances in percent of the eyes' distance."""

    face: float  # of all 68 landmarks
    lips: float
    lips_course: float  # about their means
    correlation: float  # of the mouth's opening, as the rest
    amplitude: float
    energy: float


COLUMNS = (
    Column("LMD, face %", "face"),
    Column("lips %", "lips"),
    Column("lips % about the mean", "lips_course"),
    Column("correlation", "correlation"),
    Column("amplitude", "amplitude"),
    Column("energy score", "energy"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the three runs")
    parser.add_argument("--steps", type=int, default=500, help="of training, each (default 500: minutes of one core)")
    parser.add_argument("--split", default="val", choices=["val", "test"])
    parser.add_argument("--seeds", type=int, default=8, help="samples per clip (default 8)")
    parser.add_argument("--threads", type=int, default=1, help="cores to use (default 1)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of train_a2m.py, for all three")
    args = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    states_dir: Path = args.out / "states"
    shared = [f"data={args.data}", f"states={states_dir}", f"train.n_steps={args.steps}", *args.overrides]
    shared += ["train.validate_every=0", "train.sample_every=0"]
    config = compose("a2m", train_a2m.TrainA2MConfig, [*shared, f"out={args.out}"])
    models = {name: trained(variant, args.out, shared) for name, variant in VARIANTS.items()}

    clips = read_clips(args.data, args.split, FaceModel.builtin())
    if hubert := load_hubert(config.model, config.hubert):
        clips = with_states(clips, args.data, hubert, states_dir)
    clips = realigned(clips, read_lags(Path(config.lags))) if config.lags else clips
    sizes = {name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in models.items()}
    print(", ".join(f"{name}: {size:.2f} M parameters" for name, size in sizes.items()))
    print(f"{args.steps} steps of {config.train.batch_size} samples each; {args.split} split")
    for title, is_word in (("Running speech", False), ("Single words (LRW-AR)", True)):
        if chosen := [clip for clip in clips if clip.is_word is is_word]:
            compare(title, models, chosen, args.seeds)


def trained(variant: tuple[str, list[str]], out_dir: Path, shared: list[str]) -> AToMNet:
    """The model of a run that is started, gone on with, or has ended."""
    folder, switches = variant
    train_a2m.main([*shared, *switches, f"out={out_dir / folder}"])
    return load_atom(out_dir / folder / "weights")


def compare(title: str, models: Mapping[str, AToMNet], clips: Sequence[Clip], n_seeds: int) -> None:
    persons = [clip.person for clip in clips]
    means: dict[str, list[Quality]] = {}
    singles: dict[str, list[Quality]] = {}
    some = next(iter(models.values()))
    nothing = [torch.zeros(1, len(clip.mel), some.space.n_values) for clip in clips]
    still = {STILL: [judge(some, clip, values) for clip, values in zip(clips, nothing, strict=True)]}
    for name, model in models.items():
        drawn = [(clip, draw(model, clip, n_seeds)) for clip in clips]
        means[name] = [judge(model, clip, values.mean(dim=0, keepdim=True)) for clip, values in drawn]
        singles[name] = [judge(model, clip, values) for clip, values in drawn]
    for kind, found in ((f"mean of {n_seeds} samples", means), ("single samples", singles)):
        print(f"\n{title}, {kind}: {count(persons)}\n")
        print(table(COLUMNS, still | found, PAIRS, persons), flush=True)


def draw(model: AToMNet, clip: Clip, n_seeds: int) -> Tensor:
    """Samples [n, T, K] of a clip's motion."""
    generators = [Generator().manual_seed(seed) for seed in range(n_seeds)]
    return sample(model, clip_features(clip), len(clip.mel), clip_reference(model, clip), generators)


def judge(model: AToMNet, clip: Clip, values: Tensor) -> Quality:
    """values: [n, T, K]."""
    course = shown(model.space.decode_lips(values), clip)
    found = score(course, clip)
    assert course.lips is not None
    mean = FaceModel.builtin().mean
    rest = clip_reference(model, clip) + mean
    points = rest.repeat(*values.shape[:2], 1, 1)  # [n, T, 68, 3]
    points[..., LIP_STREAM, :] += course.lips
    points[..., list(REST), :] += model.space.decode(values)[1]
    points = keep_lips_apart(points, lip_gap(rest).clamp(max=0))
    real = clip.lm3d + mean
    distances = [landmark_distance(each[..., :2], real[..., :2]) for each in points]
    face = 100 * sum(distances) / len(distances) / clip.eye_distance
    return Quality(face, found.lmd, found.lmd_course, found.correlation, found.amplitude, found.energy)


if __name__ == "__main__":
    run_main(main)
