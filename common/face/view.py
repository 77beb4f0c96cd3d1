"""The fitted face model drawn over what it was fitted to, as a video:

    python -m common.face.view VIDEO OUT.mp4 [--model PATH]

VIDEO may also be a picture, or a Motion (.npz), whose face is drawn alone over grey. The largest face is followed, one
identity is fitted to the whole video and an expression and a pose to every frame; a second pass over the video draws.
Memory grows by the track alone. The drawing is done by pytorch3d where it is importable, else by `common.face.mesh`, as
also without a GPU for meshes of more than 1000 triangles, for which pytorch3d needs seconds a frame there.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from common import entry
from common.errors import InputError
from common.face import detect, mesh, mesh_pytorch3d
from common.face.conventions import convert
from common.face.fit import Fit, fit
from common.face.model import FaceModel
from common.face.pos import flip_image
from common.face.track import follow, smooth
from common.ffmpeg import open_container
from common.files import check_result
from common.media import (
    PICTURE_SIDE_PX,
    VIDEO_SUFFIXES,
    VideoReader,
    VideoWriter,
    exact_fps,
    read_picture,
    write_picture,
)
from common.motion import Motion

log = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DRAWN = (
    "A face model, fitted to a face and drawn over it by Duet: an analysis of the pictures below, not generated ones."
)
DRAWN_ALONE = "A face model, drawn by Duet as a motion file moves it: no recording of anybody."
MAX_STATEMENT = 1000  # characters of what another file says of itself
GREY = 96
# On a CPU pytorch3d asks every pixel about every triangle: 6 s for 70,000 triangles at 256x256, against 15 ms here.
PYTORCH3D_CPU_TRIANGLES = 1000

See = Callable[[Tensor, Tensor, int, int], mesh.Visible]


@dataclass(frozen=True)
class Footage:
    """Pictures with a face in them. frames: all of them, uint8 [height, width, 3], anew at every call.

    points: [T, 68, 2 or 3], pixels, of the frames from number `first` on, placed as `convention` says; statement: what
    the file that is made of it shall say of itself; audio_path: a file with its sound, if it has any.
    """

    frames: Callable[[], Iterator[np.ndarray]]
    width: int
    height: int
    fps: Fraction
    points: Tensor
    first: int
    convention: str
    statement: str
    audio_path: Path | None


def read(path: Path, detector: str = detect.BUILTIN, device: str = "cpu") -> Footage:
    """Whatever holds a face, whose landmarks are found by one of `detect.BACK_ENDS`; InputError where there is none."""
    if path.suffix.lower() == ".npz":
        return read_motion(path)
    read_pictures = read_still if path.suffix.lower() in PICTURE_SUFFIXES else read_video
    return read_pictures(path, detector, device)


def read_video(path: Path, detector: str, device: str) -> Footage:
    """Follow the largest face (`common.face.track`, which says in the log what it could not see)."""
    seen = follow(path, detector, device)
    with VideoReader(path) as video:
        fps = exact_fps(video.fps)
    has_sound, statement = _sound_and_statement(path)
    return Footage(
        lambda: video.frames_at(fps),
        *(video.width, video.height, fps),
        points=torch.from_numpy(smooth(seen.points, seen.fps)),
        first=seen.first,
        convention=seen.convention,
        statement=f"{DRAWN} Of those, their file says: {statement}" if statement else DRAWN,
        audio_path=path if has_sound else None,
    )


def read_still(path: Path, detector: str, device: str) -> Footage:
    picture = read_picture(path)
    detection = detect.detect([picture], detector, device)
    if not detection.found[0]:
        raise InputError(f"no face was found in {path}: use a picture in which a face is seen, upright, not too small")
    height, width, _ = picture.shape
    return Footage(
        lambda: iter([picture]),
        *(width, height, Fraction(25)),
        points=torch.from_numpy(detection.landmarks),
        first=0,
        convention=detection.convention,
        statement=DRAWN,
        audio_path=None,
    )


def read_motion(path: Path) -> Footage:
    motion = Motion.load(path)
    width, height = motion.image_size
    if max(width, height) > PICTURE_SIDE_PX[1]:
        raise InputError(f"{path} is of {width}x{height} pixels: at most {PICTURE_SIDE_PX[1]} a side can be shown")
    blank = np.full((height, width, 3), GREY, np.uint8)
    return Footage(
        lambda: repeat(blank, motion.n_frames),
        *(width, height, exact_fps(motion.fps)),
        points=motion.posed(),
        first=0,
        convention=motion.convention,
        statement=DRAWN_ALONE,
        audio_path=None,
    )


def _sound_and_statement(path: Path) -> tuple[bool, str]:
    """Whether a video has sound, and what it says of itself: a generated one stays one, with a mesh over it, too."""
    try:
        with open_container(path) as container:
            said = container.metadata.get("comment") or container.metadata.get("description") or ""
            return bool(container.streams.audio), " ".join(said.split())[:MAX_STATEMENT]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as a video: copy it again, or convert it to MP4.") from error


def fit_to(model: FaceModel, footage: Footage) -> Fit:
    """One identity, T expressions and poses; raises InputError where model and landmarks don't go together."""
    points = convert(footage.points, footage.convention, model.convention).to(model.mean.device)
    try:
        return fit(model, points, footage.height)
    except ValueError as error:
        raise InputError(f"The face model {model.name} can't be fitted ({error}).") from error


def triangles_of(model: FaceModel) -> Tensor:
    """The model's triangles [F, 3]; between the landmarks where it has no other vertices."""
    if model.triangles is not None and len(model.triangles):
        return model.triangles
    if model.landmark_vertices is not None:
        raise InputError(f"The face model {model.name} has no triangles: give one with a surface.")
    return mesh.landmark_triangles(model.mean)


def meshes(model: FaceModel, fitted: Fit, height: int) -> Iterator[Tensor]:
    """Vertices [V, 3] of each frame, in pixels of the picture (y down, z negative towards the camera)."""
    person = model.shape(fitted.identity) - model.mean
    for k in range(len(fitted.expression)):
        shape = model.shape(expression=fitted.expression[k]) + person
        yield flip_image(fitted.pose[k].project(shape), height)


def draw(frame: Tensor, points: Tensor, triangles: Tensor, shading: str, alpha: float, see: See) -> Tensor:
    """A frame uint8 [H, W, 3] with the mesh of points [V, 3] over it, shaded "grey" or in the colours of "normals"."""
    seen = see(points, triangles, frame.shape[0], frame.shape[1])
    normals = mesh.vertex_normals(points, triangles)
    colours = mesh.grey(normals) if shading == "grey" else mesh.normal_colours(normals)
    return mesh.paint(frame, seen, mesh.interpolate(seen, triangles, colours), alpha)


def overlays(
    footage: Footage,
    model: FaceModel,
    fitted: Fit,
    shading: str = "grey",
    alpha: float = 0.75,
    see: See = mesh.see,
    side_by_side: bool = False,
) -> Iterator[np.ndarray]:
    """Every frame uint8 [H, W, 3] with the mesh over it, or beside it (twice as wide); without one where no face is.

    Computed on the model's device, to which the fit's tensors belong as well.
    """
    triangles = triangles_of(model).to(model.mean.device)
    each = meshes(model, fitted, footage.height)
    end = footage.first + len(footage.points)
    for number, frame in enumerate(footage.frames()):
        drawn = frame
        if footage.first <= number < end:
            on_device = torch.from_numpy(frame).to(model.mean.device)
            drawn = draw(on_device, next(each), triangles, shading, alpha, see).cpu().numpy()
        yield np.concatenate([frame, drawn], axis=1) if side_by_side else drawn


def choose_see(name: str, n_triangles: int, device: torch.device) -> See:
    """The rasteriser called "pytorch3d" or "own"; "auto": pytorch3d where it is importable, unless too slow."""
    if name == "own" or (name == "auto" and not mesh_pytorch3d.is_importable()):
        return mesh.see
    if name == "auto" and device.type == "cpu" and n_triangles > PYTORCH3D_CPU_TRIANGLES:
        log.warning("Without a GPU pytorch3d needs seconds a frame for %d triangles: our own draws them.", n_triangles)
        return mesh.see
    if not mesh_pytorch3d.is_importable():
        raise InputError("pytorch3d can't be imported: build it for this torch, or leave out --rasteriser.")
    return mesh_pytorch3d.see


def even(frame: np.ndarray) -> np.ndarray:
    """The last row and column again where a side is odd: H.264 wants even ones."""
    height, width, _ = frame.shape
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else frame


def _check_out(path: Path, source: Path, overwrite: bool) -> bool:
    """Whether the result is a picture; raises InputError, before minutes of work, where it can't be written."""
    is_picture = path.suffix.lower() in PICTURE_SUFFIXES
    if is_picture and source.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"{path} is named as a picture, {source} is none: let the name end in .mp4.")
    check_result(path, PICTURE_SUFFIXES if is_picture else VIDEO_SUFFIXES, [source], overwrite)
    return is_picture


def main(argv: list[str]) -> None:
    parser = entry.Parser(
        prog="python -m common.face.view", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="VIDEO", help="a video, a picture or a Motion (.npz)")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the video to write (.mp4); of a picture, also .png, .jpg"
    )
    parser.add_argument("--model", help="name, folder or file of a face model (default: the built-in one)")
    parser.add_argument(
        "--detector", choices=detect.BACK_ENDS, help="whose landmarks (default: builtin; others: extra `detectors`)"
    )
    parser.add_argument("--alpha", type=float, default=0.75, help="how much the mesh covers, 0 to 1 (default 0.75)")
    parser.add_argument("--shading", choices=("grey", "normals"), default="grey")
    parser.add_argument("--side-by-side", action="store_true", help="the pictures as they are beside those with mesh")
    parser.add_argument("--rasteriser", choices=("auto", "pytorch3d", "own"), default="auto")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    if not 0 <= args.alpha <= 1:
        raise InputError(f"--alpha is a share from 0 to 1, got {args.alpha}.")
    if args.detector and args.source.suffix.lower() == ".npz":
        raise InputError(f"{args.source} holds its landmarks: leave out --detector.")
    is_picture = _check_out(args.out, args.source, args.overwrite)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = (FaceModel.load(args.model) if args.model else FaceModel.builtin()).to(device)
    triangles = triangles_of(model.to("cpu"))
    see = choose_see(args.rasteriser, len(triangles), device)
    footage = read(args.source, args.detector or detect.BUILTIN, str(device))
    fitted = fit_to(model, footage)
    frames = overlays(footage, model, fitted, args.shading, args.alpha, see, args.side_by_side)
    n_frames = 0
    if is_picture:
        write_picture(args.out, next(frames), args.overwrite)
        n_frames = 1
    else:
        width = footage.width * (2 if args.side_by_side else 1)
        writer = VideoWriter(
            args.out,
            *(width + width % 2, footage.height + footage.height % 2, footage.fps, footage.audio_path),
            comment=footage.statement,
            description=footage.statement,
            overwrite=args.overwrite,
        )
        with writer:
            for frame in frames:
                writer.write(even(frame))
        n_frames = writer.n_frames
    print(
        f"{args.out}: {len(footage.points)} of {n_frames} frames with a mesh of {len(model.mean)} vertices and "
        f"{len(triangles)} triangles, {float(fitted.residual_px.median()):.2f} px from the landmarks (median)"
    )


if __name__ == "__main__":
    entry.run(main)
