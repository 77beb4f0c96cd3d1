"""Train the built-in face finder or landmark network:

    python -m common.face.train landmarks --data DIR --out weights/small/landmarks
    python -m common.face.train finder    --data DIR --out weights/small/finder

Each reads the train split once, keeps an exponential average of its weights (they are what is saved) and prints its
loss and, every few minutes, its error on the validation split. A run stopped by hand resumes from its folder `--run`.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor, nn

from common import weights
from common.errors import InputError
from common.face import data
from common.face.model import EYES, LID_PAIRS, mirror
from common.face.nets import Finder, FinderConfig, LandmarkNet, LandmarkNetConfig

Batch = tuple[Tensor, Tensor, Tensor]

LIP_PAIRS = ((61, 67), (62, 66), (63, 65), (48, 54), (51, 57))


def landmark_batch(
    stills: data.FaceSet,
    clips: data.FaceSet,
    backgrounds: list[np.ndarray],
    config: LandmarkNetConfig,
    batch: int,
    generator: Generator,
) -> Batch:
    """Crops [B, 3, size, size] in [-1, 1], points [B, 68, 3] in crop coordinates, is_face [B].

    An eighth of the batch holds no face, or one so far off that a tracker should let go of it.
    """
    n_stills = batch // 4
    pictures, landmarks, _ = _draw(((stills, n_stills), (clips, batch - n_stills)), generator)
    n_off = batch // 8
    wide = torch.rand(batch, generator=generator) < 0.4  # the first pass, from the finder's box; else a refining pass
    near = data.random_squares(landmarks, config.margin, generator, shift=0.06, zoom=0.12, roll_deg=12)
    far = data.random_squares(landmarks, config.margin, generator, shift=0.15, zoom=0.3, roll_deg=35)
    matrix = torch.where(wide.view(-1, 1, 1), far, near)
    off = data.random_squares(landmarks[:n_off], config.margin, generator, shift=0.1, zoom=0.2, roll_deg=180)
    away = torch.stack([data.uniform(n_off, 0.35, 0.7, generator) for _ in "xy"], dim=-1)
    away = away * (torch.randint(0, 2, (n_off, 2), generator=generator) * 2 - 1)
    side = torch.linalg.det(off[..., :2]).sqrt()[:, None] * 2
    off[..., 2] += away * side * torch.tensor([1.0, 0.7])
    matrix = torch.cat([off, matrix[n_off:]])
    crops = data.crop(pictures, matrix, config.size_px)
    for k in range(n_off // 2):  # half of those without a face: pictures that hold none
        crops[k] = _background_crop(backgrounds, config.size_px, generator)
    points = data.to_crop(landmarks, matrix)
    mirrored = torch.rand(batch, generator=generator) < 0.5
    crops = torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(-1), crops)
    points = torch.where(mirrored.view(-1, 1, 1), mirror(points), points)
    is_face = torch.ones(batch)
    is_face[:n_off] = 0
    crops = data.disturb_colours(data.occlude(crops, generator), generator)
    return crops * 2 - 1, points, is_face


def landmark_loss(points_pred: Tensor, logit: Tensor, points: Tensor, is_face: Tensor) -> dict[str, Tensor]:
    """Absolute errors, in half crops, of points (z half) and of openings of lids and lips; cross-entropy of is_face."""
    weight = points.new_ones(68, 1)
    weight[list(EYES)] = 1.5
    weight[48:] = 1.5
    face = is_face.bool()
    error = (points_pred - points)[face].abs() * weight * points.new_tensor([1.0, 1.0, 0.5])
    openings = _openings(points_pred[face]) - _openings(points[face])
    bce = F.binary_cross_entropy_with_logits(logit, is_face)
    return {"points": error.mean(), "openings": openings.abs().mean(), "is_face": 0.02 * bce}


def _openings(points: Tensor) -> Tensor:
    """Vectors between opposite points of lids and lips, [B, 9, 2]: what the eye reads off a face first."""
    first, second = (list(side) for side in zip(*LID_PAIRS, *LIP_PAIRS, strict=True))
    return points[:, first, :2] - points[:, second, :2]


def finder_batch(
    stills: data.FaceSet,
    clips: data.FaceSet,
    backgrounds: list[np.ndarray],
    size_px: int,
    batch: int,
    generator: Generator,
) -> Batch:
    """Pictures [B, 3, S, S] in [-1, 1] of none, one or four faces; centres [B, 4, 2], sides [B, 4] in pixels or 0."""
    n_tiles = (
        2 * batch
    )  # the first half are shown alone; of the other, a quarter of the canvases show four small ones each
    n_stills = n_tiles // 2
    drawn = _draw(((stills, n_stills), (clips, n_tiles - n_stills)), generator)
    order = torch.randperm(n_tiles, generator=generator)
    pictures, landmarks, inside = (part[order] for part in drawn)
    # The face takes between a twelfth and 0.9 of the picture: log-uniform.
    part = torch.exp(data.uniform(n_tiles, math.log(0.085), math.log(0.9), generator))
    matrix = data.random_squares(landmarks, 1.0, generator, shift=0.0, zoom=0.0, roll_deg=25)
    matrix[..., :2] /= part.view(-1, 1, 1)
    half_side = torch.linalg.det(matrix[..., :2]).sqrt()
    reach = (1.0 - 0.6 * part).clamp(min=0.25)[:, None]
    place = reach * (2 * torch.rand(n_tiles, 2, generator=generator) - 1)  # where the face lies, crop coordinates
    matrix[..., 2] -= half_side[:, None] * place
    tiles = data.crop(pictures, matrix, size_px)
    covered = data.crop(_rectangles(inside), matrix, size_px)  # [tiles, 1, S, S]
    # Cutting a background takes as long as a training step of its tile: each serves two, one of them mirrored.
    fill = torch.stack([_background_crop(backgrounds, size_px, generator) for _ in range(n_tiles // 2)])
    fill = torch.cat([fill, fill.flip(-1)])[torch.randperm(n_tiles, generator=generator)]
    tiles = covered * tiles + (1 - covered) * fill
    points = (data.to_crop(landmarks, matrix)[..., :2] + 1) / 2 * size_px
    low, high = points.amin(1), points.amax(1)
    centres, extent = (low + high) / 2, (high - low).amax(-1)
    flip = torch.rand(n_tiles, generator=generator) < 0.5
    tiles = torch.where(flip.view(-1, 1, 1, 1), tiles.flip(-1), tiles)
    centres[:, 0] = torch.where(flip, size_px - centres[:, 0], centres[:, 0])

    out = tiles[:batch].clone()
    all_centres, all_sides = torch.zeros(batch, 4, 2), torch.zeros(batch, 4)
    all_centres[:, 0], all_sides[:, 0] = centres[:batch], extent[:batch]
    small = F.avg_pool2d(tiles[batch:], 2)
    half = size_px // 2
    for k in range(batch // 4):  # mosaics of four
        for corner in range(4):
            y, x = divmod(corner, 2)
            source = 4 * k + corner
            out[k, :, y * half : (y + 1) * half, x * half : (x + 1) * half] = small[source]
            all_centres[k, corner] = centres[batch + source] / 2 + torch.tensor([x * half, y * half])
            all_sides[k, corner] = extent[batch + source] / 2
    for k in range(batch // 4, batch // 4 + batch // 6):  # nobody there
        out[k] = _background_crop(backgrounds, size_px, generator)
        all_sides[k] = 0
    return data.disturb_colours(out, generator) * 2 - 1, all_centres, all_sides


def finder_loss(
    logits: Tensor, log_side: Tensor, offset: Tensor, centres: Tensor, sides: Tensor, stride: int = Finder.stride
) -> dict[str, Tensor]:
    """Focal loss on the heat map (Zhou et al. 2019, eq. 1), absolute errors of size and offset at the centres."""
    batch, rows, columns = logits.shape
    y, x = torch.arange(rows).view(1, 1, -1, 1), torch.arange(columns).view(1, 1, 1, -1)
    cell = centres / stride - 0.5  # cell k is centred on pixel (k + ½)·stride
    sigma = (sides / stride * 0.12).clamp(min=0.6).view(batch, -1, 1, 1)
    d2 = (x - cell[..., 0].view(batch, -1, 1, 1)) ** 2 + (y - cell[..., 1].view(batch, -1, 1, 1)) ** 2
    present = sides > 0
    bell = torch.where(present.view(batch, -1, 1, 1), torch.exp(-d2 / (2 * sigma**2)), 0.0)
    heat = bell.amax(1)  # [B, rows, columns]
    nearest = cell.round()
    nearest_x = nearest[..., 0].clamp(0, columns - 1).long()
    nearest_y = nearest[..., 1].clamp(0, rows - 1).long()
    which, slot = present.nonzero(as_tuple=True)
    at = (which, nearest_y[which, slot], nearest_x[which, slot])
    positive = torch.zeros_like(heat, dtype=torch.bool)
    positive[at] = True
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    focal = torch.where(positive, -((1 - p) ** 2) * p.log(), -((1 - heat) ** 4) * p**2 * (1 - p).log())
    size_error = log_side[at] - torch.log(sides[present] / stride)
    offset_error = offset.movedim(1, -1)[at] - (cell - nearest)[present]
    n = max(1, len(which))
    return {"heat": focal.sum() / n, "size": size_error.abs().sum() / n, "offset": 0.25 * offset_error.abs().sum() / n}


def _rectangles(inside: Tensor) -> Tensor:
    """[B, 4] of FaceSet.inside → masks [B, 1, 256, 256] of the pixels that are picture."""
    at = torch.arange(data.FRAME_PX) + 0.5
    columns = (at >= inside[:, 0:1]) & (at <= inside[:, 2:3])
    rows = (at >= inside[:, 1:2]) & (at <= inside[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :])[:, None].float()


def _draw(sets: tuple[tuple[data.FaceSet, int], ...], generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random samples of each set → pictures [B, 3, 256, 256] in [0, 1], landmarks [B, 68, 3], inside [B, 4]."""
    pictures, landmarks, inside = [], [], []
    for faces, n in sets:
        index = torch.randint(0, len(faces), (n,), generator=generator).numpy()
        pictures.append(torch.from_numpy(faces.pictures[index]))
        landmarks.append(torch.from_numpy(faces.landmarks[index]))
        inside.append(torch.from_numpy(faces.inside[index]))
    return torch.cat(pictures).movedim(-1, 1).float() / 255, torch.cat(landmarks), torch.cat(inside)


def _background_crop(backgrounds: list[np.ndarray], size_px: int, generator: Generator) -> Tensor:
    """[3, size, size] in [0, 1]: a random part of a picture without faces, a plain colour, or a gradient."""

    def below(n: int) -> int:
        return int(torch.randint(0, max(1, n), (), generator=generator))

    kind = below(10)
    if kind == 0:
        return torch.rand(3, 1, 1, generator=generator).expand(3, size_px, size_px)
    if kind == 1:
        ends = torch.rand(1, 3, 2, 2, generator=generator)
        return F.interpolate(ends, size=(size_px, size_px), mode="bilinear", align_corners=True)[0]
    picture = backgrounds[below(len(backgrounds))]
    side = min(picture.shape[:2])
    side = max(16, int(side * (0.25 + 0.75 * float(torch.rand((), generator=generator)))))
    y, x = below(picture.shape[0] - side + 1), below(picture.shape[1] - side + 1)
    part = Image.fromarray(picture[y : y + side, x : x + side])
    part = part.resize((size_px, size_px), Image.Resampling.BILINEAR, reducing_gap=1.5)
    pixels = torch.from_numpy(np.asarray(part).copy()).movedim(-1, 0).float() / 255
    return pixels.flip(-1) if below(2) else pixels


@torch.inference_mode()
def validate_landmarks(model: LandmarkNet, faces: data.FaceSet, n: int = 512) -> str:
    """Normalised mean error (2D, by the outer-eye distance) on fixed, mildly disturbed crops, and faces recognised."""
    generator = Generator().manual_seed(0)
    index = torch.linspace(0, len(faces) - 1, min(n, len(faces))).long().numpy()
    pictures = torch.from_numpy(faces.pictures[index]).movedim(-1, 1).float() / 255
    landmarks = torch.from_numpy(faces.landmarks[index])
    matrix = data.random_squares(landmarks, model.config.margin, generator, shift=0.04, zoom=0.08, roll_deg=6)
    crops = data.crop(pictures, matrix, model.config.size_px) * 2 - 1
    pred, logit = model(crops)
    error = (data.from_crop(pred, matrix) - landmarks)[..., :2].norm(dim=-1).mean(-1)
    nme = error / (landmarks[:, 36, :2] - landmarks[:, 45, :2]).norm(dim=-1)
    opening = (pred[:, 62, :2] - pred[:, 66, :2]).norm(dim=-1)
    truth = data.to_crop(landmarks, matrix)
    true_opening = (truth[:, 62, :2] - truth[:, 66, :2]).norm(dim=-1)
    correlation = torch.corrcoef(torch.stack([opening, true_opening]))[0, 1]
    return (
        f"NME {100 * nme.mean():.2f} % (median {100 * nme.median():.2f}), opening r {correlation:.3f}, "
        f"found {(logit > 0).float().mean():.3f}"
    )


@torch.inference_mode()
def validate_finder(model: Finder, stills: data.FaceSet, clips: data.FaceSet, backgrounds: list[np.ndarray]) -> str:
    """Share of fixed canvases whose best cell overlaps the face by IoU > 0.5; scores of backgrounds."""
    generator = Generator().manual_seed(0)
    size_px = model.config.canvas_px
    pictures, centres, sides = finder_batch(stills, clips, backgrounds, size_px, 96, generator)
    logits, log_side, offset = model(pictures)
    one = slice(96 // 4 + 96 // 6, None)  # canvases with one face
    hits = []
    for k in range(one.start, 96):
        best = int(logits[k].argmax())
        y, x = divmod(best, logits.shape[-1])
        centre = (torch.tensor([x, y]) + 0.5 + offset[k, :, y, x]) * model.stride
        side = float(log_side[k, y, x].exp()) * model.stride
        hits.append(_square_iou(centre, side, centres[k, 0], float(sides[k, 0])) > 0.5)
    nobody = logits[96 // 4 : one.start].flatten(1).amax(1).sigmoid()
    false = (nobody > 0.3).float().mean()
    return f"hits {np.mean(hits):.3f}, backgrounds: mean score {nobody.mean():.2f}, above 0.3: {false:.2f}"


def _square_iou(centre_a: Tensor, side_a: float, centre_b: Tensor, side_b: float) -> float:
    low = torch.maximum(centre_a - side_a / 2, centre_b - side_b / 2)
    high = torch.minimum(centre_a + side_a / 2, centre_b + side_b / 2)
    both = float((high - low).clamp(min=0).prod())
    return both / (side_a**2 + side_b**2 - both)


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then half a cosine to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / 200)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / n_steps)))


def _ahead(make: Callable[[int], Batch], first: int, end: int) -> Iterator[tuple[int, Batch]]:
    """(step, make(step)) for every step; the next batch is made in a thread while this one is trained on."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(make, first) if first < end else None
        for step in range(first, end):
            assert upcoming is not None
            batch = upcoming.result()
            upcoming = pool.submit(make, step + 1) if step + 1 < end else None
            yield step, batch


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    """Exponential moving average of all floating state (decay 0.999, warmed up); counters are copied."""
    decay = min(0.999, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["finder", "landmarks"])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with clips, tracks and portraits (docs/data.md)"
    )
    parser.add_argument("--backgrounds", type=Path, help="folder of pictures without faces, beside scikit-image's own")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--run", type=Path, help="folder for resuming (default: runs/train_<what>)")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        train(args)
    except InputError as error:
        sys.exit(f"error: {error}")


def train(args: argparse.Namespace) -> None:
    """The loop of both networks, in the order things happen."""
    is_finder = args.what == "finder"
    n_steps = args.steps
    torch.manual_seed(args.seed)
    portraits, clips = data.read_portraits(args.data, "train"), data.read_clips(args.data, "train")
    val_stills, stills = portraits.part(slice(None, None, 12)), portraits.without(slice(None, None, 12))
    val_clips = data.read_clips(args.data, "val", 60, 20)
    empty = data.read_backgrounds(args.backgrounds)
    val_backgrounds, backgrounds = empty[::8], [picture for k, picture in enumerate(empty) if k % 8]
    print(
        f"{len(stills)} portraits, {len(clips)} frames of clips, {len(backgrounds)} pictures without faces", flush=True
    )
    finder_config, landmark_config = FinderConfig(), LandmarkNetConfig()
    model: Finder | LandmarkNet
    if is_finder:
        model = Finder(finder_config)
    else:
        model = LandmarkNet(landmark_config)
        generator = Generator().manual_seed(args.seed)
        points = landmark_batch(stills, clips, backgrounds, landmark_config, 512, generator)[1]
        model.mean_points.copy_(points[64:].mean(0))  # the first eighth holds no faces
    model = model.to(memory_format=torch.channels_last)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {n_steps} steps of {args.batch}",
        flush=True,
    )
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02)
    run = args.run or Path("runs") / f"train_{args.what}"
    run.mkdir(parents=True, exist_ok=True)
    first = 0
    if (run / "state.pt").exists():
        state = torch.load(run / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        if first >= n_steps:
            raise InputError(f"The run in {run} has done its {first} steps: give more --steps, or another --run")
        print(f"resumed at step {first}", flush=True)

    compute_losses: Callable[..., dict[str, Tensor]] = finder_loss if is_finder else landmark_loss

    def make_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = Generator().manual_seed(args.seed * 1_000_003 + step + 1)  # resuming sees the same batches
        if is_finder:
            return finder_batch(stills, clips, backgrounds, finder_config.canvas_px, args.batch, generator)
        return landmark_batch(stills, clips, backgrounds, landmark_config, args.batch, generator)

    sums: dict[str, float] = {}
    started = time.monotonic()
    for step, batch in _ahead(make_batch, first, n_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps, args.lr)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(batch[0].contiguous(memory_format=torch.channels_last))
        losses = compute_losses(*(part.float() for part in out), *batch[1:])
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0 if not is_finder else 5.0)
        optimizer.step()
        update_average(average, model, step)

        for name, value in {**losses, "grad": norm}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if (step + 1) % 200 == 0:
            speed = (step + 1 - first) * args.batch / (time.monotonic() - started)
            line = ", ".join(f"{name} {value / 200:.4f}" for name, value in sums.items())
            print(f"step {step + 1}: {line}, {speed:.0f} samples/s", flush=True)
            sums = {}
        # Once in a while: validate, save.
        if (step + 1) % 1000 == 0 or step + 1 == n_steps:
            if isinstance(average, Finder):
                report = validate_finder(average, val_stills, val_clips, val_backgrounds)
            else:
                report = validate_landmarks(average, val_clips)
            print(f"step {step + 1} validation: {report}", flush=True)
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1}, run / "state.tmp")
            (run / "state.tmp").replace(run / "state.pt")
            weights.save(args.out, average, {"type": args.what, **vars(average.config)}, dtype=torch.float16)


if __name__ == "__main__":
    main()
