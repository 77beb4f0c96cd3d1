"""`--framing full`: the whole picture, its face replaced by what a renderer made of the square around it.

A renderer's frame is small; the picture need not be. Scaling the frame up would make a soft face in a sharp picture, so
only what is new is taken from it. A frame is, nearly, the square warped along the landmarks, and the picture can be
warped by the same flow at its own size:

    out = W (warped + slow difference) + (1 − W) frame,   difference = frame − warped, in the frame's pixels

W says how far the picture's detail still holds: not inside a mouth that moved, not where the frame has structure that
the picture has not. Two masks follow the head. In the *head's* (hair and neck included) the picture moves; towards its
border the flow fades to nothing, so that nothing is cross-faded that lies in two places, and no edge is double. In the
*face's* the frame counts; hair and background are the picture's own, bent a little near the head, which looks better
than what a small network makes of them. Before that, the difference's slow part along the face's border is taken out of
all of it: a frame in another light than the picture leaves no rim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.face import warp
from common.face.framing import Crop
from m2v.compose import Layers, as_levels, blur, box_of, compose, cubic, detail, mouth_moved, slow, workers
from m2v.masks import edge_fade, face_mask, head_mask

CAST_CELLS, CAST_WIDTH = 32, 5.0  # colour casts are known on a coarse grid, over a Gaussian of that many cells
CAST_OFF = 4.0  # levels from the median, beyond which a difference is not the light's
TONES = (2.0, 6.0)  # levels beside one line of colours: below, a picture is monochrome; above, coloured


@dataclass(frozen=True)
class Original:
    """What is known of a picture before any frame is made: the same for all frames of a still picture.

    square: the crop at its own size, float32 [1, 3, side, side], 0..255; small: as the renderer saw it, [1, 3, h, h];
    tones: see `_tones`; source: [1, 68, 2] landmarks in pixels of `small`.
    """

    picture: np.ndarray
    square: Tensor
    small: Tensor
    tones: Tensor
    source: Tensor


class Paster:
    """For frames of one crop of pictures width x height; of a crop that follows a face, one for every place it has.

    What the last picture and its landmarks need is kept: a picture that is the same array as before is taken to be
    unchanged. Memory is that of the crop, whatever the number of frames.
    """

    def __init__(self, crop: Crop, width: int, height: int) -> None:
        x1, y1 = crop.x0 + crop.side, crop.y0 + crop.side
        if crop.side < 1 or crop.x0 < 0 or crop.y0 < 0 or x1 > width or y1 > height:
            raise ValueError(f"the crop {crop} does not lie in a picture of {width}x{height}")
        self.crop, self.width, self.height = crop, width, height
        self.edge = edge_fade(crop, width, height)  # [h, h]
        self.original: Original | None = None

    def paste(self, picture: np.ndarray, source: Tensor, target: Tensor, frame: Tensor) -> np.ndarray:
        """The picture uint8 [H, W, 3] with its face as in a renderer's frame → uint8 [H, W, 3], a new array.

        source, target: [68, 2] in pixels of the crop, of the picture's face and of the frame's. Raises ValueError where
        sizes do not fit.
        """
        self._check(picture, source, target, frame)
        original = self._original(picture, source)
        begun = workers().submit(_layers, original, target, frame, self.edge, self.crop)
        result = picture.copy()
        layers = begun.result()
        if layers is not None:
            x0, y0, x1, y1 = layers.head
            part = result[self.crop.y0 + y0 : self.crop.y0 + y1, self.crop.x0 + x0 : self.crop.x0 + x1]
            compose(original.square, layers, self.crop, part)
        return result

    def mask(self, source: Tensor, target: Tensor) -> np.ndarray:
        """How far the picture may be changed, float32 [H, W] in 0..1; where it is 0, it is not."""
        mask = head_mask(source, target, self.crop.size_px) * self.edge
        whole = np.zeros((self.height, self.width), np.float32)
        box = box_of(mask > 0, self.crop)
        if box is not None:
            x0, y0, x1, y1 = box
            rows, columns = (cubic(torch.arange(*ends), self.crop) for ends in ((y0, y1), (x0, x1)))
            reached = (rows != 0).float() @ mask @ (columns != 0).float().mT
            part = torch.where(reached > 0, (rows @ mask @ columns.mT).clamp(1e-6, 1), 0.0)
            whole[self.crop.y0 + y0 : self.crop.y0 + y1, self.crop.x0 + x0 : self.crop.x0 + x1] = part.numpy()
        return whole

    def _original(self, picture: np.ndarray, source: Tensor) -> Original:
        last = self.original
        source = source[None].to(torch.float32)
        if last is None or last.picture is not picture:
            c = self.crop
            begun = workers().submit(as_levels, picture[c.y0 : c.y0 + c.side, c.x0 : c.x0 + c.side])
            small, tones = workers().submit(self._small, picture).result()
            last = Original(picture, begun.result(), small, tones, source)
        self.original = replace(last, source=source)
        return self.original

    @torch.inference_mode()
    def _small(self, picture: np.ndarray) -> tuple[Tensor, Tensor]:
        small = as_levels(self.crop.cut(picture))
        return small, _tones(small)

    def _check(self, picture: np.ndarray, source: Tensor, target: Tensor, frame: Tensor) -> None:
        if picture.shape != (self.height, self.width, 3) or picture.dtype != np.uint8:
            raise ValueError(
                f"a picture is uint8 [{self.height}, {self.width}, 3] here, got {picture.dtype} {list(picture.shape)}"
            )
        for points in (source, target):
            if points.shape != (68, 2):
                raise ValueError(f"a face has landmarks [68, 2] in pixels of the crop, got {list(points.shape)}")
            if not points.isfinite().all():
                raise ValueError("landmarks hold numbers that are not finite: leave such frames out")
        h = self.crop.size_px
        if frame.shape != (3, h, h):
            raise ValueError(f"a frame of this crop is [3, {h}, {h}], got {list(frame.shape)}")


# ---- in the renderer's pixels ---------------------------------------------------------------------------------------


@torch.inference_mode()
def _layers(original: Original, target: Tensor, frame: Tensor, edge: Tensor, crop: Crop) -> Layers | None:
    """None where nothing of the head lies in the crop. target: [68, 2]; frame: [3, h, h]; edge: [h, h]."""
    frame, target = frame[None].to(original.small), target[None].to(original.source)
    height, width = frame.shape[-2:]
    mask = head_mask(original.source[0], target[0], height)[None, None] * edge
    box = box_of(mask[0, 0] > 0, crop)
    if box is None:
        return None
    grid = warp.backward_grid(original.source, target, height, width)
    warped = warp.apply(original.small, grid)
    frame = warped + _in_tones(frame - warped, original.tones)
    face = face_mask(target[0], height) * mask
    cast = _cast(frame - warped, face)
    inner = warp.inner_mouth_mask(target, height, width) * mouth_moved(original.source, target)
    kept = 1 - face * (1 - detail(frame, warped) * (1 - inner))
    added = face * kept * slow(frame - warped - cast) + (1 - kept) * (frame - cast)
    flow = (grid - warp.places(height, width, grid)).movedim(-1, 1)
    return Layers(mask * flow, torch.cat([added, kept], dim=1), box, box_of(face[0, 0] > 0, crop))


def _cast(difference: Tensor, mask: Tensor) -> Tensor:
    """The difference's slow part along the mask's border, carried on across it: [1, 3, h, w].

    A normalised Gaussian average; places whose difference is far from the border's median (hair that moved) count less.
    """
    band = 4 * mask * (1 - mask)
    within = band[0, 0] > 0.25
    if not within.any():
        return torch.zeros_like(difference)
    middle = difference[0, :, within].median(dim=1).values.view(1, 3, 1, 1)
    off = (difference - middle).square().mean(dim=1, keepdim=True)
    weight = band / (1 + off / CAST_OFF**2)
    cells = F.adaptive_avg_pool2d(torch.cat([weight * difference, weight], dim=1), (CAST_CELLS, CAST_CELLS))
    wide = blur(cells, CAST_WIDTH) + 1e-3 * cells.mean(dim=(2, 3), keepdim=True)
    return F.interpolate(wide[:, :3] / wide[:, 3:], difference.shape[-2:], mode="bilinear", align_corners=False)


def _tones(small: Tensor) -> Tensor:
    """What a difference may be in this picture, [3, 3]: the identity, or the projection on its one line of colours.

    Photographs in black and white or sepia have one; a network that knows colours would redden their lips.
    """
    colours = small[0].flatten(1).double()  # [3, N]
    spread, axes = torch.linalg.eigh(torch.cov(colours))
    beside = float(spread[1].clamp(min=0).sqrt())
    coloured = min(max((beside - TONES[0]) / (TONES[1] - TONES[0]), 0.0), 1.0)
    line = torch.outer(axes[:, 2], axes[:, 2])
    return (line + coloured * (torch.eye(3, dtype=line.dtype, device=line.device) - line)).float()


def _in_tones(difference: Tensor, tones: Tensor) -> Tensor:
    return torch.tensordot(tones, difference, dims=([1], [1])).movedim(0, 1)
