"""Landmarks by face-alignment (Bulat and Tzimiropoulos 2017), in 2D and 3D, an optional back end of `detect`.

Where the face is says our own finder: the landmark networks were trained on crops around the box of the 68 points,
which our landmarks give, so face-alignment's own face detector and its weights aren't needed. The networks' weights are
fetched from the author's site on first use, into torch's hub folder, and held against the check sum in their name.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError
from common.face.conventions import IBUG68, IBUG68_3D

TWO_D, THREE_D = NAMES = ("face-alignment-2d", "face-alignment-3d")
CONVENTION_OF = {TWO_D: IBUG68, THREE_D: IBUG68_3D}
INSTALL = "uv sync --extra detectors"


def landmarks(
    picture: np.ndarray, box: tuple[float, float, float, float], name: str, device: str = "cpu"
) -> np.ndarray:
    """Points of the face whose landmarks lie in the box x0, y0, x1, y1 of a picture uint8 [H, W, 3].

    'face-alignment-2d': float32 [68, 2], the contour that is seen (convention ibug68); 'face-alignment-3d':
    float32 [68, 3], z in pixels and negative towards the camera (ibug68_3d). Pixels, x right, y down; known to a
    quarter of the heat map's cells, so that they tremble by half a percent of the face's size. Raises InputError where
    the package or its weights can't be had.
    """
    (points,) = network(name, device).get_landmarks_from_image(picture, detected_faces=[box])
    return _in_our_pixels(np.asarray(points, np.float32))


def _in_our_pixels(points: np.ndarray) -> np.ndarray:
    """face-alignment's depth grows towards the camera; ours, in the picture, falls."""
    return points * np.array([1, 1, -1], np.float32)[: points.shape[-1]]


@cache
def network(name: str, device: str) -> Any:
    """face-alignment's `FaceAlignment`, loaded once per process."""
    if name not in NAMES:
        raise ValueError(f"face-alignment's back ends are {', '.join(NAMES)}, got '{name}'")
    try:
        import face_alignment
        from face_alignment import api
    except ImportError as error:
        raise InputError(
            f"The detector '{name}' needs the package face-alignment ({error}): install it with `{INSTALL}`, or use "
            "the built-in detector."
        ) from error
    wanted = ["2DFAN-4"] if name == TWO_D else ["3DFAN-4", "depth"]
    for network_name in wanted:
        fetch(api.models_urls[network_name])
    kind = face_alignment.LandmarksType.TWO_D if name == TWO_D else face_alignment.LandmarksType.THREE_D
    # `folder` is the face detector that has no weights: boxes come from us. Compiling needs a C++ compiler.
    return face_alignment.FaceAlignment(kind, device=device, face_detector="folder", compile=False)


def fetch(url: str) -> Path:
    """The file of that address in torch's hub folder, where face-alignment looks for it; fetched if it isn't there.

    Its name holds the beginning of its SHA-256. The depth network's file is unpickled by face-alignment without
    restrictions, so nothing else may stand there.
    """
    file_name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    prefix = file_name.partition(".")[0].rpartition("-")[2]
    by_hand = f"get {url} on another machine and put it at {path}, or use the built-in detector"
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
        except Exception as error:  # urllib's, ssl's and the disk's errors, and RuntimeError for a wrong check sum
            raise InputError(f"Can't fetch the weights {file_name} of face-alignment ({error}): {by_hand}.") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(prefix):
        raise InputError(
            f"{path} is not the file that face-alignment's author published (SHA-256 {digest[:10]}...): delete it and "
            f"run again, or {by_hand}."
        )
    return path
