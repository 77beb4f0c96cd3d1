"""What stage two is told about each frame: the reference picture, warped and as it is, and the landmarks asked for.

The autoencoder and the denoiser look at the same `Conditions`. Where the reference's mouth is closed nothing is known
of its inside, and where it is open, that inside would leak into every frame: within the inner lips the warp is one dark
colour, in the light that the lips are in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from common.face import warp
from common.face.draw import landmark_map
from common.face.model import eye_distance

FACTOR = 8  # pixels of a frame per row or column of the planes
FLOW_UNIT_PX = 16.0
OUTER_MIDDLE, INNER_MIDDLE = (50, 51, 52, 56, 57, 58), (61, 62, 63, 65, 66, 67)  # facing each other across the lips
DARKNESS = 0.35  # of the lips' light
Window = tuple[int, int, int]  # first row, first column and side of a square part of the picture, multiples of 8


@dataclass(frozen=True)
class Conditions:
    """Of a clip [B, S, ...] (or, without the B, of one clip). Pictures are in [-1, 1], masks and maps in 0..1.

    reference: [B, 3, H, W], or [B, S, 3, H, W] where every frame has its own (a video that is dubbed); warped:
    [B, S, 3, H, W], one colour within the lips; inner: [B, S, 1, H, W], 1 there; visible: [B, S, 1, H/2, W/2], where
    the warp can be trusted; maps: [B, S, 3, H/2, W/2], the landmarks drawn; flow: [B, S, 2, H/4, W/4], x and y, where
    the warp looks beside the place itself, in 16 pixels; region: [B, S, 1, H/8, W/8], 1 around the mouth, where planes
    count.
    """

    reference: Tensor
    warped: Tensor
    inner: Tensor
    visible: Tensor
    maps: Tensor
    flow: Tensor
    region: Tensor

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Conditions:
        return Conditions(*(getattr(self, f.name).to(device, dtype) for f in fields(self)))

    def __getitem__(self, which: slice) -> Conditions:
        """A part of the batch."""
        return Conditions(*(getattr(self, f.name)[which] for f in fields(self)))

    def batched(self) -> Conditions:
        """One clip as a batch of one."""
        return Conditions(*(getattr(self, f.name)[None] for f in fields(self)))


def build(picture: Tensor, source: Tensor, targets: Tensor, window: Window | None = None) -> Conditions:
    """Conditions of one clip: picture [3, H, W] in [-1, 1], its landmarks [68, 2], those of the frames [S, 68, 2].

    Or a picture and landmarks for each frame: [S, 3, H, W] and [S, 68, 2]. Points are in pixels, y down. window: only
    that part of the picture (training on crops).
    """
    height, width = picture.shape[-2:]
    top, left, rows = window or (0, 0, height)
    columns = rows if window else width
    n_frames = len(targets)
    grid = warp.backward_grid(source.expand(n_frames, -1, -1), targets, height, width)
    inner = warp.inner_mouth_mask(targets, height, width)[..., top : top + rows, left : left + columns]
    visible = warp.visibility(grid)[..., top : top + rows, left : left + columns]
    flow = (grid - warp.places(height, width, grid))[:, top : top + rows, left : left + columns].movedim(-1, 1)
    region = mouth_region(targets, height, width)
    pictures = picture.view(-1, *picture.shape[-3:])  # one, or one for each frame
    warped = warp.apply(pictures, grid[:, top : top + rows, left : left + columns])
    return Conditions(
        reference=picture[..., top : top + rows, left : left + columns],
        warped=warped + inner * (dark_of(picture, source) - warped),
        inner=inner,
        visible=F.avg_pool2d(visible, 2),
        maps=draw(targets, window or (0, 0, height), columns),
        flow=F.avg_pool2d(flow, 4) / FLOW_UNIT_PX,
        region=region[..., top // FACTOR : (top + rows) // FACTOR, left // FACTOR : (left + columns) // FACTOR],
    )


def mouth_region(targets: Tensor, height: int, width: int) -> Tensor:
    """A soft oval around the mouth of each frame: landmarks [S, 68, 2] -> [S, 1, height / 8, width / 8].

    It reaches from the nose to the chin whether the mouth is open or not.
    """
    scale = eye_distance(targets)[:, None, None]  # [S, 1, 1], pixels
    x, y = targets[:, 48:68].mean(dim=1)[..., None, None].unbind(1)  # [S, 1, 1]
    columns = (torch.arange(width // FACTOR).to(targets) + 0.5) * FACTOR - 0.5
    rows = (torch.arange(height // FACTOR).to(targets) + 0.5) * FACTOR - 0.5
    across, down = (columns[None, None] - x) / (0.75 * scale), (rows[None, :, None] - y) / (0.6 * scale)
    return torch.sigmoid(6 * (1 - (across**2 + down**2).sqrt()))[:, None]


def dark_of(picture: Tensor, source: Tensor) -> Tensor:
    """A dark version of the lips' colour, [3, 1, 1] in [-1, 1]: a first guess at the inside of a mouth.

    picture: [3, H, W] and its landmarks [68, 2]; or those of every frame of a clip, [S, ...].
    """
    if picture.ndim == 4:  # the same colour for a whole clip: the dark of a mouth doesn't flicker
        each = torch.stack([dark_of(*pair) for pair in zip(picture, source, strict=True)])
        return each.median(dim=0).values
    height, width = picture.shape[-2:]
    lips = (source[list(OUTER_MIDDLE)] + source[list(INNER_MIDDLE)]) / 2
    columns, rows = lips[:, 0].round().long().clamp(0, width - 1), lips[:, 1].round().long().clamp(0, height - 1)
    colour = picture[:, rows, columns].median(dim=1).values
    return (DARKNESS * (colour + 1) - 1).view(3, 1, 1)


def draw(targets: Tensor, window: Window, columns: int) -> Tensor:
    """Landmarks [S, 68, 2] drawn at half the size of a window `columns` wide: [S, 3, rows / 2, columns / 2]."""
    top, left, rows = window
    corner = targets.new_tensor([left, top])
    halved = (targets[..., :2] - corner + 0.5) / 2 - 0.5  # pixel k covers k - 1/2 to k + 1/2
    return landmark_map(halved, rows // 2, columns // 2, line_px=1.0)
