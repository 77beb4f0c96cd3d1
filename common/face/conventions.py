"""What the 68 landmarks of a face mean: the same numbers name slightly different places on the skin.

`facemesh68`: FaceMesh's points in iBUG order, what the built-in networks and face model speak. `ibug68`: the annotation
of 300-W (dlib, face-alignment 2D): the jaw is the contour that the camera sees. `ibug68_3d`: the same with a jaw that
stays on the skull (face-alignment 3D, BFM, FLAME, ICT-FaceKit). They are mixed only through `convert`, a mapping that
was measured (`python -m common.face.conventions`, figures in weights/small/landmark_conventions); any other pair is
refused with a sentence.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from common import entry, weights
from common.errors import InputError
from common.face.fit import fit
from common.face.model import CONVENTION, N_POINTS, FaceModel
from common.face.pos import Pose, align, flip_image
from common.files import check_result

FACEMESH68, IBUG68, IBUG68_3D = CONVENTION, "ibug68", "ibug68_3d"
CONVENTIONS = (FACEMESH68, IBUG68, IBUG68_3D)
BUILTIN = "small/landmark_conventions"
FORMAT = "duet-landmark-conventions-1"

SKULL = (27, 28, 29, 30, 33, 36, 39, 42, 45)  # nose and eye corners: the same place in every convention, nearly
EYE_CORNERS = ((36, 39), (42, 45))
# What a correction may depend on: points that speech and blinks don't move.
STILL = (*range(27, 36), 36, 39, 42, 45, 0, 1, 2, 3, 13, 14, 15, 16)
# Points that touch when mouth or eye are shut: both of a pair are moved alike, so that shut stays shut.
GAPS = ((61, 67), (62, 66), (63, 65), (37, 41), (38, 40), (43, 47), (44, 46))


def convert(points: Tensor, source: str, target: str) -> Tensor:
    """Image landmarks [..., 68, 2 or 3] (pixels, y down) of one convention in another; same shape, dtype and device.

    The same convention gives the points themselves. Moves, turns and scales with the face in the picture; the openings
    of mouth and lids stay what they are, and so does depth, except that a jaw which stays on the skull takes its
    offset with the head's turn. Raises InputError for a pair whose mapping was never measured, ValueError for points
    of another shape or that are not finite.
    """
    if points.ndim < 2 or points.shape[-2] != N_POINTS or points.shape[-1] not in (2, 3):
        raise ValueError(f"landmarks must be [..., 68, 2 or 3], got shape {list(points.shape)}")
    if source == target:
        return points
    unknown = [name for name in (source, target) if name not in CONVENTIONS]
    if unknown:
        raise InputError(
            f"Landmarks of the convention '{source}' can't be used as '{target}': no mapping to or from "
            f"'{unknown[0]}' has been measured, only between {', '.join(CONVENTIONS)}."
        )
    if not points.isfinite().all():
        raise ValueError("landmarks hold numbers that are not finite: interpolate or leave out those frames first")
    mapping = builtin()
    if source == IBUG68_3D:
        points = mapping.off_skull(points)
    elif source == IBUG68:
        points = mapping.from_ibug68(points)
    if target == IBUG68_3D:
        points = mapping.on_skull(points)
    elif target == IBUG68:
        points = mapping.to_ibug68(points)
    return points


def to_model(points: Tensor, convention: str, model: FaceModel, height: int) -> Tensor:
    """Image landmarks [T, 68, 2 or 3] of one person as the face model has them -> float32 [T, 68, 3].

    In the model's convention; depth, where there is none, is that of the model fitted to the points (mean 0 in each
    frame). height: of the picture in pixels. Raises InputError where the conventions can't be mixed.
    """
    points = convert(points.float(), convention, model.convention)
    if points.shape[-1] == 3:
        return points
    fitted = fit(model, points, height)
    depth = flip_image(fitted.pose.project(model.at_landmarks().shape(fitted.identity, fitted.expression)), height)
    return torch.cat([points, depth[..., 2:] - depth[..., 2:].mean(dim=1, keepdim=True)], dim=-1)


PARTS = ("mean", "low", "high", "offset", "slope")


@dataclass(frozen=True)
class Correction:
    """An offset of every point that varies with the skull's look: its turn, and the shape of this person.

    Everything is in the face's own frame: origin between the eyes' corners, x along them, in units of their distance.
    mean, low, high [F]: of the features; offset [68, 2]; slope [F, 68, 2]. Features are held to low..high, the range in
    which it was measured.
    """

    mean: Tensor
    low: Tensor
    high: Tensor
    offset: Tensor
    slope: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Image landmarks [..., 68, 2 or 3] -> the same, corrected; depth stays."""
        mean, low, high, offset, slope = (getattr(self, part).to(points.device) for part in PARTS)
        origin, axes = eye_frame(points)
        seen = features(in_frame(points, origin, axes)).to(mean.dtype).clamp(min=low, max=high)
        moved = offset + torch.einsum("...f,fpc->...pc", seen - mean, slope)
        shift = moved.to(points.dtype) @ axes.mT  # pixels [..., 68, 2]
        return points + torch.nn.functional.pad(shift, (0, points.shape[-1] - 2))


@dataclass(frozen=True)
class Mapping:
    """Between facemesh68 and the others; skull_offset [68, 3]: of ibug68_3d, in units of the built-in face model."""

    to_ibug68: Correction
    from_ibug68: Correction
    skull_offset: Tensor

    def on_skull(self, points: Tensor) -> Tensor:
        """facemesh68 -> ibug68_3d: the offset turns with the head."""
        return points + self._seen_offset(points, FaceModel.builtin().mean)

    def off_skull(self, points: Tensor) -> Tensor:
        """ibug68_3d -> facemesh68."""
        mean = FaceModel.builtin().mean
        return points - self._seen_offset(points, mean + self.skull_offset.to(mean))

    def _seen_offset(self, points: Tensor, mean: Tensor) -> Tensor:
        """skull_offset as the picture shows it, pixels [..., 68, 2 or 3]; mean [68, 3]: of the points' convention."""
        mean = mean.to(points)
        pose = skull_pose(points, mean)
        seen = pose.scale[..., None, None] * (self.skull_offset.to(points) @ pose.rotation.mT)
        return (seen * points.new_tensor([1.0, -1.0, -1.0]))[..., : points.shape[-1]]


def skull_pose(points: Tensor, mean: Tensor) -> Pose:
    """Pose (v up) of `mean` [68, 3] in image landmarks [..., 68, 2 or 3], from nose and eye corners."""
    seen = points[..., SKULL, :] * points.new_tensor([1.0, -1.0, -1.0])[: points.shape[-1]]
    return align(mean[list(SKULL)].to(points).expand(*points.shape[:-2], -1, 3), seen)


def eye_frame(points: Tensor) -> tuple[Tensor, Tensor]:
    """Origin [..., 1, 2] between the eyes and axes [..., 2, 2] (columns x and y, as long as the eyes are apart)."""
    left, right = (points[..., corners, :2].mean(dim=-2) for corners in EYE_CORNERS)
    across = right - left
    across = torch.where(across.norm(dim=-1, keepdim=True) > 0, across, across.new_tensor([1e-6, 0.0]))
    down = torch.stack([-across[..., 1], across[..., 0]], dim=-1)
    return ((left + right) / 2)[..., None, :], torch.stack([across, down], dim=-1)


def in_frame(points: Tensor, origin: Tensor, axes: Tensor) -> Tensor:
    """Pixels [..., 68, 2 or 3] -> the face's own frame [..., 68, 2]: the inverse of `axes` is its transpose / size²."""
    size2 = axes[..., 0].square().sum(dim=-1)[..., None, None]
    return ((points[..., :2] - origin) @ axes) / size2


def normalised(points: Tensor) -> Tensor:
    """Image landmarks [..., 68, 2 or 3] -> [..., 68, 2] in the face's own frame."""
    return in_frame(points, *eye_frame(points))


def features(shape: Tensor) -> Tensor:
    """Landmarks in the face's own frame [..., 68, 2] -> [..., 46]: the still points, and powers of how far the nose's
    tip lies off the eyes' middle, since a contour slides over the cheek faster the further the head turns."""
    turn = shape[..., 30, :1]
    nod = shape[..., 30, 1:] - shape[..., 27, 1:]
    powers = [turn.square(), turn**3, turn * nod, nod.square()]
    return torch.cat([shape[..., STILL, :].flatten(-2), *powers], dim=-1)


def save(folder: Path, mapping: Mapping) -> None:
    """Write model.safetensors and config.json; raises InputError where it can't."""
    state = {"skull_offset": mapping.skull_offset}
    for name, correction in (("to_ibug68", mapping.to_ibug68), ("from_ibug68", mapping.from_ibug68)):
        state |= {f"{name}.{part}": getattr(correction, part) for part in PARTS}
    weights.save(folder, state, {"format": FORMAT}, torch.float32)


def load(name_or_path: str | Path) -> Mapping:
    """Read what `save` wrote; raises InputError where it doesn't fit."""
    n = 2 * len(STILL) + 4
    shapes = {"mean": (n,), "low": (n,), "high": (n,), "offset": (N_POINTS, 2), "slope": (n, N_POINTS, 2)}
    expect = {"skull_offset": torch.empty(N_POINTS, 3)}
    for name in ("to_ibug68", "from_ibug68"):
        expect |= {f"{name}.{part}": torch.empty(shape) for part, shape in shapes.items()}
    state, config = weights.from_pretrained(name_or_path, expect)
    if config.get("format") != FORMAT:
        raise InputError(f"{name_or_path} is no mapping of landmarks of this version: make it again.")
    to_ibug68, from_ibug68 = (
        Correction(*(state[f"{name}.{part}"] for part in PARTS)) for name in ("to_ibug68", "from_ibug68")
    )
    return Mapping(to_ibug68, from_ibug68, state["skull_offset"])


@cache
def builtin() -> Mapping:
    """The mapping in this repository."""
    return load(BUILTIN)


def main(argv: list[str]) -> None:
    parser = entry.Parser(prog="python -m common.face.conventions", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    pairs = commands.add_parser("pairs", help="run dlib's 68-point predictor over pictures with FaceMesh landmarks")
    pairs.add_argument("--data", type=Path, required=True, help="folder with index.csv, clips/, tracks/, portraits/")
    pairs.add_argument("--predictor", type=Path, required=True, help="shape_predictor_68_face_landmarks.dat")
    pairs.add_argument("--out", type=Path, required=True, help="the .npz to write")
    pairs.add_argument("--overwrite", action="store_true")
    fit = commands.add_parser("fit", help="fit the mapping to the pairs of the train split")
    fit.add_argument("--pairs", type=Path, required=True, help="the .npz of `pairs`")
    fit.add_argument("--out", type=Path, default=weights.BUILT_IN_DIR / BUILTIN)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # small batches: more threads only wait for each other

    from common.face import conventions_fit  # it needs this module

    if args.command == "pairs":
        check_result(args.out, (".npz",), [args.predictor], args.overwrite)
        found = conventions_fit.measure_pairs(args.data, args.predictor)
        found.save(args.out, args.overwrite)
        print(f"{args.out}: {len(found)} pictures, {len(set(found.person.tolist()))} people")
    else:
        read = conventions_fit.Pairs.load(args.pairs)
        mapping, choice = conventions_fit.fit_mapping(read)
        save(args.out, mapping)
        print(choice)


if __name__ == "__main__":
    entry.run(main, level=logging.INFO, form="%(message)s")
