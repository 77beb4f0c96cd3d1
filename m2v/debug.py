"""`--debug-dir`: how one frame was made, in pictures. `docs/rendering.md` explains them.

Of the clip that the frame is in, before it is joined to its neighbours: what the networks were told (landmarks, warp,
masks), what they made of it (shift, share, correction, planes), and what the sampler took the planes for at each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.face.draw import overlay
from common.face.model import eye_distance, mouth_opening
from common.files import atomic_path
from common.media import write_picture
from common.triplane import TriPlane
from m2v.autoencoder import Blend, shifted, still_frames
from m2v.condition import FACTOR, FLOW_UNIT_PX
from m2v.source import as_picture
from m2v.watch import Made

AMPLIFIED = 4  # times the correction is shown
MOST_STEPS = 8  # that are drawn
COLUMNS, SMALL_PX, QUALITY = 5, 192, 85  # of contact sheets
# Baker et al. 2011, "A database and evaluation methodology for optical flow": where on their wheel of 55 colours lie.
WHEEL = (0, 15, 21, 25, 36, 49, 55)
RED, GREEN, BLUE = (255, 255, 0, 0, 0, 255, 255), (0, 255, 255, 255, 0, 0, 0), (0, 0, 0, 255, 255, 255, 0)


@dataclass(frozen=True)
class Part:
    """A picture uint8 [H, W, 3], the name of its file without the suffix, and what it shows."""

    name: str
    caption: str
    picture: np.ndarray


class Debug:
    """Draws into a folder how one frame came to be: the given one, or that in which the mouth is open widest.

    begin: landmarks [T or 1, 68, 2 or 3] of the pictures that frames begin with; landmarks: [T, 68, 2 or 3] of those.
    """

    def __init__(self, folder: Path, begin: Tensor, landmarks: Tensor, frame: int | None, overwrite: bool) -> None:
        self.folder, self.overwrite = folder, overwrite
        self.begin, self.landmarks = begin.expand(len(landmarks), -1, -1), landmarks[..., :2]
        self.frame = int(mouth_opening(self.landmarks).nan_to_num().argmax()) if frame is None else frame
        self.is_done = False

    def wants(self, first: int, last: int) -> bool:
        return first <= self.frame < last and not self.is_done

    @torch.inference_mode()
    def see(self, made: Made) -> None:
        k = self.frame - made.first
        parts = list(told(made, k, self.begin[self.frame], self.landmarks[self.frame]))
        steps: list[Part] = []
        if made.decode is not None and made.planes is not None:
            parts += blended(made.decode(made.planes), made, k)
            steps = sampled(made, k)
        parts.append(Part("frame", "the frame, before its clip is joined to the others", shown(made.frames[0, :, k])))
        for part in (*parts, *steps):
            write_picture(self.folder / f"{part.name}.png", part.picture, self.overwrite)
        self.sheet("overview.jpg", parts)
        if steps:
            self.sheet("steps.jpg", [small(part, self.landmarks[self.frame]) for part in steps], len(steps) // 3)
        self.page([*parts, *steps])
        self.is_done = True

    def sheet(self, name: str, parts: Sequence[Part], columns: int = COLUMNS) -> None:
        with atomic_path(self.folder / name, self.overwrite) as temporary:
            Image.fromarray(contact_sheet(parts, columns)).save(temporary, quality=QUALITY)

    def page(self, parts: Sequence[Part]) -> None:
        figures = (
            f'<figure><img src="{part.name}.png"><figcaption>{part.name}: {escape(part.caption)}</figcaption></figure>'
            for part in parts
        )
        style = "figure {display: inline-block; width: 256px; margin: 8px; vertical-align: top} img {width: 100%}"
        title = f"How frame {self.frame} was made"
        with atomic_path(self.folder / "index.html", self.overwrite) as temporary:
            temporary.write_text(
                f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{style}</style>"
                f"<h1>{title}</h1>\n" + "\n".join(figures) + "\n",
                encoding="utf-8",
            )


# ---- what is shown --------------------------------------------------------------------------------------------------


def told(made: Made, k: int, begin: Tensor, target: Tensor) -> Iterator[Part]:
    """What the networks are told about frame k of the clip; begin, target: [68, 2], its landmarks before and after."""
    c = made.conditions
    reference, warped = still_frames(c.reference, made.frames.shape[2])[k], c.warped[0, k]
    flow = upsampled(c.flow[0, k]) * FLOW_UNIT_PX
    yield Part("reference", "the picture, and the landmarks found in it", overlay(shown(reference), begin))
    yield Part("landmarks", "the landmarks asked for, as the networks see them", grey(upsampled(c.maps[0, k], 2)))
    yield Part("flow", f"where the warp looks beside the place itself: {wheel_said(flow)}", flow_colours(flow))
    yield Part("warped", "the picture warped along the landmarks, one dark colour between the lips", shown(warped))
    yield Part(
        "visible", "where the warp can be trusted: white; dark: it folds or smears", grey(upsampled(c.visible[0, k], 2))
    )
    yield Part("inner", "between the lips: what the warp can't know", grey(c.inner[0, k]))
    yield Part("region", "where the planes count", grey(upsampled(c.region[0, k], FACTOR)))


def blended(blend: Blend, made: Made, k: int) -> Iterator[Part]:
    """What the decoder makes of frame k."""
    c = made.conditions
    still = still_frames(c.reference.float(), made.frames.shape[2])[k]
    warped, share, shift = c.warped[0, k].float(), blend.share[0, :, k], blend.shift[0, :, k]
    for name, which, flow in (("warped", "the warp", shift[:2]), ("still", "the picture as it stands", shift[2:])):
        if shift.any():
            flow = upsampled(flow)
            said = f"how far beside it {which} is looked up, learned: {wheel_said(flow)}"
            yield Part(f"shift_{name}", said, flow_colours(flow))
    yield Part("share", "the share of the warp: white; black: of the picture as it stands", grey(share))
    warped, still = (shifted(each[None], flow[None])[0] for each, flow in ((warped, shift[:2]), (still, shift[2:])))
    mixed = share * warped + (1 - share) * still
    yield Part("mixed", "warp and picture, mixed by their shares", shown(mixed))
    correction = blend.frames[0, :, k] - mixed
    said = f"what is added to that, {AMPLIFIED} times as strong; grey: nothing"
    yield Part("correction", said, shown(AMPLIFIED * correction))


def sampled(made: Made, k: int) -> list[Part]:
    """Three rows: the planes at each step, the frame that they stand for, and how it differs from the mean's.

    The mean: planes of zeros, the decoder's single best guess. It comes first; without sampling it is all there is.
    """
    assert made.decode is not None and made.planes is not None
    steps = list(made.steps)
    numbers = sorted({round(n) for n in np.linspace(0, len(steps) - 1, min(len(steps), MOST_STEPS))})
    columns = [("mean", "planes of zeros", made.planes.map(torch.zeros_like))]
    columns += [(f"step_{n + 1}", f"step {n + 1} of {len(steps)}", steps[n]) for n in numbers]
    colours = PlaneColours(made.planes)
    rows: dict[str, list[Part]] = {"planes": [], "frame": [], "change": []}
    mean: Tensor | None = None
    for name, said, planes in columns:
        frame = made.decode(planes).frames[0, :, k]
        mean = frame if mean is None else mean
        captions = f"{said}: xy, below it xt, beside it yt; grey: nothing", f"{said}: the frame"
        change = f"{said}: how that differs from the mean's, {AMPLIFIED} times as strong"
        pictures = colours(planes), shown(frame), shown(AMPLIFIED * (frame - mean))
        for row, caption, picture in zip(rows, (*captions, change), pictures, strict=True):
            rows[row].append(Part(f"{name}_{row}", caption, picture))
    return [part for row in rows.values() for part in row]


def small(part: Part, target: Tensor) -> Part:
    """For a sheet of steps; of a frame, the mouth alone: landmarks [68, 2]."""
    picture = Image.fromarray(part.picture)
    if not part.name.endswith("_planes"):
        x, y = target[48:68].mean(dim=0).tolist()
        half = max(0.8 * float(eye_distance(target)), 4.0)
        picture = picture.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    how = Image.Resampling.BOX if picture.width % SMALL_PX == 0 else Image.Resampling.BICUBIC
    return Part(part.name, part.caption, np.asarray(picture.resize((SMALL_PX, SMALL_PX), how)))


# ---- how it is drawn ------------------------------------------------------------------------------------------------


def shown(picture: Tensor) -> np.ndarray:
    """[3, H, W] in about [-1, 1] → uint8 [H, W, 3]."""
    return as_picture((picture.float().cpu() + 1) * 127.5)


def grey(mask: Tensor) -> np.ndarray:
    """[1 or 3, H, W] in 0..1 → uint8 [H, W, 3]."""
    return as_picture(255 * mask.float().cpu().expand(3, -1, -1))


def upsampled(layer: Tensor, factor: int = 4) -> Tensor:
    """[C, h, w] → [C, factor h, factor w], bilinear, float32."""
    return F.interpolate(layer[None].float(), scale_factor=factor, mode="bilinear", align_corners=False)[0]


def wheel_said(flow: Tensor) -> str:
    return f"red is right, yellow down, green-blue left, violet up; full colour: {float(farthest(flow)):.1f} px"


def farthest(flow: Tensor) -> Tensor:
    return flow.norm(dim=0).max()


def flow_colours(flow: Tensor) -> np.ndarray:
    """A flow [2, H, W], x right and y down, in the colours of the Middlebury wheel: uint8 [H, W, 3].

    White where it is nothing, full where it is longest.
    """
    x, y = (flow.float().cpu() / farthest(flow).clamp(min=1e-6).cpu()).numpy()
    at = (np.arctan2(y, x) / (2 * np.pi) % 1) * WHEEL[-1]
    colour = np.stack([np.interp(at, WHEEL, channel) for channel in (RED, GREEN, BLUE)], axis=-1)
    return (255 - np.hypot(x, y)[..., None] * (255 - colour)).round().astype(np.uint8)


class PlaneColours:
    """Planes [1, C, ., .] in three colours: the directions in which those of one clip differ most from saying nothing.

    One set of directions for all three planes, so that colours may be compared.
    """

    def __init__(self, planes: TriPlane) -> None:
        said = planes.pack()[0].float().cpu()  # [C, L]
        directions, _, _ = torch.linalg.svd(said, full_matrices=False)  # about zero: grey is nothing
        self.directions = F.pad(directions[:, :3], (0, max(0, 3 - directions.shape[1])))
        strength = (self.directions.mT @ said).abs()
        self.most = strength.quantile(0.98).clamp(min=1e-6)

    def __call__(self, planes: TriPlane) -> np.ndarray:
        """xy, below it xt (time goes down), beside it yt (time goes to the right): uint8 [H + n, W + n, 3]."""
        xy, xt, yt = (self._drawn(plane[0]) for plane in planes)
        corner = torch.ones(3, xt.shape[1], yt.shape[1])
        box = torch.cat([torch.cat([xy, yt.mT], dim=2), torch.cat([xt, corner], dim=2)], dim=1)
        return grey(F.interpolate(box[None], scale_factor=FACTOR, mode="nearest")[0])

    def _drawn(self, plane: Tensor) -> Tensor:
        """[C, rows, columns] → [3, rows, columns] in 0..1."""
        values = torch.einsum("ck,cij->kij", self.directions, plane.float().cpu())
        return (0.5 + 0.5 * values / self.most).clamp(0, 1)


def contact_sheet(parts: Sequence[Part], columns: int) -> np.ndarray:
    """Pictures in rows, each over its name: uint8 [H, W, 3]."""
    width, text = max(part.picture.shape[1] for part in parts), 18
    height = max(part.picture.shape[0] for part in parts)
    n_rows = -(-len(parts) // columns)
    sheet = Image.new("RGB", (columns * (width + 4), n_rows * (height + text + 4)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, part in enumerate(parts):
        x, y = number % columns * (width + 4), number // columns * (height + text + 4)
        sheet.paste(Image.fromarray(part.picture), (x, y))
        pen.text((x + 2, y + part.picture.shape[0] + 1), part.name, fill="black", font=font)
    return np.asarray(sheet)
