"""Pack a data folder into one file that travels, and unpack it where the training is to run.

    python -m common.pack --data DIR --out train.zip --most-mb 55
    python -m common.pack --unpack train.zip --out DIR

The file is an ordinary zip of the same layout (docs/data.md): `unzip` serves as well, and training reads the folder as
it is. Pictures stay as large as they are (256 x 256: landmarks are in pixels of that) and are encoded again with as
little loss as the limit allows; sound becomes Opus at a rate that log-mel features hardly notice; landmarks are rounded
to an eighth of a pixel and depths to a quarter, well below the tracking's noise. Where even the coarsest pictures are
too large, people with many minutes give up some of theirs. What isn't needed to train the two stages stays behind:
other splits, portraits, recordings, irises.
"""

import csv
import io
import json
import logging
import os
import random
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from common import clip_index, entry
from common.errors import InputError
from common.ffmpeg import decoded, open_container
from common.files import atomic_path, check_input
from common.media import read_audio

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
FPS = 25
# At 16 or 24 kHz libopus comes 4 or 2 ms late; at 48 it is in time, and no larger. Samples in a frame of 20 ms:
SAMPLE_RATE_HZ, OPUS_BIT_RATE, OPUS_FRAME = 48_000, 20_000, 960
STEPS_PER_PX = (8, 8, 4)  # of x, y, z
CRFS = range(18, 34)  # from hardly any loss to blocks that show
PILOT_CRFS, N_PILOT = (22, 30), 16
MARGIN = 0.98  # of the limit: what is aimed at
MEMBER = re.compile(r"index\.csv|pack\.json|clips/[\w.-]+\.mp4|tracks/[\w.-]+\.npz")
CLIP_ID = re.compile(r"[\w.-]+")
MOST_UNPACKED = 40  # times the zip's size; ours unpack to less than twice


@dataclass(frozen=True)
class Clip:
    """A row of the index, and the size of its video where it comes from."""

    row: dict[str, str]
    n_bytes: int

    @property
    def name(self) -> str:
        return self.row["clip_id"]

    @property
    def minutes(self) -> float:
        return float(self.row["seconds"]) / 60


def pack(
    data_dir: Path, out_path: Path, splits: Iterable[str], most_bytes: int, n_threads: int, overwrite: bool = False
) -> dict[str, Any]:
    """Write the zip; returns what it holds. Raises InputError where the data can't be read or the limit not be met."""
    clips = read_index(data_dir, set(splits))
    with atomic_path(out_path, overwrite) as temporary, tempfile.TemporaryDirectory(dir=out_path.parent) as work:
        folder = Path(work)
        tracks = {clip.name: packed_track(data_dir / "tracks" / f"{clip.name}.npz") for clip in clips}
        if min(map(len, tracks.values())) > most_bytes:  # before any picture is encoded
            raise too_small(most_bytes)
        ratio = pilot(data_dir, folder, clips, n_threads)
        aim = MARGIN * most_bytes
        while True:
            chosen, crf = plan(clips, {name: len(track) for name, track in tracks.items()}, ratio, aim)
            about = {
                "splits": sorted(set(splits)),
                "crf": crf,
                "clips": len(chosen),
                "left_out": len(clips) - len(chosen),
            }
            about["minutes"] = round(sum(clip.minutes for clip in chosen), 2)
            encode_all(data_dir, folder, chosen, crf, n_threads, "packing")
            write_zip(temporary, folder, chosen, tracks, about)
            n_bytes = temporary.stat().st_size
            log.info("%d clips, %.1f min at crf %d: %.1f MiB", len(chosen), about["minutes"], crf, n_bytes / 2**20)
            if n_bytes <= most_bytes:
                return {**about, "bytes": n_bytes}
            aim *= 0.97 * most_bytes / n_bytes


def plan(
    clips: list[Clip], track_bytes: dict[str, int], ratio: dict[int, float], most: float
) -> tuple[list[Clip], int]:
    """The clips to take and the quality to take them in: all in the best that fits, or else fewer in the coarsest.

    ratio: a video's size by that of its original, for each crf. Fewer clips: none of a person beyond so many minutes,
    the greatest number that fits.
    """
    fixed = 2000 + 700 * len(clips)  # index, names and headers

    def size(some: list[Clip], crf: int) -> float:
        return fixed + sum(track_bytes[clip.name] + ratio[crf] * clip.n_bytes for clip in some)

    for crf in CRFS:
        if size(clips, crf) <= most:
            return clips, crf
    crf = CRFS[-1]
    totals: dict[str, float] = {}
    for clip in clips:
        totals[clip.row["person"]] = totals.get(clip.row["person"], 0.0) + clip.minutes
    low, high = 0.0, max(totals.values())
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if size(capped(clips, middle), crf) <= most else (low, middle)
    chosen = capped(clips, low)
    if not chosen:
        raise too_small(most)
    log.info(
        "people with more than %.1f min give up some: %d of %d clips left out",
        low,
        len(clips) - len(chosen),
        len(clips),
    )
    return chosen, crf


def too_small(most: float) -> InputError:
    return InputError(f"Not one clip fits into {most / 2**20:.2g} MiB: raise --most-mb.")


def capped(clips: list[Clip], most_minutes: float) -> list[Clip]:
    """Clips of each person up to so many minutes, drawn in an order that depends on their names alone."""
    order = sorted(clips, key=lambda clip: random.Random(clip.name).random())
    minutes: dict[str, float] = {}
    kept = set()
    for clip in order:
        person = clip.row["person"]
        if minutes.get(person, 0.0) + clip.minutes <= most_minutes:
            minutes[person] = minutes.get(person, 0.0) + clip.minutes
            kept.add(clip.name)
    return [clip for clip in clips if clip.name in kept]


def pilot(data_dir: Path, folder: Path, clips: list[Clip], n_threads: int) -> dict[int, float]:
    """How a video's size by its original's depends on crf: measured on a few clips at two values, exponential."""
    few = sorted(clips, key=lambda clip: random.Random(clip.name).random())[:N_PILOT]
    measured = []
    for crf in PILOT_CRFS:
        encode_all(data_dir, folder, few, crf, n_threads, f"trying crf {crf}")
        measured.append(sum(video_path(folder, c).stat().st_size for c in few) / sum(c.n_bytes for c in few))
    slope = np.log(measured[1] / measured[0]) / (PILOT_CRFS[1] - PILOT_CRFS[0])
    return {crf: float(measured[0] * np.exp(slope * (crf - PILOT_CRFS[0]))) for crf in CRFS}


# ---- what goes in ---------------------------------------------------------------------------------------------------


def read_index(data_dir: Path, splits: set[str]) -> list[Clip]:
    """The rows of these splits whose files are there."""
    clips = []
    for row in clip_index.read_index(data_dir, "kind", "seconds"):
        if row["split"] not in splits:
            continue
        if not CLIP_ID.fullmatch(row["clip_id"]):
            raise InputError(f"{data_dir / 'index.csv'} names a clip '{row['clip_id']}': use letters, digits, ._-")
        path = data_dir / "clips" / f"{row['clip_id']}.mp4"
        check_input(path, "clip")
        clips.append(Clip(row, path.stat().st_size))
    if not clips:
        raise InputError(f"{data_dir} has no clips in the split {' or '.join(sorted(splits))}: choose another split.")
    return clips


def packed_track(path: Path) -> bytes:
    """The npz of a track with rounded landmarks, each coordinate's course in one piece, which deflates best."""
    check_input(path, "track")
    try:
        with np.load(path, allow_pickle=False) as track:
            landmarks, valid = track["landmarks"].astype(np.float32), track["valid"].astype(bool)
        if landmarks.shape != (len(valid), 68, 3):
            raise ValueError(f"landmarks are {list(landmarks.shape)}, valid {list(valid.shape)}")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a track ({error}): make it again (docs/data.md).") from error
    steps = np.array(STEPS_PER_PX, np.float32)
    rounded = (np.round(landmarks * steps) / steps).astype(np.float16)
    file = io.BytesIO()
    np.savez_compressed(file, landmarks=np.asfortranarray(rounded), valid=valid)
    return file.getvalue()


def encode_all(data_dir: Path, folder: Path, clips: list[Clip], crf: int, n_threads: int, what: str) -> None:
    """Encode clips into a folder, several at a time, showing how far it is."""

    def one(clip: Clip) -> None:
        source = data_dir / "clips" / f"{clip.name}.mp4"
        encode(source, video_path(folder, clip), crf, has_sound=clip.row["kind"] == "talking")

    with ThreadPoolExecutor(n_threads) as threads:
        futures = [threads.submit(one, clip) for clip in clips]
        try:
            for future in shown(futures, what):
                future.result()
        finally:
            for future in futures:
                future.cancel()


def video_path(folder: Path, clip: Clip) -> Path:
    return folder / f"{clip.name}.mp4"


def encode(source: Path, target: Path, crf: int, has_sound: bool) -> None:
    """Encode the pictures of a clip again, one for one, and its sound as Opus."""
    try:
        with open_container(source) as given, av.open(f"file:{target.absolute()}", "w", format="mp4") as made:
            frames = (frame for frame in decoded(source, given, given.streams.video[0]))
            first = next(frames, None)
            if first is None:
                raise InputError(f"{source} has no pictures: take its row out of index.csv.")
            options = {"crf": str(crf), "preset": "slow", "g": "250", "bf": "3"}
            video = made.add_stream(
                "libx264", rate=FPS, width=first.width, height=first.height, pix_fmt="yuv420p", options=options
            )
            context = video.codec_context
            context.thread_count = 1  # the encoder's decisions depend on it; clips are encoded side by side instead
            context.colorspace, context.color_range = first.colorspace, first.color_range
            sound = make_sound(made, source) if has_sound else iter(())
            for k, frame in enumerate([first, *frames]):
                picture = frame.reformat(format="yuv420p")
                picture.pts, picture.time_base, picture.pict_type = k, Fraction(1, FPS), 0
                made.mux(video.encode(picture))
                for packets in islice(sound, 2):  # 40 ms
                    made.mux(packets)
            made.mux(video.encode(None))
            for packets in sound:
                made.mux(packets)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source} can't be packed ({error}): take its row out of index.csv, or mend it.") from error


def make_sound(made: Any, source: Path) -> Iterator[Any]:
    """Add a sound track; encodes 20 ms at each call for the next packets."""
    samples = read_audio(source, SAMPLE_RATE_HZ)
    stream = made.add_stream("libopus", rate=SAMPLE_RATE_HZ, layout="mono", bit_rate=OPUS_BIT_RATE)

    def packets() -> Iterator[Any]:
        for start in range(0, len(samples), OPUS_FRAME):
            part = np.ascontiguousarray(samples[None, start : start + OPUS_FRAME])
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, start, Fraction(1, SAMPLE_RATE_HZ)
            yield stream.encode(frame)
        yield stream.encode(None)

    return packets()


# ---- the zip --------------------------------------------------------------------------------------------------------


def write_zip(path: Path, folder: Path, clips: list[Clip], tracks: dict[str, bytes], about: dict[str, Any]) -> None:
    """Write the members in one order and with one date: the same content gives the same bytes."""
    index = io.StringIO(newline="")
    writer = csv.DictWriter(index, list(clips[0].row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(clip.row for clip in clips)
    with zipfile.ZipFile(path, "w") as made:

        def add(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> None:
            member = zipfile.ZipInfo(name)  # dated 1980
            member.external_attr = 0o644 << 16
            made.writestr(member, content, method)

        add("pack.json", (json.dumps({**about, "steps_per_px": STEPS_PER_PX}) + "\n").encode())
        add("index.csv", index.getvalue().encode(), zipfile.ZIP_DEFLATED)
        for clip in clips:
            add(f"clips/{clip.name}.mp4", video_path(folder, clip).read_bytes())
            add(f"tracks/{clip.name}.npz", tracks[clip.name])


def unpack(zip_path: Path, out_dir: Path) -> int:
    """Unpack into a folder that must not exist yet, all or nothing; returns the number of clips."""
    check_input(zip_path, "packed data folder")
    if out_dir.exists():
        raise InputError(f"{out_dir} exists already: name a folder that does not.")
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(zip_path) as packed, tempfile.TemporaryDirectory(dir=out_dir.parent) as work:
            members = packed.infolist()
            strange = next((member.filename for member in members if not MEMBER.fullmatch(member.filename)), None)
            if strange is not None:
                raise InputError(f"{zip_path} holds '{strange}': this is no packed data folder, give another file.")
            if sum(member.file_size for member in members) > MOST_UNPACKED * zip_path.stat().st_size:
                raise InputError(f"{zip_path} would unpack to more than {MOST_UNPACKED} times its size: give another.")
            if "index.csv" not in packed.namelist():
                raise InputError(f"{zip_path} has no index.csv: this is no packed data folder, give another file.")
            folder = Path(work) / "data"
            for name in ("clips", "tracks"):
                (folder / name).mkdir(parents=True)
            for member in shown(members, "unpacking"):
                packed.extract(member, folder)
            folder.rename(out_dir)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{zip_path} is not a whole zip file ({error}): copy it again.") from error
    except OSError as error:
        raise InputError(f"{out_dir} can't be written ({error.strerror or error}): choose another place.") from error
    return sum(member.filename.startswith("clips/") for member in members)


def shown(items: list[Any], what: str) -> Iterator[Any]:
    """The items, with a bar where somebody is watching."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, what, console=console, disable=not console.is_terminal)


# ---- the command ----------------------------------------------------------------------------------------------------


def run(argv: list[str]) -> None:
    parser = entry.Parser(prog="python -m common.pack", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder with index.csv, clips/ and tracks/")
    add("--unpack", type=Path, metavar="ZIP", help="the way back: a file that this command has made")
    add("--out", type=Path, required=True, metavar="PATH", help="the zip to write, or the folder to unpack into")
    add("--split", nargs="+", choices=SPLITS, default=["train", "val"], help="what to take (default: train val)")
    add("--most-mb", type=float, default=55.0, help="MiB that the zip may have (default 55)")
    add("--overwrite", action="store_true", help="replace the zip if it exists")
    add("--threads", type=int, default=os.cpu_count() or 1, help="clips encoded side by side (default: all cores)")
    args = parser.parse_args(argv)
    if (args.data is None) == (args.unpack is None):
        raise InputError("Give either --data DIR (to pack) or --unpack ZIP.")
    if args.unpack:
        n_clips = unpack(args.unpack, args.out)
        print(f"{args.out}: {n_clips} clips; training takes it as data={args.out}")
        return
    if not 0.001 <= args.most_mb <= 1e6 or not 1 <= args.threads <= 1024:
        raise InputError("--most-mb needs a size in MiB and --threads a number from 1: see --help.")
    about = pack(args.data, args.out, args.split, int(args.most_mb * 2**20), args.threads, args.overwrite)
    print(
        f"{args.out}: {about['bytes'] / 2**20:.1f} MiB, {about['clips']} clips, {about['minutes']} min, crf "
        f"{about['crf']}" + (f", {about['left_out']} clips left out" if about["left_out"] else "")
    )


if __name__ == "__main__":
    entry.run(run, level=logging.INFO, form="%(message)s")
