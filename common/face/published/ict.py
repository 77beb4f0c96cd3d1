"""ICT-FaceKit (Li et al. 2020): the folder `FaceXModel` of OBJ files.

`generic_neutral_mesh.obj` and, with the same vertices moved, `identity000.obj` ... `identity099.obj` (one standard
deviation each) and an OBJ per blend shape. `vertex_indices.json` names the blend shapes (`expressions`, ARKit's
vocabulary with _L and _R) and the 68 landmark vertices (`idx_to_landmark_verts`), counted from 0. 26,719 vertices with
eyes, teeth and tongue, polygons of up to four corners; centimetres.
"""

from __future__ import annotations

import json
import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from common.face.model import FaceModel
from common.face.published.assemble import Parts, Source, assemble, at_vertices

FOLDER, NEUTRAL, CONFIG = "FaceXModel", "generic_neutral_mesh.obj", "vertex_indices.json"
SOURCE = Source(
    "ict",
    "ICT-FaceKit",
    "copy the files of the folder FaceXModel of github.com/ICT-VGL/ICT-FaceKit (MIT licence)",
)
_METRES_PER_UNIT = 0.01
_BLEND_SHAPE_STD = 0.3  # ours: weights run from 0 to 1 and are mostly small
_VERTEX, _FACE = (re.compile(rb"^%c[ \t](.*)" % letter, re.MULTILINE) for letter in b"vf")


def read(folder: Path) -> FaceModel:
    """Read the folder, or FaceXModel in it; raises as `bfm.read`. Some 150 files of 3 MB: seconds."""
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    names, landmarks = _read_config(folder)
    mean, triangles = read_obj(_content(folder / NEUTRAL))
    identity_paths = [_present(folder / "identity000.obj")]
    while (path := folder / f"identity{len(identity_paths):03d}.obj").is_file():
        identity_paths.append(path)
    vertices, weights = at_vertices(landmarks)
    return assemble(
        "ict",
        Parts(
            mean,
            _moves(identity_paths, mean),
            _moves([_present(folder / f"{name}.obj") for name in names], mean),
            triangles,
            vertices,
            weights,
            _METRES_PER_UNIT,
            expression_std=_BLEND_SHAPE_STD,
            expression_names=names,
        ),
    )


def read_obj(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """An OBJ file's vertices [V, 3] and triangles [F, 3]; polygons become fans. ValueError where it is damaged."""
    vertices = read_vertices(content)
    triangles = []
    for polygon in _FACE.findall(content):
        try:
            corners = [int(corner.split(b"/", 1)[0]) for corner in polygon.split()]
        except ValueError as error:
            raise ValueError(f"the face {polygon[:40]!r} is no list of numbers") from error
        # OBJ counts from 1, or backwards from the last vertex so far, which here is the last of all.
        corners = [corner - 1 if corner > 0 else corner + len(vertices) for corner in corners]
        if len(corners) < 3 or not all(0 <= corner < len(vertices) for corner in corners):
            raise ValueError(f"the face {polygon[:40]!r} is not of its {len(vertices)} vertices")
        triangles += [(corners[0], b, c) for b, c in pairwise(corners[1:])]
    return vertices, np.array(triangles, dtype=np.int64).reshape(-1, 3)


def read_vertices(content: bytes) -> np.ndarray:
    """An OBJ file's vertices [V, 3], float64; weights or colours behind the coordinates are left out."""
    last = max(content.rfind(b"\nv "), content.rfind(b"\nv\t"), 0)  # faces, half of a file, come behind
    end = content.find(b"\n", last + 1)
    lines = _VERTEX.findall(content, 0, end if end >= 0 else len(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # numpy's word for text that is not a number
        try:
            numbers = np.fromstring(b" ".join(lines).decode("ascii"), sep=" ")
        except (ValueError, DeprecationWarning) as error:
            raise ValueError("its vertices are not numbers") from error
    width, rest = divmod(len(numbers), max(1, len(lines)))
    if not lines or rest or width < 3:
        raise ValueError("it has no vertices of three coordinates")
    return numbers.reshape(-1, width)[:, :3]


def _moves(paths: list[Path], mean: np.ndarray) -> np.ndarray:
    """What each file's vertices differ by from the mean's: [n, V, 3]."""
    moves = np.empty((len(paths), *mean.shape), dtype=np.float32)
    for move, path in zip(moves, paths, strict=True):
        content = _content(path)
        try:
            vertices = read_vertices(content)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from error
        if len(vertices) != len(mean):
            raise ValueError(f"{path.name} has {len(vertices)} vertices, {NEUTRAL} {len(mean)}")
        move[:] = vertices - mean
    return moves


def _read_config(folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the blend shapes and the landmarks' vertices [68]."""
    content = _content(folder / CONFIG)
    try:
        config: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{CONFIG} is no JSON file") from error
    names, landmarks = config["expressions"], config["idx_to_landmark_verts"]
    if not (isinstance(names, list) and names and all(isinstance(n, str) and re.fullmatch(r"\w+", n) for n in names)):
        raise ValueError(f"{CONFIG} has no names of expressions")
    if not (isinstance(landmarks, list) and all(type(index) is int and 0 <= index < 2**31 for index in landmarks)):
        raise ValueError(f"{CONFIG} has no landmark vertices")
    return tuple(names), np.array(landmarks, dtype=np.int64)


def _present(path: Path) -> Path:
    if not path.is_file():
        raise SOURCE.missing(path)
    return path


def _content(path: Path) -> bytes:
    return _present(path).read_bytes()
