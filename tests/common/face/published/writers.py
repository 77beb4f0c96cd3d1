"""Small files in the layouts of the published face models, of a made-up face with its landmarks at known vertices."""

import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat
from scipy.sparse import csc_matrix
from scipy.spatial import Delaunay

from common.face.model import RIGID, FaceModel

N_VERTICES = 84
ICT_NAMES = ["browDown_L", "jawOpen", "mouthClose"]


@dataclass(frozen=True)
class Face:
    """In metres, in face space, about an origin of its own.

    mean: [84, 3]; identity: [K, 84, 3]; expression: [E, 84, 3]; triangles: [F, 3], counter-clockwise; landmarks: [68],
    their vertices.
    """

    mean: np.ndarray
    identity: np.ndarray
    expression: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray

    def centred(self, shape: np.ndarray) -> np.ndarray:
        """What a shape's vertices are in the built-in model's units about its origin."""
        return (shape - self.mean[self.landmarks[list(RIGID)]].mean(axis=0)) / 0.1


def made_up(n_identity: int = 5, n_expression: int = 3) -> Face:
    """The built-in model's mean face, vertices shuffled, sixteen more of them round it."""
    random = np.random.default_rng(0)
    face = FaceModel.builtin().mean.numpy().astype(np.float64) * 0.1
    angles = np.linspace(0, 2 * np.pi, N_VERTICES - 68, endpoint=False)
    rim = np.stack([0.12 * np.cos(angles), 0.15 * np.sin(angles), np.full(len(angles), -0.08)], axis=1)
    order = random.permutation(N_VERTICES)
    mean = np.concatenate([face + 1e-6 * random.normal(size=face.shape), rim])[order]
    flat = Delaunay(mean[:, :2]).simplices.astype(np.int64)
    a, b, c = (mean[flat[:, i], :2] for i in range(3))
    is_clockwise = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] < 0
    flat[is_clockwise] = flat[is_clockwise][:, [0, 2, 1]]

    def moves(n: int) -> np.ndarray:
        return 0.002 * random.normal(size=(n, N_VERTICES, 3))

    origin = np.array([0.01, 1.5, 0.03])
    return Face(mean + origin, moves(n_identity), moves(n_expression), flat, np.argsort(order)[:68])


def write_bfm(path: Path, face: Face, **changed: Any) -> Path:
    """BFM_model_front.mat: decimetres, three rows for a vertex, indices from 1 in the types that the original has."""

    def columns(moves: np.ndarray) -> np.ndarray:
        return (moves / 0.1).reshape(len(moves), -1).T

    content = {
        "meanshape": (face.mean / 0.1).reshape(1, -1),
        "idBase": columns(face.identity),
        "exBase": columns(face.expression),
        "tri": (face.triangles + 1).astype(np.uint16),
        "keypoints": (face.landmarks + 1).astype(np.uint16)[None],
        "meantex": np.zeros((1, 3 * N_VERTICES)),
    }
    savemat(path, {key: value for key, value in {**content, **changed}.items() if value is not None})
    return path


@dataclass(frozen=True)
class Chumpy:
    x: np.ndarray


def as_python_2_wrote(value: Any) -> bytes:
    """The opcodes of a value in a pickle of Python 2, protocol 2, numpy 1: strings are bytes, arrays hold such strings.

    Chumpy's and scipy's objects are made by copy_reg._reconstructor, as there.
    """
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"I%d\n" % value
        case str() | bytes():
            text = value.encode() if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(text)) + text
        case tuple():
            return b"(" + b"".join(map(as_python_2_wrote, value)) + b"t"
        case dict():
            return b"}(" + b"".join(as_python_2_wrote(item) for pair in value.items() for item in pair) + b"u"
        case Chumpy():
            made = b"ccopy_reg\n_reconstructor\n(cchumpy.ch\nCh\nc__builtin__\nobject\nNtR"
            return made + as_python_2_wrote({"x": value.x, "_dirty_vars": (), "_itr": None}) + b"b"
        case csc_matrix():
            made = b"ccopy_reg\n_reconstructor\n(cscipy.sparse.csc\ncsc_matrix\nc__builtin__\nobject\nNtR"
            parts = {name: getattr(value, name) for name in ("indptr", "indices", "data")}
            return made + as_python_2_wrote({"_shape": value.shape, "format": "csc", **parts}) + b"b"
        case np.ndarray():
            made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
            kind = (
                b"cnumpy\ndtype\n("
                + as_python_2_wrote(value.dtype.str[1:])
                + b"I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
            )
            is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
            content = value.tobytes(order="F" if is_fortran else "C")
            state = b"(I1\n" + as_python_2_wrote(value.shape) + kind + as_python_2_wrote(is_fortran)
            return made + state + as_python_2_wrote(content) + b"tb"
    raise TypeError(type(value))


def flame_arrays(face: Face) -> dict[str, Any]:
    """FLAME's arrays, metres: 300 + 100 directions, of which the face has few; five joints; Fortran order in places."""
    random = np.random.default_rng(1)
    n = len(face.mean)
    shapedirs = np.zeros((n, 3, 400))
    shapedirs[..., : len(face.identity)] = np.moveaxis(face.identity, 0, -1)
    shapedirs[..., 300 : 300 + len(face.expression)] = np.moveaxis(face.expression, 0, -1)
    weights = random.random((n, 5)) ** 4
    regressor = random.random((5, n)) ** 8
    regressor[regressor < 0.2] = 0
    return {
        "v_template": face.mean,
        "f": face.triangles.astype(np.uint32),
        "shapedirs": shapedirs,
        "posedirs": np.asfortranarray(0.01 * random.normal(size=(n, 3, 36))),
        "J_regressor": regressor / regressor.sum(axis=1, keepdims=True),
        "kintree_table": np.array([[4294967295, 0, 1, 1, 1], [0, 1, 2, 3, 4]], dtype=np.uint32),
        "weights": weights / weights.sum(axis=1, keepdims=True),
    }


def write_flame(path: Path, arrays: dict[str, Any], style: str = "2020") -> Path:
    """`2020`: Python 2 with chumpy and a sparse matrix; `2023`: Python 3, plain but for the sparse matrix; `npz`."""
    if style == "npz":
        np.savez(path, **arrays)
        return path
    sparse = {**arrays, "J_regressor": csc_matrix(arrays["J_regressor"])}
    if style == "2023":
        path.write_bytes(pickle.dumps(sparse, protocol=4))
        return path
    chumpy = {key: Chumpy(sparse[key]) for key in ("v_template", "shapedirs")}
    path.write_bytes(
        b"\x80\x02" + as_python_2_wrote({**sparse, **chumpy, "bs_style": "lbs", "bs_type": "lrotmin"}) + b"."
    )
    return path


def embedding(face: Face) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [68] with the landmarks at one of their corners, and weights [68, 3]."""
    faces = np.array([np.flatnonzero((face.triangles == vertex).any(axis=1))[0] for vertex in face.landmarks])
    return faces, (face.triangles[faces] == face.landmarks[:, None]).astype(np.float64)


def write_deca_embedding(folder: Path, face: Face, **changed: Any) -> None:
    faces, weights = embedding(face)
    content = {
        "full_lmk_faces_idx": faces[None],
        "full_lmk_bary_coords": weights[None],
        "static_lmk_faces_idx": faces[17:],
    }
    np.save(folder / "landmark_embedding.npy", np.array({**content, **changed}, dtype=object), allow_pickle=True)


def write_ringnet_embedding(folder: Path, face: Face) -> None:
    faces, weights = embedding(face)
    points = {"lmk_face_idx": faces[17:].astype(np.uint32), "lmk_b_coords": weights[17:]}
    (folder / "flame_static_embedding.pkl").write_bytes(b"\x80\x02" + as_python_2_wrote(points) + b".")
    turned = [np.roll(faces[:17], i) for i in range(79)]  # by the head's yaw; row 0 from the front
    contour = {"lmk_face_idx": np.stack(turned), "lmk_b_coords": np.stack([weights[:17]] * 79)}
    np.save(folder / "flame_dynamic_embedding.npy", np.array(contour, dtype=object), allow_pickle=True)


def write_ict(folder: Path, face: Face, **changed: Any) -> Path:
    """FaceXModel: centimetres, texture indices, quads where two triangles share an edge, numbers as there."""
    folder.mkdir(exist_ok=True)

    def obj(shape: np.ndarray) -> str:
        lines = ["mtllib ICTFaceModelMaterial.mtl"]
        lines += [f"v {x:.15f} {y:.15f} {z:.15f}" for x, y, z in shape / 0.01]
        lines += ["vt 0.5 0.5", "usemtl M_Face", "s 1"]
        lines += ["f " + " ".join(f"{corner + 1}/1" for corner in polygon) for polygon in polygons(face.triangles)]
        return "\n".join(lines) + "\n"

    (folder / "generic_neutral_mesh.obj").write_text(obj(face.mean))
    for i, move in enumerate(face.identity):
        (folder / f"identity{i:03d}.obj").write_text(obj(face.mean + move))
    for name, move in zip(ICT_NAMES, face.expression, strict=True):
        (folder / f"{name}.obj").write_text(obj(face.mean + move))
    config = {"expressions": ICT_NAMES, "idx_to_landmark_verts": face.landmarks.tolist(), "incompatibilities": []}
    (folder / "vertex_indices.json").write_text(json.dumps({**config, **changed}))
    return folder


def polygons(triangles: np.ndarray) -> list[list[int]]:
    """The first two triangles that share an edge joined to a quad, the rest as they are."""
    first = triangles[0].tolist()
    for i, other in enumerate(triangles[1:].tolist(), start=1):
        shared = set(first) & set(other)
        if len(shared) == 2:
            (mine,) = set(first) - shared
            at = first.index(mine)
            quad = [mine, first[(at + 1) % 3], *(set(other) - shared), first[(at + 2) % 3]]
            return [quad, *(t for j, t in enumerate(triangles.tolist()) if j not in (0, i))]
    raise AssertionError("no two triangles share an edge")


def write_gnm(folder: Path, face: Face, **changed: Any) -> Path:
    """gnm_head.npz, metres, and head_sparse_68.txt, in which points 2 to 6 run backwards."""
    content = {
        "version": np.array("3.0"),
        "template_vertex_positions": face.mean.astype(np.float32),
        "vertex_identity_basis": face.identity.astype(np.float32),
        "expression_basis": face.expression.astype(np.float32),
        "expression_names": np.array([f"lower_face_region_{i}" for i in range(len(face.expression))]),
        "triangles": face.triangles.astype(np.int32),
    }
    np.savez(
        folder / "gnm_head.npz", **{key: value for key, value in {**content, **changed}.items() if value is not None}
    )
    order = [0, 1, 6, 5, 4, 3, 2, *range(7, 68)]
    lines = [f"{face.landmarks[i]} 0.998 {(face.landmarks[i] + 1) % N_VERTICES} 0.000 0 0.000" for i in order]
    (folder / "head_sparse_68.txt").write_text("\n".join(lines) + "\n")
    return folder / "gnm_head.npz"
