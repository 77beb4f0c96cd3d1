"""Full picture: the border of what is replaced, sharpness inside it, and the time of a 4K frame:

    python -m benchmarks.geometry paste --data DIR

Portraits of one split that show a face, driven by 2.56 s of examples/speech.wav and rendered; of each, four frames
spread over that. Beside `m2v.paste`: the renderer's square frame scaled up and put in (*square*), and the same faded in
through the head's mask (*faded*). Differences are in levels of 255.

seam: across the border of what is replaced, the gradient's mean size against the picture's own at the same place; a
border that shows has more than 1. Along the head's mask where it fades; of the square, along its sides.
colour: what the frame adds to the warped picture, slower than 3 pixels of the frame, along the head's mask, r.m.s.;
once as rendered and once of a frame made 12 levels redder. For the pasted picture along the face's mask, the narrower
one, which alone lets the frame in.
sharpness: energy of the Laplacian in the face, that of the mouth's inside left out, against the picture's own face;
of pictures whose square is at least 1.5 times the frame.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, laplace
from torch import Tensor

from a2m.pipeline import AudioToMotion
from benchmarks.report import markdown
from common.face import detect, warp
from common.face.framing import Crop, ReferencePicture
from common.face.model import FaceModel
from common.files import check_input
from common.media import VideoWriter, read_audio, read_picture
from m2v.drive import drive
from m2v.masks import face_mask
from m2v.paste import Paster
from m2v.pipeline import MCVDM
from m2v.preview import LIMITS, WarpRenderer
from m2v.source import Still

SPEECH = Path(__file__).parents[2] / "examples" / "speech.wav"
N_FRAMES, SHOWN = 64, (10, 28, 46, 63)
REDDER = 12.0
BAND = (0.02, 0.98)  # of a mask: its border
ENLARGED = 1.5  # a square this many times the frame has detail to lose
FACE_PX = 700  # height of the landmarks in the 4K picture that is timed
N_TIMED = 24
METHODS = ("pasted", "faded", "square")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geometry paste",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with portraits.csv and portraits/")
    parser.add_argument("--split", default="test")
    parser.add_argument("--renderer", choices=("mcvdm", "warp"), default="mcvdm")
    parser.add_argument("--most", type=int, help="only so many portraits")
    parser.add_argument(
        "--threads", type=int, default=2, help="of pasting; rendering for the border's figures runs on one"
    )
    parser.add_argument("--parts", nargs="*", default=["border", "speed"])
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)  # first: the threads that paste are as many as torch has when they begin
    shots = Shots(args.renderer)
    if "speed" in args.parts:
        print(speed_table(args.data, args.split, shots, args.threads))
    torch.set_num_threads(1)
    if "border" in args.parts:
        chosen = portraits(args.data, args.split)[: args.most]
        print(border_table([measure(shot) for path in chosen for shot in shots(path)]))


@dataclass(frozen=True)
class Shot:
    """One picture, its face's landmarks in the crop, and frames of it: their landmarks and what was rendered."""

    picture: np.ndarray
    crop: Crop
    source: Tensor
    targets: Tensor
    frames: list[Tensor]


class Shots:
    """Portraits to shots, with models loaded once."""

    def __init__(self, renderer: str, shown: Sequence[int] = SHOWN) -> None:
        self.shown = list(shown)
        self.model = FaceModel.builtin()
        self.speaker = AudioToMotion.from_pretrained()
        self.speech = torch.from_numpy(read_audio(SPEECH))[: N_FRAMES * 640]
        self.mcvdm = MCVDM.from_pretrained() if renderer == "mcvdm" else None

    def __call__(self, path: Path) -> Iterator[Shot]:
        """One shot, or none where no face is found."""
        picture = read_picture(path)
        faces = detect.find_faces(picture)
        if not faces:
            return
        reference = ReferencePicture.of(picture, faces[0].landmarks, self.model)
        motion = self.speaker(self.speech, reference.lm3d, reference.pose, reference.size, pose="natural", seed=0)
        targets = drive(motion, reference, self.model.mean, LIMITS)
        renderer = self.mcvdm
        frames = (
            WarpRenderer(Still(reference)).render(targets)
            if renderer is None
            else renderer.render(Still(reference), targets)
        )
        assert reference.crop is not None
        shown = [frame for k, frame in enumerate(frames) if k in self.shown]
        yield Shot(picture, reference.crop, reference.landmarks[:, :2], targets[self.shown, :, :2], shown)


def portraits(data_dir: Path, split: str) -> list[Path]:
    check_input(data_dir / "portraits.csv", "list of portraits")
    with (data_dir / "portraits.csv").open(newline="") as file:
        names = [row["name"] for row in csv.DictReader(file) if row["split"] == split]
    return [data_dir / "portraits" / f"{name}.jpg" for name in names]


# ---- the border -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Border:
    """Of one shot, means over its frames. By method: seam, colour, colour of a redder frame, sharpness (NaN: unknown);

    n_changed: pixels outside the mask that are not the picture's.
    """

    zoom: float
    n_changed: int
    seam: dict[str, float]
    colour: dict[str, float]
    redder: dict[str, float]
    sharpness: dict[str, float]


def measure(shot: Shot) -> Border:
    picture, crop = shot.picture, shot.crop
    height, width = picture.shape[:2]
    paster = Paster(crop, width, height)
    small = torch.from_numpy(crop.cut(picture).copy()).movedim(-1, 0)[None].float()
    seams: dict[str, list[float]] = {name: [] for name in METHODS}
    colours: dict[str, list[float]] = {name: [] for name in METHODS}
    redder: dict[str, list[float]] = {name: [] for name in METHODS}
    sharp: dict[str, list[float]] = {name: [] for name in METHODS}
    n_changed = 0
    part = slice(crop.y0, crop.y0 + crop.side), slice(crop.x0, crop.x0 + crop.side)
    own = _laplacian(picture[part], _inside(face_mask(shot.source, crop.size_px), shot.source, crop))
    zoom = crop.side / crop.size_px
    for target, frame in zip(shot.targets, shot.frames, strict=True):
        mask = paster.mask(shot.source, target)
        grid = warp.backward_grid(shot.source[None], target[None], crop.size_px, crop.size_px)
        warped = warp.apply(small, grid)[0]
        # Where nothing was generated, at full size: what colours are measured against.
        bent = paster.paste(picture, shot.source, target, warped)
        red = frame + torch.tensor([REDDER, 0.0, 0.0])[:, None, None]
        pasted, pasted_red = (paster.paste(picture, shot.source, target, each) for each in (frame, red))
        square, square_red = (_put(picture, each, crop) for each in (frame, red))
        faded, faded_red = (_fade(picture, each, mask) for each in (square, square_red))
        n_changed += int((pasted != picture).any(-1)[mask == 0].sum())
        band = (mask > BAND[0]) & (mask < BAND[1])
        face = face_mask(target, crop.size_px)
        narrow = np.zeros(mask.shape, np.float32)
        narrow[part] = _enlarge(face, crop)
        narrow_band = (narrow > BAND[0]) & (narrow < BAND[1])
        seams["pasted"].append(_across(pasted, mask, band) / _across(picture, mask, band))
        seams["faded"].append(_across(faded, mask, band) / _across(picture, mask, band))
        seams["square"].append(_along_sides(square, crop) / _along_sides(picture, crop))
        outline = np.zeros(mask.shape, bool)
        outline[part] = True
        outline[crop.y0 + 2 : crop.y0 + crop.side - 2, crop.x0 + 2 : crop.x0 + crop.side - 2] = False
        for into, results in ((colours, (pasted, faded, square)), (redder, (pasted_red, faded_red, square_red))):
            for name, result, where in zip(METHODS, results, (narrow_band, band, outline), strict=True):
                slow = gaussian_filter(result.astype(np.float32) - bent, (3 * zoom, 3 * zoom, 0))
                into[name].append(float(np.sqrt(np.square(slow[where]).mean())))
        inside = _inside(face, target, crop)
        for name, result in zip(METHODS, (pasted, faded, square), strict=True):
            sharp[name].append(_laplacian(result[part], inside) / own)
    seam, colour, red_colour, sharpness = (
        {name: float(np.mean(values)) for name, values in table.items()} for table in (seams, colours, redder, sharp)
    )
    return Border(zoom, n_changed, seam, colour, red_colour, sharpness)


def _enlarge(layer: Tensor, crop: Crop) -> np.ndarray:
    """[h, h] of the frame at the square's own size, float32."""
    image = Image.fromarray(layer.numpy().astype(np.float32))
    return np.asarray(image.resize((crop.side, crop.side), Image.Resampling.BILINEAR))


def _put(picture: np.ndarray, frame: Tensor, crop: Crop) -> np.ndarray:
    """The frame scaled up and put into its square."""
    image = Image.fromarray(frame.round().clamp(0, 255).byte().movedim(0, -1).numpy())
    result = picture.copy()
    size = (crop.side, crop.side)
    result[crop.y0 : crop.y0 + crop.side, crop.x0 : crop.x0 + crop.side] = image.resize(size, Image.Resampling.BICUBIC)
    return result


def _fade(picture: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    mixed = picture + mask[..., None] * (other.astype(np.float32) - picture)
    return mixed.round().clip(0, 255).astype(np.uint8)


def _across(picture: np.ndarray, mask: np.ndarray, band: np.ndarray) -> float:
    """Mean size of the gradient across the mask's border."""
    grey = picture.astype(np.float32).mean(-1)
    ny, nx = np.gradient(gaussian_filter(mask, 2.0))
    length = np.maximum(np.hypot(nx, ny), 1e-9)
    dy, dx = np.gradient(grey)
    return float(np.abs((dx * nx + dy * ny) / length)[band].mean())


def _along_sides(picture: np.ndarray, crop: Crop) -> float:
    """Mean step across those sides of the square behind which the picture goes on; NaN where there is none."""
    grey = picture.astype(np.float32).mean(-1)
    x1, y1 = crop.x0 + crop.side, crop.y0 + crop.side
    steps = []
    if crop.x0 > 0:
        steps.append(grey[crop.y0 : y1, crop.x0] - grey[crop.y0 : y1, crop.x0 - 1])
    if x1 < picture.shape[1]:
        steps.append(grey[crop.y0 : y1, x1] - grey[crop.y0 : y1, x1 - 1])
    if crop.y0 > 0:
        steps.append(grey[crop.y0, crop.x0 : x1] - grey[crop.y0 - 1, crop.x0 : x1])
    if y1 < picture.shape[0]:
        steps.append(grey[y1, crop.x0 : x1] - grey[y1 - 1, crop.x0 : x1])
    return float(np.abs(np.concatenate(steps)).mean()) if steps else float("nan")


def _inside(face: Tensor, points: Tensor, crop: Crop) -> np.ndarray:
    """The face without the mouth's inside, at the square's own size: bool [side, side]."""
    mouth = warp.inner_mouth_mask(points[None], crop.size_px, crop.size_px, softness_px=2.0)[0, 0]
    return (_enlarge(face, crop) > 0.98) & (_enlarge(mouth, crop) < 0.1)


def _laplacian(picture: np.ndarray, where: np.ndarray) -> float:
    return float(np.square(laplace(picture.astype(np.float32).mean(-1)))[where].mean())


def border_table(borders: list[Border]) -> str:
    rows = []
    large = [each for each in borders if each.zoom >= ENLARGED]
    for name in METHODS:
        cells = [_spread([getattr(each, field)[name] for each in borders]) for field in ("seam", "colour", "redder")]
        rows.append([name, *cells, _spread([each.sharpness[name] for each in large])])
    header = ["", "seam", "colour", "colour, redder frame", f"sharpness ({len(large)} pictures)"]
    outside = sum(each.n_changed for each in borders)
    return "\n".join(
        [
            f"{len(borders)} pictures, {len(SHOWN)} frames each; median (5 % to 95 %) over pictures. "
            f"Pixels outside the mask that differ from the picture: {outside}.",
            "",
            markdown(header, rows),
            "",
        ]
    )


def _spread(values: list[float]) -> str:
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "–"
    low, middle, high = np.quantile(known, (0.05, 0.5, 0.95))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


# ---- time -----------------------------------------------------------------------------------------------------------


def speed_table(data_dir: Path, split: str, shots: Shots, n_threads: int) -> str:
    """A 4K picture with a face of FACE_PX, made from the largest portrait: pasting, and encoding beside it."""
    path = max(portraits(data_dir, split), key=lambda each: min(Image.open(each).size))
    shot = next(shots(path))
    picture, crop = _enlarged(shot)
    height, width = picture.shape[:2]
    moves = [shot.targets[k % len(SHOWN)] + 0.5 * (k % 5) for k in range(N_TIMED)]  # no two frames the same
    frames = [shot.frames[k % len(SHOWN)] for k in range(N_TIMED)]
    paster, copies = Paster(crop, width, height), [picture.copy(), picture.copy()]

    def same(k: int) -> np.ndarray:
        return paster.paste(picture, shot.source, moves[k], frames[k])

    def fresh(k: int) -> np.ndarray:
        return Paster(crop, width, height).paste(copies[k % 2], shot.source, moves[k], frames[k])

    rows = [_timed("pasted, the same picture", same), _timed("pasted, another picture every frame", fresh)]
    ready = [same(k) for k in range(4)]
    works: list[tuple[str, Callable[[int], np.ndarray]]] = [
        ("encoded (H.264)", lambda k: ready[k % 4]),
        ("pasted, the same picture, and encoded", same),
    ]
    for what, work in works:
        with (
            tempfile.TemporaryDirectory() as folder,
            VideoWriter(Path(folder) / "timed.mp4", width, height) as writer,
        ):
            rows.append(_timed(what, lambda k, work=work, writer=writer: writer.write(work(k))))  # type: ignore[misc]
    about = (
        f"{picture.shape[1]}x{picture.shape[0]}, square of {crop.side} px, face of {FACE_PX} px, {n_threads} threads, "
        f"{N_TIMED} frames; load of the machine {os.getloadavg()[0]:.1f}."
    )
    return "\n".join([about, "", markdown(["ms per 4K frame", "least", "median", "mean", "processor time"], rows), ""])


def _timed(what: str, work: Callable[[int], object]) -> list[str]:
    """A row of the table; the first frame, which prepares, is left out. An encoder's threads work on: see the mean."""
    work(0)
    seconds, processor = [], time.process_time()
    for k in range(N_TIMED):
        begun = time.perf_counter()
        work(k)
        seconds.append(time.perf_counter() - begun)
    busy = (time.process_time() - processor) / N_TIMED  # of all threads
    return [what, *(f"{1000 * value:.0f}" for value in (min(seconds), np.median(seconds), np.mean(seconds), busy))]


def _enlarged(shot: Shot) -> tuple[np.ndarray, Crop]:
    """The picture scaled so that its face is FACE_PX high, in the middle of a 4K one."""
    crop = shot.crop
    face_px = float(shot.source[:, 1].max() - shot.source[:, 1].min()) * crop.side / crop.size_px
    factor = FACE_PX / face_px
    size = tuple(round(side * factor) for side in shot.picture.shape[1::-1])
    large = np.asarray(Image.fromarray(shot.picture).resize(size, Image.Resampling.BICUBIC))
    side = round(crop.side * factor)
    middle = (np.array([crop.x0, crop.y0]) * factor + side / 2).round().astype(int)  # comes to lie in the centre
    canvas = np.full((2160, 3840, 3), 100, np.uint8)
    shift = np.array([1920, 1080]) - middle
    low, high = np.maximum(shift, 0), np.minimum(shift + np.array(size), (3840, 2160))
    canvas[low[1] : high[1], low[0] : high[0]] = large[
        low[1] - shift[1] : high[1] - shift[1], low[0] - shift[0] : high[0] - shift[0]
    ]
    x0, y0 = (round(v * factor) + int(s) for v, s in zip((crop.x0, crop.y0), shift, strict=True))
    return canvas, Crop(x0, max(0, y0), min(side, 2160), crop.size_px)
