"""Which renderer would people rather look at? Pairs of videos in random order, answered without knowing which is which:

    python -m benchmarks.blind make --data DIR --out FOLDER [--pairs 40] [--split test] [--seed 0]
        [--new AUTOENCODER DENOISER] [--against warp] [--against NAME=AUTOENCODER,DENOISER]
    python -m benchmarks.blind serve FOLDER [--port 8000]      a page that shows them and saves every answer
    python -m benchmarks.blind answer FOLDER 7 a|b|same        the same from a terminal; several: 7=a 8=same
    python -m benchmarks.blind report FOLDER [--partial]

A pair is one person of the split, never seen in training, rendered twice: by the new weights and by a rival. Reference:
the clip's first valid frame; motion: its own track. Which of `07_a.mp4` and `07_b.mp4` is the new one only key.json
says, which neither the page nor the server reads. `07_strip.png` shows stills of both, for who can't play videos.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from scipy.stats import binomtest
from torch import Tensor

from benchmarks.blind_page import SIDES, pair_files, pair_names, parse_answers, read_answers, save_answers, serve
from benchmarks.renders import LEAST_FRAMES, Render, Scene, mcvdm, read_scenes, warped
from benchmarks.report import markdown, run_main
from common.errors import InputError
from common.face.model import mouth_opening
from common.files import check_input, check_output
from common.media import VideoWriter, write_picture
from common.memory import keep_freed_memory
from common.metrics.image import mouth_box
from m2v.pipeline import AUTOENCODER, DENOISER, MCVDM

WARP = "warp"
KEY = "key.json"
CRF = 14  # of H.264: the codec must not be what is judged
N_STILLS, ENLARGED, MARGIN_PX, GAP_PX, GREY = 6, 3, 24, 4, 40
COLUMNS = ("rival", "n", "new is better", "worse", "same", "wins of decided (95 %)", "same as half", "sign test p")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="render pairs")
    making.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/ and tracks/")
    making.add_argument("--out", type=Path, required=True, help="a new folder")
    making.add_argument("--pairs", type=int, default=40, help="in all, dealt out to the rivals evenly (default 40)")
    making.add_argument("--split", default="test", choices=["val", "test"])
    making.add_argument("--seed", type=int, default=0, help="of the order, the sides and who is shown (default 0)")
    making.add_argument("--new", nargs=2, default=[AUTOENCODER, DENOISER], metavar=("AUTOENCODER", "DENOISER"))
    making.add_argument("--against", action="append", metavar="warp|NAME=AUTOENCODER,DENOISER", help="default: warp")
    making.add_argument("--max-frames", type=int, default=75, help="of a video (default 75: three seconds)")
    making.add_argument("--threads", type=int, default=1, help="cores to use (default 1)")
    serving = commands.add_parser("serve", help="show them and keep the answers")
    serving.add_argument("--port", type=int, default=8000, help="of this machine alone (default 8000)")
    answering = commands.add_parser("answer", help="answer from a terminal")
    reporting = commands.add_parser("report", help="count the answers")
    reporting.add_argument("--partial", action="store_true", help="although answers are missing")
    for each in (serving, answering, reporting):
        each.add_argument("folder", type=Path)
    answering.add_argument("answers", nargs="+", help="7 a, or 7=a 8=same; a is the left one, above in the strip")
    args = parser.parse_args()
    if args.command == "make":
        keep_freed_memory()
        torch.set_num_threads(args.threads)
        rivals = {name: load(weights) for name, weights in named_rivals(args.against or [WARP]).items()}
        scenes = read_scenes(args.data, args.split, 1, args.max_frames)
        make(args.out, scenes, load(args.new), rivals, args.pairs, args.seed)
        print(f"{args.pairs} pairs in {args.out}: python -m benchmarks.blind serve {args.out}")
    elif args.command == "serve":
        serve(args.folder, args.port)
    elif args.command == "answer":
        given = parse_answers(args.answers, pair_names(args.folder))
        save_answers(args.folder, given)
        print(f"{len(read_answers(args.folder))} of {len(pair_names(args.folder))} answered")
    else:
        print(report(args.folder, args.partial))


def named_rivals(against: Sequence[str]) -> dict[str, Sequence[str]]:
    """Weights by name, none for the warp. InputError: neither `warp` nor NAME=AUTOENCODER,DENOISER, or named twice."""
    rivals: dict[str, Sequence[str]] = {}
    for text in against:
        name, _, weights = text.partition("=")
        parts = [part for part in weights.split(",") if part]
        if not name or name in rivals or len(parts) != (0 if name == WARP else 2):
            raise InputError(f"--against {text}: give warp or NAME=AUTOENCODER,DENOISER, each name once.")
        rivals[name] = parts
    return rivals


def load(weights: Sequence[str]) -> Render:
    return mcvdm(MCVDM.from_pretrained(*weights)) if weights else warped


# ---- pairs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """name: of its files; new: the side that shows the new weights; sha256: of the files."""

    name: str
    rival: str
    new: str
    person: str
    clip: str
    sha256: dict[str, str]


def short(scenes: Iterable[Scene]) -> list[Scene]:
    """Of each scene the longest part whose frames are all judged, without the real frames: together they are large."""
    found = []
    for scene in scenes:
        part = longest_run(scene.valid)
        if part.stop - part.start >= LEAST_FRAMES:
            landmarks, none = scene.landmarks[part].clone(), scene.frames[:0].copy()
            found.append(replace(scene, landmarks=landmarks, frames=none, valid=scene.valid[part]))
    return found


def longest_run(flags: np.ndarray) -> slice:
    """Of True in bool [T]; of equals the first, and an empty one where there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    starts, stops = edges[::2], edges[1::2]
    if len(starts) == 0:
        return slice(0, 0)
    longest = (stops - starts).argmax()
    return slice(int(starts[longest]), int(stops[longest]))


def deal(is_word: Sequence[bool], rivals: Sequence[str], n_pairs: int, seed: int) -> list[tuple[int, str, str]]:
    """(number of the scene, rival, side of the new one) for every pair, in the order they are shown.

    Everybody is shown once before anybody is shown again, with another rival; running speech comes before words. Where
    nobody is shown twice, rivals differ by at most one pair; so do the sides always, of each rival and in all.
    """
    if not 1 <= n_pairs <= len(is_word) * len(rivals):
        raise InputError(
            f"--pairs {n_pairs}: there are {len(is_word)} people to be shown once with each rival: ask for 1 to "
            f"{len(is_word) * len(rivals)} pairs."
        )
    rng = np.random.default_rng(seed)
    people = sorted(rng.permutation(len(is_word)).tolist(), key=lambda k: is_word[k])
    turns = [divmod(k, len(people)) for k in range(n_pairs)]
    drawn = [(people[k], rivals[(k + again) % len(rivals)]) for again, k in turns]
    drawn = sorted((drawn[k] for k in rng.permutation(n_pairs)), key=lambda pair: rivals.index(pair[1]))
    coin = int(rng.integers(2))
    pairs = [(scene, rival, SIDES[(k + coin) % 2]) for k, (scene, rival) in enumerate(drawn)]
    return [pairs[k] for k in rng.permutation(n_pairs)]


def make(
    folder: Path, everybody: Iterable[Scene], new: Render, rivals: Mapping[str, Render], n_pairs: int, seed: int
) -> None:
    """Render all pairs into a folder, which is there only when all of it is."""
    if folder.exists():
        raise InputError(f"{folder} exists already: choose another folder, so that no answers are lost.")
    check_output(folder)
    scenes = short(everybody)
    if not scenes:
        raise InputError(f"No clip has {LEAST_FRAMES} frames in a row that can be judged: choose other data.")
    dealt = deal([scene.is_word for scene in scenes], list(rivals), n_pairs, seed)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        unfinished = Path(temporary, "pairs")
        unfinished.mkdir()
        pairs = []
        for k, (number, rival, side) in enumerate(track(dealt, "rendering", transient=True), start=1):
            scene, name = scenes[number], f"{k:0{max(2, len(str(n_pairs)))}d}"
            made, against = (each(scene.reference, scene.landmarks, scene.frames) for each in (new, rivals[rival]))
            left, right = (made, against) if side == "a" else (against, made)
            paths = write_pair(unfinished, name, scene, left, right)
            hashes = {path.name: hash_of(path) for path in paths}
            pairs.append(Pair(name, rival, side, scene.person, scene.name, hashes))
        key = {"seed": seed, "rivals": list(rivals), "pairs": [asdict(pair) for pair in pairs]}
        (unfinished / KEY).write_text(json.dumps(key, indent=1), encoding="utf-8")
        unfinished.rename(folder)


def write_pair(folder: Path, name: str, scene: Scene, left: np.ndarray, right: np.ndarray) -> list[Path]:
    """Both videos, uint8 [T, H, W, 3], in the order of the sides: also the files' times tell nothing."""
    paths = [folder / file for file in pair_files(name)]
    for path, frames in zip(paths, (left, right), strict=False):
        height, width = frames.shape[1:3]
        with VideoWriter(path, width, height, crf=CRF) as video:
            for frame in frames:
                video.write(frame)
    write_picture(paths[2], strip(left, right, scene.landmarks))
    write_picture(paths[3], scene.reference.picture)
    return paths


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def strip(left: np.ndarray, right: np.ndarray, landmarks: Tensor) -> np.ndarray:
    """Six moments of both, uint8 [T, H, W, 3], in one picture: faces of a, of b, then the mouths of a, of b, enlarged.

    landmarks: float32 [T, 68, 3], those asked for: they choose the moments, from the most closed mouth to the most
    open, and the box by which both mouths are cut out.
    """
    size = left.shape[1]
    order = mouth_opening(landmarks[..., :2]).argsort().numpy()
    moments = order[np.linspace(0, len(order) - 1, N_STILLS).round().astype(int)]
    points = landmarks.numpy()
    boxes = [mouth_box(points[k], size) for k in moments]
    rows = [[frames[k] for k in moments] for frames in (left, right)]
    rows += [[enlarged(frames[k][box]) for k, box in zip(moments, boxes, strict=True)] for frames in (left, right)]
    cell_width = max(picture.shape[1] for row in rows for picture in row) + GAP_PX
    heights = [max(picture.shape[0] for picture in row) + GAP_PX for row in rows]
    sheet = Image.new("RGB", (MARGIN_PX + N_STILLS * cell_width, sum(heights)), (GREY,) * 3)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=20)
    for row, height, top, side in zip(rows, heights, np.cumsum([0, *heights]).tolist(), SIDES * 2, strict=False):
        pen.text((MARGIN_PX // 2, top + height // 2), side, "white", font, anchor="mm")
        for k, picture in enumerate(row):
            across, down = (cell_width - picture.shape[1]) // 2, (height - picture.shape[0]) // 2
            sheet.paste(Image.fromarray(picture), (MARGIN_PX + k * cell_width + across, top + down))
    return np.asarray(sheet)


def enlarged(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    size = (ENLARGED * width, ENLARGED * height)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


# ---- report ---------------------------------------------------------------------------------------------------------


def read_key(folder: Path) -> list[Pair]:
    """InputError unless the key is whole and the files are those it was written for."""
    path = folder / KEY
    check_input(path, "key of the pairs")
    try:
        pairs = [Pair(**each) for each in json.loads(path.read_text(encoding="utf-8"))["pairs"]]
        hashes = {name: value for pair in pairs for name, value in pair.sha256.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: make the pairs again.") from error
    for name, value in hashes.items():
        if not (folder / name).is_file() or hash_of(folder / name) != value:
            raise InputError(f"{folder / name} is not the file that was shown: make the pairs again.")
    return pairs


def report(folder: Path, is_partial: bool = False) -> str:
    """Wins of the new weights against every rival, as a Markdown table."""
    pairs, answers = read_key(folder), read_answers(folder)
    missing = [str(int(pair.name)) for pair in pairs if pair.name not in answers]
    if missing and not is_partial:
        some = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise InputError(
            f"{len(missing)} of {len(pairs)} pairs are not answered ({some}): answer them or say --partial."
        )
    rows = []
    for rival in dict.fromkeys(pair.rival for pair in pairs):
        given = [(pair.new, answers[pair.name]) for pair in pairs if pair.rival == rival and pair.name in answers]
        wins, ties = sum(new == chosen for new, chosen in given), sum(chosen == "same" for _, chosen in given)
        rows.append([rival, *verdict(wins, len(given) - wins - ties, ties)])
    chosen = list(answers.values())
    left, right = chosen.count("a"), chosen.count("b")
    unanswered = f"; {len(missing)} of {len(pairs)} not answered" if missing else ""
    sides = f"The left one was preferred in {left} of {left + right} decided pairs{unanswered}."
    return f"{markdown(COLUMNS, rows)}\n\n{sides}"


def verdict(wins: int, losses: int, ties: int) -> list[object]:
    """n, wins, losses, ties; the share of wins (Wilson's interval), with ties as half; p of the two-sided sign test."""
    n, decided = wins + losses + ties, wins + losses
    shares, p = "–", "–"
    if decided:
        test = binomtest(wins, decided)
        low, high = test.proportion_ci(method="wilson")
        shares, p = f"{wins / decided:.0%} ({low:.0%}-{high:.0%})", f"{test.pvalue:.2g}"
    return [n, wins, losses, ties, shares, f"{(wins + ties / 2) / n:.0%}" if n else "–", p]


if __name__ == "__main__":
    run_main(main)
