"""`--renderer warp`: the instant preview. The reference picture is bent so that its landmarks follow the Motion.

It knows nothing that the picture does not show. What a warp cannot do is done by hand: where a closed mouth opens, the
gap between the inner lips is painted (dark, with a row of upper teeth) instead of smearing lip over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from common.face import warp
from common.face.model import eye_distance, mouth_opening
from m2v.condition import build
from m2v.drive import Limits
from m2v.source import Source
from m2v.watch import Made, Watch

BATCH = 16  # frames warped at once
UPPER_INNER, LOWER_INNER = (60, 61, 62, 63, 64), (64, 65, 66, 67, 60)  # corner to corner
# By eye: beyond, the far cheek folds over (or swells, where a turned head turns back) and the border is dragged in.
LIMITS = Limits(turn_rad=math.radians(18), aside_rad=math.radians(28), shift=0.35, log_zoom=0.3)
TEETH = 0.085  # how much of the upper teeth can show at most, in distances of the eyes' centres
CHEEKS = (2, 3, 13, 14)  # skin around the nose is found between these and the nose


class WarpRenderer:
    """Frames from a source; holds one batch of frames at a time, whatever the length."""

    name = "warp"

    def __init__(self, source: Source, device: torch.device | str = "cpu") -> None:
        self.source = source
        self.device = torch.device(device)
        points = source.landmarks[:, :2]
        self.eye_distance = float(eye_distance(points))
        self.colours = _mouth_colours(source.picture, points.numpy())

    @torch.inference_mode()
    def render(self, landmarks: Tensor, watch: Watch | None = None) -> Iterator[Tensor]:
        """Target landmarks [T, 68, 2 or 3], pixels of the source (`m2v.drive`) → T frames float32 [3, H, W], 0..255.

        watch: is shown the batches that it wants.
        """
        height, width = self.source.picture.shape[:2]
        first = 0
        for targets in landmarks[..., :2].to(self.device).split(BATCH):
            n = len(targets)
            pictures, points = (each.to(self.device) for each in self.source.begin(first, n))
            grid = warp.backward_grid(points.expand(n, -1, -1), targets, height, width)
            frames = (warp.apply(pictures, grid) + 1) * 127.5
            gap = warp.inner_mouth_mask(targets, height, width)  # [b, 1, H, W]
            warped = frames.clamp(0, 255).movedim(1, -1).cpu().numpy()
            openings = mouth_opening(targets).nan_to_num().tolist()
            shown = mouth_opening(points).nan_to_num().expand(n).tolist()
            masks, shapes = gap[:, 0].cpu().numpy(), targets.cpu().numpy()
            with_mouths = map(self._with_mouth, warped, masks, shapes, openings, shown)
            made = [torch.from_numpy(frame).movedim(-1, 0) for frame in with_mouths]
            if watch is not None and watch.wants(first, first + n):
                conditions = build(pictures.expand(n, -1, -1, -1), points.expand(n, -1, -1), targets)
                watch.see(Made(first, conditions.batched(), torch.stack(made, dim=1)[None] / 127.5 - 1))
            yield from made
            first += n

    def _with_mouth(
        self, frame: np.ndarray, mask: np.ndarray, points: np.ndarray, opening: float, shown: float
    ) -> np.ndarray:
        """Paint what lies between the inner lips, as far as the source's own mouth, open by `shown`, hides it."""
        shown = max(shown, 1e-3)
        # The warp stretches what the picture shows: up to one and a half times that looks right, three times does not.
        need = float(np.clip((opening / shown - 1.5) / 1.5, 0, 1)) if opening > 0.01 else 0.0
        height, width = mask.shape
        low, high = points[60:68].min(0), points[60:68].max(0)
        x0, y0 = (int(max(0, v - 3)) for v in low)
        x1, y1 = int(min(width, high[0] + 4)), int(min(height, high[1] + 4))
        if need == 0.0 or x0 >= x1 or y0 >= y1:
            return frame
        painted = self._paint(points, opening, (x0, y0, x1, y1))
        part = frame[y0:y1, x0:x1]
        weight = (need * mask[y0:y1, x0:x1])[..., None]
        frame[y0:y1, x0:x1] = part + weight * (painted - part)
        return frame

    def _paint(self, points: np.ndarray, opening: float, box: tuple[int, int, int, int]) -> np.ndarray:
        """The inside of the mouth in a box x0, y0, x1, y1 of the frame, float [h, w, 3]."""
        x0, y0, x1, y1 = box
        dark, tongue, teeth = self.colours
        zoom = 4  # drawn larger, then shrunk: smooth edges
        canvas = Image.new("RGB", ((x1 - x0) * zoom, (y1 - y0) * zoom), tuple(dark))
        draw = ImageDraw.Draw(canvas)

        def polygon(outline: np.ndarray, colour: np.ndarray) -> None:
            draw.polygon([((x - x0 + 0.5) * zoom, (y - y0 + 0.5) * zoom) for x, y in outline], fill=tuple(colour))

        down = points[LOWER_INNER[2], :] - points[UPPER_INNER[2], :]
        down = down / max(float(np.linalg.norm(down)), 1e-3)
        upper, lower = points[list(UPPER_INNER)], points[list(LOWER_INNER)]
        tongue_height = 0.5 * max(0.0, opening - 0.1) * self.eye_distance  # it lies low: a small gap does not show it
        polygon(np.concatenate([lower, lower[::-1] - tongue_height * down]), tongue)
        drop = min(0.4 * opening, TEETH) * self.eye_distance * np.array([0.1, 0.85, 1.0, 0.85, 0.1])
        polygon(np.concatenate([upper - 2 * down, (upper + drop[:, None] * down)[::-1]]), teeth)
        canvas = canvas.filter(ImageFilter.GaussianBlur(0.9 * zoom))
        small = np.asarray(canvas.resize((x1 - x0, y1 - y0), Image.Resampling.BOX), np.float32)
        # Light falls off towards the corners of the mouth.
        left, right = float(points[60:68, 0].min()), float(points[60:68, 0].max())
        middle, half = (left + right) / 2, max((right - left) / 2, 1.0)
        across = np.abs((np.arange(x0, x1) - middle) / half).clip(0, 1)
        return small * (1 - 0.55 * across**2)[None, :, None]


def _mouth_colours(picture: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours of the dark of the mouth, the tongue and the teeth in this picture's light, uint8 [3] each."""
    skin = _colour_at(picture, np.stack([(points[c] + points[31 if c < 8 else 35]) / 2 for c in CHEEKS]))
    lips = _colour_at(picture, (points[[50, 51, 52, 56, 57, 58]] + points[[61, 62, 63, 65, 66, 67]]) / 2)
    light = float(skin @ [0.299, 0.587, 0.114])
    # White, in the light that the skin is in: less coloured than the skin itself.
    teeth = min(0.95 * light + 5, 210.0) * (skin / max(light, 1.0)) ** 0.35
    dark, tongue, teeth = np.stack([0.2 * lips, 0.5 * lips, teeth]).clip(0, 255).astype(np.uint8)
    return dark, tongue, teeth


def _colour_at(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The median colour of a picture at points [P, 2], float64 [3]."""
    columns, rows = points.round().astype(int).T
    at = rows.clip(0, picture.shape[0] - 1), columns.clip(0, picture.shape[1] - 1)
    return np.median(picture[at].astype(np.float64), axis=0)
