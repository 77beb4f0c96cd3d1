"""Pictures of faces with their landmarks, for training the finder and the landmark network, and how they are disturbed.

Layout of the data folder: `index.csv`, `clips/*.mp4`, `tracks/*.npz`, `portraits/*.jpg`, `portraits.csv`,
`portraits_landmarks.npz` (docs/data.md). Everything random comes from the generator that is passed in.
"""

import csv
import logging
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from common.clip_index import read_index
from common.files import check_input
from common.media import VideoReader, read_picture

log = logging.getLogger(__name__)

FRAME_PX = 256  # every stored picture: a square with the head in it


@dataclass
class FaceSet:
    """pictures uint8 [N, 256, 256, 3]; landmarks float32 [N, 68, 3] in their pixels (x right, y down);
    inside float32 [N, 4]: the part x0, y0, x1, y1 that really is picture (a portrait's square may reach beyond it)."""

    pictures: np.ndarray
    landmarks: np.ndarray
    inside: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    def part(self, which: slice | np.ndarray) -> "FaceSet":
        return FaceSet(self.pictures[which], self.landmarks[which], self.inside[which])

    def without(self, which: slice) -> "FaceSet":
        keep = np.ones(len(self), bool)
        keep[which] = False
        return self.part(keep)


def read_clips(data_dir: Path, split: str, per_person: int = 300, per_clip: int = 60, every: int = 5) -> FaceSet:
    """Frames of the clips of one split, spread evenly over each clip, so that no person and no clip dominates."""
    rows = [row for row in read_index(data_dir, "overlay") if row["split"] == split and not row["overlay"]]
    by_person: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_person[row["person"]].append(row)
    pictures, landmarks = [], []
    for person_rows in by_person.values():
        for row in person_rows:
            track = np.load(data_dir / "tracks" / f"{row['clip_id']}.npz")
            good = np.flatnonzero(track["valid"])
            if len(good) == 0:
                log.warning("%s: no valid frame in its track", row["clip_id"])
                continue
            # The largest labels are crowds of look-alikes with one-second clips: up to three frames each.
            n_wanted = min(max(3, per_person // len(person_rows)), per_clip, max(1, len(good) // every))
            wanted = set(good[np.linspace(0, len(good) - 1, n_wanted).round().astype(int)].tolist())
            with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
                for k, (_, frame) in enumerate(video):
                    if k in wanted:
                        pictures.append(frame)
                        landmarks.append(track["landmarks"][k].astype(np.float32))
    inside = np.tile(np.array([0, 0, FRAME_PX, FRAME_PX], np.float32), (len(pictures), 1))
    return FaceSet(np.stack(pictures), np.stack(landmarks), inside)


def read_portraits(data_dir: Path, split: str, context: float = 2.4) -> FaceSet:
    """Portraits of one split with known landmarks: a square of `context` face sizes around the face, grey outside."""
    check_input(data_dir / "portraits.csv", "list of the portraits")
    with (data_dir / "portraits.csv").open() as file:
        wanted = {row["name"] for row in csv.DictReader(file) if row["split"] == split}
    table = np.load(data_dir / "portraits_landmarks.npz")
    pictures, landmarks, inside = [], [], []
    for name, points, valid in zip(table["names"], table["landmarks"], table["valid"], strict=True):
        if name not in wanted or not valid:
            continue
        picture = Image.fromarray(read_picture(data_dir / "portraits" / f"{name}.jpg"))
        centre, side = face_square(points)
        half = context * side / 2
        corner = centre - half
        box = tuple(float(v) for v in (*corner, *(corner + 2 * half)))
        square = picture.transform(
            (2 * FRAME_PX, 2 * FRAME_PX),
            Image.Transform.EXTENT,
            box,
            Image.Resampling.BICUBIC,
            fillcolor=(127, 127, 127),
        )
        pictures.append(np.asarray(square.resize((FRAME_PX, FRAME_PX), Image.Resampling.LANCZOS)))
        zoom = FRAME_PX / (2 * half)
        scaled = points.copy()
        scaled[:, :2] += 0.5 - corner  # pixel k covers k - ½ to k + ½; `corner` is an edge
        scaled *= zoom
        scaled[:, :2] -= 0.5
        landmarks.append(scaled.astype(np.float32))
        ends = np.stack([-corner, np.array(picture.size) - corner]) * zoom
        inside.append(ends.clip(0, FRAME_PX).reshape(4).astype(np.float32))
    return FaceSet(np.stack(pictures), np.stack(landmarks), np.stack(inside))


def read_backgrounds(folder: Path | None, size_px: int = 512) -> list[np.ndarray]:
    """Pictures without faces, scikit-image's own and those of `folder`: uint8 [H, W, 3], longer side ≤ `size_px`."""
    from skimage import data

    names = ["coffee", "rocket", "chelsea", "hubble_deep_field", "immunohistochemistry", "retina", "brick", "grass"]
    names += ["gravel", "page", "text", "coins", "clock", "moon"]
    pictures = [np.asarray(Image.fromarray(getattr(data, name)()).convert("RGB")) for name in names]
    for path in sorted(folder.rglob("*")) if folder else []:
        if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}:
            pictures.append(read_picture(path))
    shrunk = []
    for picture in pictures:
        image = Image.fromarray(picture)
        image.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
        shrunk.append(np.asarray(image))
    return shrunk


def face_square(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Landmarks [68, 2 or 3] → centre (x, y) of their bounding box and its longer side: the finder's target."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    return (low + high) / 2, float((high - low).max())


def uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    """[n] float32, uniform in [low, high)."""
    return low + (high - low) * torch.rand(n, generator=generator)


def similarity(centre: Tensor, side: Tensor, angle_rad: Tensor) -> Tensor:
    """Crop squares → matrices [B, 2, 3] from crop coordinates in [-1, 1] to picture pixels.

    centre [B, 2] pixels, side [B] pixels, angle_rad [B]: how far the crop is turned (clockwise on the screen).
    """
    half, cos, sin = side / 2, angle_rad.cos(), angle_rad.sin()
    rows = torch.stack([half * cos, -half * sin, centre[:, 0], half * sin, half * cos, centre[:, 1]], dim=-1)
    return rows.view(-1, 2, 3)


def crop(pictures: Tensor, matrix: Tensor, size_px: int) -> Tensor:
    """Bilinear crops: pictures [B, 3, H, W], matrix [B, 2, 3] of `similarity` → [B, 3, size, size], zeros outside."""
    height, width = pictures.shape[-2:]
    scale = matrix.new_tensor([[2 / width], [2 / height]])
    shift = matrix.new_tensor([1 / width - 1, 1 / height - 1])  # pixel centres at integers, align_corners=False
    theta = matrix * scale
    theta = torch.cat([theta[..., :2], theta[..., 2:] + shift[:, None]], dim=-1)
    grid = F.affine_grid(theta, [len(pictures), 1, size_px, size_px], align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def to_crop(points: Tensor, matrix: Tensor) -> Tensor:
    """Picture landmarks [B, P, 3] → crop coordinates (x and y in [-1, 1] over the crop, z in the same scale)."""
    linear, shift = matrix[..., :2], matrix[..., 2]
    xy = torch.linalg.solve(linear, (points[..., :2] - shift[:, None]).mT).mT
    z = points[..., 2:] / torch.linalg.det(linear).sqrt().view(-1, 1, 1)
    return torch.cat([xy, z], dim=-1)


def from_crop(points: Tensor, matrix: Tensor) -> Tensor:
    """The inverse of `to_crop`."""
    linear, shift = matrix[..., :2], matrix[..., 2]
    xy = (linear @ points[..., :2].mT).mT + shift[:, None]
    return torch.cat([xy, points[..., 2:] * torch.linalg.det(linear).sqrt().view(-1, 1, 1)], dim=-1)


def disturb_colours(crops: Tensor, generator: Generator) -> Tensor:
    """Crops [B, 3, H, W] in [0, 1] under other light, cameras and codecs: gain, gamma, cast, grey, blur, noise."""
    batch, device = len(crops), crops.device
    column = (batch, 1, 1, 1)

    def draw(low: float, high: float) -> Tensor:
        return uniform(batch, low, high, generator).view(column).to(device)

    def chosen(p: float) -> Tensor:
        return (torch.rand(column, generator=generator) < p).to(device)

    x = crops.clamp(1e-4, 1) ** torch.exp(draw(-0.4, 0.4))
    cast = 1 + 0.15 * (2 * torch.rand(batch, 3, 1, 1, generator=generator).to(device) - 1)
    x = ((x - 0.5) * draw(0.6, 1.3) + 0.5 + draw(-0.15, 0.15)) * cast
    x = torch.where(chosen(0.15), x.mean(1, keepdim=True), x)
    factor = 2 if torch.rand((), generator=generator) < 0.6 else 4
    coarse = F.interpolate(F.avg_pool2d(x, factor), size=x.shape[-2:], mode="bilinear", align_corners=False)
    x = torch.where(chosen(0.25), coarse, x)
    noise = torch.randn(x.shape, generator=generator).to(device)
    return (x + noise * draw(0.0, 0.08) * chosen(0.4)).clamp(0, 1)


def occlude(crops: Tensor, generator: Generator, p: float = 0.3) -> Tensor:
    """Lay a rectangle of another sample over some: hands, microphones and captions will have to look like that."""
    batch, _, height, width = crops.shape
    rows = torch.arange(height).view(1, height, 1)
    columns = torch.arange(width).view(1, 1, width)
    centre_y, centre_x = (uniform(batch, 0, side, generator).view(-1, 1, 1) for side in (height, width))
    half_y, half_x = (uniform(batch, 0.05, 0.22, generator).view(-1, 1, 1) * side for side in (height, width))
    inside = ((rows - centre_y).abs() < half_y) & ((columns - centre_x).abs() < half_x)
    inside &= (torch.rand(batch, generator=generator) < p).view(-1, 1, 1)
    other = crops.roll(1, 0).flip(-2)
    return torch.where(inside[:, None], other, crops)


def random_squares(
    landmarks: Tensor, margin: float, generator: Generator, *, shift: float, zoom: float, roll_deg: float
) -> Tensor:
    """Landmarks [B, 68, 3] → matrices [B, 2, 3] of squares around the faces, disturbed.

    margin: side of the undisturbed square in face sizes; shift: ± part of that side; zoom: ± in natural log; roll: ±.
    """
    low, high = landmarks[..., :2].amin(1), landmarks[..., :2].amax(1)
    batch = len(landmarks)
    side = (high - low).amax(-1) * margin * torch.exp(uniform(batch, -zoom, zoom, generator))
    centre = (low + high) / 2
    centre = centre + side[:, None] * torch.stack([uniform(batch, -shift, shift, generator) for _ in "xy"], dim=-1)
    return similarity(centre, side, uniform(batch, -1, 1, generator) * math.radians(roll_deg))
