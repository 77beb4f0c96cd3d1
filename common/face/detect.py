"""Faces in pictures: where they are and their 68 landmarks; `detect(pictures, back_end)` is the one door to them.

The built-in back end runs a small finder over a pyramid of the picture and, on each candidate, a landmark network that
also judges whether this is a face; where it finds nothing, scikit-image's LBP cascade proposes candidates. Nothing is
downloaded, and the same picture gives the same landmarks everywhere. `face-alignment-2d` and `face-alignment-3d` (an
extra) are asked for their landmarks where the built-in one finds the face.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common import weights
from common.errors import InputError
from common.face import face_alignment_backend
from common.face.conventions import FACEMESH68
from common.face.data import crop, from_crop, similarity
from common.face.model import LEFT_EYE, RIGHT_EYE, mirror
from common.face.nets import Finder, FinderConfig, LandmarkNet, LandmarkNetConfig

BUILTIN = "builtin"
BACK_ENDS = (BUILTIN, *face_alignment_backend.NAMES)
CONVENTION_OF = {BUILTIN: FACEMESH68, **face_alignment_backend.CONVENTION_OF}

PYRAMID_PX = (160, 320, 640, 1280)  # longer sides at which the finder looks; the last two only for large pictures
CANDIDATE_SCORE = 0.4  # of the finder; the landmark network has the last word
# What the landmark network must say of a face. Set on the train split: of 79 faces 99 % have a score above 0.99, views
# that agree to 0.006 of the face's size and a last pass that moves by 0.017; of 48 pictures without faces none passes.
FACE_SCORE, VIEWS_AGREE, LAST_MOVE = 0.9, 0.01, 0.03
MIN_FACE_PX = 12.0  # a smaller face has no landmarks to speak of


@dataclass(frozen=True)
class Square:
    """Where a face may be: the square around its landmarks, pixels of the picture."""

    x: float  # centre
    y: float
    side: float
    score: float = 1.0


@dataclass(frozen=True)
class Face:
    """landmarks float32 [68, 3] in pixels of the picture (x right, y down, z negative towards the camera); score: how
    sure the landmark network is that this is a face, 0..1; is_steady: it sees the same points from shifted crops."""

    landmarks: np.ndarray
    score: float
    is_steady: bool = True

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 around the landmarks."""
        low, high = self.landmarks[:, :2].min(0), self.landmarks[:, :2].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def size_px(self) -> float:
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)


@dataclass(frozen=True)
class Detection:
    """landmarks float32 [N, 68, 3], of 'face-alignment-2d' [N, 68, 2]; zeros where nothing was found; found bool [N];
    convention: what the points mean (`common.face.conventions`)."""

    landmarks: np.ndarray
    found: np.ndarray
    convention: str = FACEMESH68


def detect(pictures: Sequence[np.ndarray], back_end: str = BUILTIN, device: str = "cpu") -> Detection:
    """The largest face of each picture (uint8 [H, W, 3]; sizes may differ), by one of `BACK_ENDS`.

    device: of face-alignment's networks. Raises InputError where the back end can't be had.
    """
    check_back_end(back_end, device)
    landmarks = np.zeros((len(pictures), 68, 2 if back_end == face_alignment_backend.TWO_D else 3), np.float32)
    found = np.zeros(len(pictures), bool)
    for k, picture in enumerate(pictures):
        faces = find_faces(picture)
        if faces:
            found[k] = True
            is_ours = back_end == BUILTIN
            landmarks[k] = faces[0].landmarks if is_ours else landmarks_by(back_end, picture, faces[0].box, device)
    return Detection(landmarks, found, CONVENTION_OF[back_end])


def check_back_end(name: str, device: str = "cpu") -> None:
    """Load a back end now; raises InputError where it is unknown or can't be had, before hours of video are read."""
    if name not in BACK_ENDS:
        raise InputError(f"There is no detector '{name}': use one of {', '.join(BACK_ENDS)}.")
    if name == BUILTIN:
        networks()
    else:
        face_alignment_backend.network(name, device)


def landmarks_by(
    back_end: str, picture: np.ndarray, box: tuple[float, float, float, float], device: str = "cpu"
) -> np.ndarray:
    """Landmarks of the face in a box (x0, y0, x1, y1 around its 68 points), in the back end's own convention."""
    if back_end == BUILTIN:
        return landmarks_at(picture, box).landmarks
    return face_alignment_backend.landmarks(picture, box, back_end, device)


def find_faces(picture: np.ndarray) -> list[Face]:
    """All faces of a picture uint8 [H, W, 3], the largest first."""
    faces = _confirmed(picture, propose(picture))
    if not faces:
        faces = _confirmed(picture, propose_by_cascade(picture))
    return sorted(faces, key=lambda face: -face.size_px)


def turn_that_shows_a_face(picture: np.ndarray) -> int:
    """By how many degrees counterclockwise (90, 180, 270) a picture must be turned to show a face; 0: none helps."""
    turns = (k for k in (1, 3, 2) if find_faces(np.ascontiguousarray(np.rot90(picture, k))))
    return 90 * next(turns, 0)


def _confirmed(picture: np.ndarray, squares: Sequence[Square]) -> list[Face]:
    """The candidates that the landmark network takes for faces, each face once."""
    faces: list[Face] = []
    for face in sorted(fit_landmarks(picture, squares), key=lambda face: -face.score):
        if face.score < FACE_SCORE or not face.is_steady or face.size_px < MIN_FACE_PX:
            continue
        if all(_overlap(face.box, other.box) < 0.3 for other in faces):
            faces.append(face)
    return faces


def landmarks_at(picture: np.ndarray, box: tuple[float, float, float, float]) -> Face:
    """Landmarks of the face in a box x0, y0, x1, y1 that the user drew, whatever the networks think of it."""
    x0, y0, x1, y1 = box
    height, width = picture.shape[:2]
    if not (
        all(math.isfinite(v) for v in box) and x0 < x1 and y0 < y1 and x1 > 0 and y1 > 0 and x0 < width and y0 < height
    ):
        raise InputError(
            f"face box {x0:g},{y0:g},{x1:g},{y1:g} is empty or outside the picture of {width}x{height} pixels"
        )
    return fit_landmarks(picture, [Square((x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0))])[0]


# ---- proposals ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def propose(picture: np.ndarray) -> list[Square]:
    """Candidates of the built-in finder, best first."""
    finder, _ = networks()
    image = Image.fromarray(picture)
    squares: list[Square] = []
    for level, long_px in enumerate(PYRAMID_PX):
        if level >= 2 and max(picture.shape[:2]) < 0.75 * long_px:
            break  # small pictures hold no small faces
        if level == 3 and squares:
            break  # the finest level is for pictures in which nothing larger was found
        squares += _propose_at(finder, image, long_px)
    best: list[Square] = []
    for square in sorted(squares, key=lambda square: -square.score):
        if len(best) < 32 and all(_overlap(_box(square), _box(other)) < 0.35 for other in best):
            best.append(square)
    return best


def _propose_at(finder: Finder, image: Image.Image, long_px: int) -> list[Square]:
    """Local maxima of the finder's heat map on the picture with its longer side at `long_px`."""
    zoom = long_px / max(image.size)
    width, height = (max(1, round(side * zoom)) for side in image.size)
    small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))
    x = torch.from_numpy(small.copy()).movedim(-1, 0)[None].float() / 127.5 - 1
    x = F.pad(x, (0, -width % 32, 0, -height % 32))  # grey
    logits, log_side, offset = finder(x)
    score = logits.sigmoid()
    peaks = (score == F.max_pool2d(score[:, None], 3, 1, 1)[:, 0]) & (score > CANDIDATE_SCORE)
    squares = []
    for _, row, column in peaks.nonzero().tolist():
        cx = (
            column + 0.5 + float(offset[0, 0, row, column])
        ) * finder.stride / zoom - 0.5  # from edges to pixel centres
        cy = (row + 0.5 + float(offset[0, 1, row, column])) * finder.stride / zoom - 0.5
        side = float(log_side[0, row, column].clamp(-3, 6).exp()) * finder.stride / zoom
        squares.append(Square(cx, cy, side, float(score[0, row, column])))
    return squares


def propose_by_cascade(picture: np.ndarray) -> list[Square]:
    """Candidates of scikit-image's LBP cascade (frontal faces), largest first: the fallback, and the yardstick."""
    image = Image.fromarray(picture).convert("L")
    zoom = min(1.0, 480 / max(image.size))
    image = image.resize((max(32, round(image.width * zoom)), max(32, round(image.height * zoom))))
    found = _cascade().detect_multi_scale(
        img=np.asarray(image), scale_factor=1.15, step_ratio=1, min_size=(32, 32), max_size=(480, 480)
    )
    squares = []
    for box in found:
        # The cascade's box spans brows to mouth; the landmarks' square is about as wide and lies a little lower.
        side = box["width"] / zoom
        squares.append(Square(box["c"] / zoom + side / 2, box["r"] / zoom + 0.56 * side, 0.95 * side))
    return sorted(squares, key=lambda square: -square.side)


@cache
def _cascade() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def _box(square: Square) -> tuple[float, float, float, float]:
    half = square.side / 2
    return square.x - half, square.y - half, square.x + half, square.y + half


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over the smaller box: a nose inside a face counts as the same face."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


# ---- landmarks ------------------------------------------------------------------------------------------------------


def fit_landmarks(picture: np.ndarray, squares: Sequence[Square], n_passes: int = 3) -> list[Face]:
    """Landmarks of the face in each square, refined: every pass crops anew around the last one's points, upright.

    The last pass averages the crop, its mirror image and two shifted ones: noise of a still picture would be seen as a
    wrong expression in every frame made from it.
    """
    margin = networks()[1].config.margin
    faces = []
    for square in squares:
        start = similarity(torch.tensor([[square.x, square.y]]), torch.tensor([square.side * margin]), torch.zeros(1))
        points, _ = look(picture, start)
        for _ in range(n_passes - 1):
            points, _ = look(picture, upright(points))
        matrix = upright(points)
        shifts = torch.tensor([[0.0, 0.0], [0.03, 0.02], [-0.03, -0.02]])
        matrices = matrix.repeat(3, 1, 1)
        matrices[..., 2] += (matrices[..., :2] @ shifts[..., None])[..., 0]
        several, scores = look(picture, matrices, mirrored_too=True)
        mean = several.mean(0)
        size = float((mean[:, :2].amax(0) - mean[:, :2].amin(0)).max().clamp(min=1e-3))
        spread, move = (float((each - mean)[..., :2].norm(dim=-1).mean()) / size for each in (several, points))
        faces.append(Face(mean.numpy(), float(scores.mean()), spread <= VIEWS_AGREE and move <= LAST_MOVE))
    return faces


def upright(points: Tensor) -> Tensor:
    """Landmarks [B, 68, 3] → matrices [B, 2, 3] of the network's crops around them, eyes level."""
    margin = networks()[1].config.margin
    axis = points[:, list(RIGHT_EYE), :2].mean(1) - points[:, list(LEFT_EYE), :2].mean(1)
    angle = torch.atan2(axis[:, 1], axis[:, 0])
    turn = similarity(torch.zeros(len(points), 2), torch.full((len(points),), 2.0), angle)[..., :2]
    level = points[..., :2] @ turn  # coordinates along the crop's axes
    low, high = level.amin(1), level.amax(1)
    centre = ((low + high) / 2)[:, None] @ turn.mT
    return similarity(centre[:, 0], (high - low).amax(-1) * margin, angle)


@torch.inference_mode()
def look(picture: np.ndarray, matrix: Tensor, *, mirrored_too: bool = False) -> tuple[Tensor, Tensor]:
    """One pass of the landmark network over crops of one picture: matrix [B, 2, 3] → points [B, 68, 3], score [B]."""
    _, network = networks()
    crops = torch.cat([_cut(picture, each, network.config.size_px) for each in matrix])
    points, logit = network(crops)
    score = logit.sigmoid()
    if mirrored_too:
        flipped, flipped_logit = network(crops.flip(-1))
        points, score = (points + mirror(flipped)) / 2, (score + flipped_logit.sigmoid()) / 2
    return from_crop(points, matrix), score


def _cut(picture: np.ndarray, matrix: Tensor, size_px: int) -> Tensor:
    """One crop [1, 3, size, size] in [-1, 1], black outside; shrunk first if large, so that it does not alias.

    The network was trained on crops of about 1.5 × its size, sampled bilinearly: so that is what it gets.
    """
    centre = matrix[:, 2]
    side = 2 * float(torch.linalg.det(matrix[:, :2]).clamp(min=1e-6).sqrt())
    reach = 0.75 * side  # half of the axis-parallel box that holds the turned square, and a little
    x0, y0 = (int(v) for v in (centre - reach).floor())
    x1, y1 = (int(v) for v in (centre + reach).ceil())
    height, width = picture.shape[:2]
    cx0, cy0, cx1, cy1 = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
    if cx0 >= cx1 or cy0 >= cy1:
        return torch.full((1, 3, size_px, size_px), -1.0)
    part = Image.fromarray(picture[cy0:cy1, cx0:cx1])
    zoom = min(1.0, 1.5 * size_px / side)
    if zoom < 1:
        new = max(1, round(part.width * zoom)), max(1, round(part.height * zoom))
        zoom_x, zoom_y = new[0] / part.width, new[1] / part.height
        part = part.resize(new, Image.Resampling.BILINEAR, reducing_gap=2.0)
    else:
        zoom_x = zoom_y = 1.0
    local = matrix.clone()
    local[:, 2] -= torch.tensor([float(cx0), float(cy0)]) - 0.5  # pixel k covers k - ½ .. k + ½
    local = local * torch.tensor([[zoom_x], [zoom_y]])
    local[:, 2] -= 0.5
    pixels = torch.from_numpy(np.asarray(part).copy()).movedim(-1, 0)[None].float() / 255
    return crop(pixels, local[None], size_px) * 2 - 1


@cache
def networks() -> tuple[Finder, LandmarkNet]:
    """The built-in finder and landmark network, loaded once per process."""
    state, config = weights.from_pretrained("small/finder")
    finder = Finder(FinderConfig(**_fields(config)))
    weights.load_into(finder, state, "small/finder")
    state, config = weights.from_pretrained("small/landmarks")
    network = LandmarkNet(LandmarkNetConfig(**_fields(config)))
    weights.load_into(network, state, "small/landmarks")
    return finder.eval(), network.eval()


def _fields(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items() if name != "type"
    }
