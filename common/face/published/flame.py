"""FLAME (Li et al. 2017; models of 2020 and 2023): a pickle or `.npz`, with a landmark embedding beside it.

`v_template` [V, 3], `f` [F, 3], `shapedirs` [V, 3, 400] (300 identity directions, then 100 of expression, each as long
as one standard deviation), and for its five joints (root, neck, jaw, eyes) `posedirs` [V, 3, 36], `J_regressor` [5, V],
`kintree_table` [2, 5], `weights` [V, 5]; metres. The pickles of 2020 hold chumpy's arrays and scipy's sparse matrices,
which are taken apart here without either.

FLAME opens its mouth by turning the jaw's joint, which eq. 1 has no room for. The turn is made linear about the rest
pose: three further expression directions, the derivatives of the skinned vertices, pose correctives included, by the
joint's rotation vector (radians). The error is of second order: at the chin, some 0.1 m from the joint, 0.5 mm for a
turn of 0.1 rad and 4.5 mm for 0.3 rad. How the joint moves with identity is left out. Neck and eyes are left out too:
the pose turns the whole head.

Embeddings: DECA's `landmark_embedding.npy` (`full_lmk_faces_idx` and `full_lmk_bary_coords`, 68 points fixed to the
head), or RingNet's `flame_static_embedding.pkl` (51 points) with `flame_dynamic_embedding.npy` (the jaw line by the
head's yaw, of which the frontal one is taken).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.face.model import N_POINTS, FaceModel
from common.face.published.assemble import Parts, Source, assemble, read_npz, whole_numbers
from common.unpickle import Placeholder, load, load_npy

SOURCE = Source(
    "flame",
    "FLAME",
    "download it from flame.is.tue.mpg.de (register; FLAME 2023 Open is CC BY 4.0, the others are for research only)",
)
EMBEDDING = Source(
    "flame",
    "FLAME",
    "download it from github.com/yfeng95/DECA/tree/master/data (research only), or flame_static_embedding.pkl and "
    "flame_dynamic_embedding.npy from github.com/soubhiksanyal/RingNet/tree/master/flame_model (research only)",
)
N_IDENTITY, N_EXPRESSION = 300, 100
JAW_JOINT = 2
JAW_NAMES = ("jaw_x", "jaw_y", "jaw_z")
JAW_STD_RAD = (0.1, 0.02, 0.02)  # ours: speech opens the mouth by some 0.1 to 0.2 rad and hardly moves it sideways
_KEYS = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights")
_DECA, _STATIC, _DYNAMIC = "landmark_embedding.npy", "flame_static_embedding.pkl", "flame_dynamic_embedding.npy"
_DEFAULT = "flame2023_Open.pkl"


def file_in(folder: Path) -> Path:
    """The model in a folder, whatever it is called; InputError where there are several."""
    suffixes = (".pkl", ".npz")
    found = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in suffixes and "embedding" not in p.name]
    if len(found) > 1:
        names = " and ".join(path.name for path in found[:2])
        raise InputError(f"{folder} has {names}: give the path of the one that is meant, or move the others away.")
    return found[0] if found else folder / _DEFAULT


def read(path: Path) -> FaceModel:
    """Read the file and the embedding in its folder; raises as `bfm.read`."""
    if not path.is_file():
        raise SOURCE.missing(path)
    if path.suffix.lower() == ".npz":
        content: Any = read_npz(path, _KEYS)
    else:
        content = load(io.BytesIO(path.read_bytes()))
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary")
    arrays = {key: _dense(content[key], key) for key in _KEYS}
    v_template = arrays["v_template"]
    n = len(v_template) if v_template.ndim == 2 else 0
    _check(arrays["v_template"], (n, 3), "v_template")
    _check(arrays["shapedirs"], (n, 3, N_IDENTITY + N_EXPRESSION), "shapedirs")
    triangles = whole_numbers(arrays["f"], "triangles").numpy()
    if triangles.ndim != 2 or not 0 <= triangles.min(initial=0) <= triangles.max(initial=0) < n:
        raise ValueError("f has no triangles of its vertices")
    faces, weights = _read_embedding(path.parent)
    if faces.min() < 0 or faces.max() >= len(triangles):
        raise ValueError(f"the landmarks lie in triangles that the model hasn't: it has {len(triangles)}")
    directions = np.moveaxis(arrays["shapedirs"], -1, 0)  # [400, V, 3]
    jaw = jaw_directions(
        v_template, arrays["posedirs"], arrays["J_regressor"], arrays["kintree_table"], arrays["weights"]
    )
    return assemble(
        "flame",
        Parts(
            v_template,
            directions[:N_IDENTITY],
            np.concatenate([directions[N_IDENTITY:], jaw]),
            triangles,
            triangles[faces],
            weights,
            metres_per_unit=1.0,
            expression_std=np.array([1.0] * N_EXPRESSION + list(JAW_STD_RAD)),
            expression_names=(*(f"expression_{i:02d}" for i in range(N_EXPRESSION)), *JAW_NAMES),
        ),
    )


def jaw_directions(
    v_template: np.ndarray, posedirs: np.ndarray, regressor: np.ndarray, kintree: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Derivatives [3, V, 3] of the skinned mean's vertices by the jaw's rotation vector, at rest; units by radian.

    v(R) = v + P vec(R - 1) + w (R - 1) (v - j), where P are the jaw's columns of posedirs [V, 3, 9 (J - 1)], j the
    joint, and w a vertex's weight of the joints that the jaw carries; of R, first order: 1 + [e]x.
    """
    n, n_joints = len(v_template), len(regressor) if regressor.ndim == 2 else 0
    if n_joints <= JAW_JOINT:
        raise ValueError(f"it has {n_joints} joints, and the jaw would be the third")
    _check(regressor, (n_joints, n), "J_regressor")
    _check(posedirs, (n, 3, 9 * (n_joints - 1)), "posedirs")
    _check(weights, (n, n_joints), "weights")
    _check(kintree, (2, n_joints), "kintree_table")
    parents = kintree[0]
    carried = [JAW_JOINT]
    for joint in range(JAW_JOINT + 1, n_joints):  # parents come before their children
        if parents[joint] in carried:
            carried.append(joint)
    w = weights[:, carried].sum(axis=1)[:, None]  # [V, 1]
    correctives = posedirs[:, :, 9 * (JAW_JOINT - 1) : 9 * JAW_JOINT]  # the root has none
    arm = v_template - regressor[JAW_JOINT] @ v_template
    directions = []
    for axis in np.eye(3):
        generator = np.cross(axis, np.eye(3)).T  # [e]x: generator @ a is axis x a
        directions.append(correctives @ generator.reshape(9) + w * (arm @ generator.T))
    return np.stack(directions)


def _read_embedding(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The triangle [68] of each landmark and its weights [68, 3]."""
    deca, static, dynamic = folder / _DECA, folder / _STATIC, folder / _DYNAMIC
    if deca.is_file():
        content = _dictionary(load_npy(deca.read_bytes()), deca)
        faces, weights = content["full_lmk_faces_idx"], content["full_lmk_bary_coords"]
    elif static.is_file() and dynamic.is_file():
        points = _dictionary(load(io.BytesIO(static.read_bytes())), static)
        contour = _dictionary(load_npy(dynamic.read_bytes()), dynamic)
        parts = [  # row 0 is the head seen from the front
            (np.asarray(contour["lmk_face_idx"])[0], np.asarray(contour["lmk_b_coords"])[0]),
            (np.asarray(points["lmk_face_idx"]), np.asarray(points["lmk_b_coords"])),
        ]
        faces = np.concatenate([part[0].reshape(-1) for part in parts])
        weights = np.concatenate([part[1].reshape(-1, 3) for part in parts])
    else:
        raise EMBEDDING.missing(dynamic if static.is_file() else deca)
    faces, weights = np.asarray(faces).reshape(-1), np.asarray(weights)
    if len(faces) != N_POINTS or weights.size != 3 * N_POINTS or weights.dtype.kind != "f":
        raise ValueError(f"the embedding has {len(faces)} landmarks instead of {N_POINTS}")
    if not np.isfinite(weights).all():
        raise ValueError("the embedding has weights that are not finite")
    return whole_numbers(faces, "landmarks").numpy(), weights.reshape(N_POINTS, 3)


def _dictionary(content: Any, path: Path) -> dict[str, Any]:
    """What np.save(path, {...}) or a pickle of a dictionary holds."""
    content = content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no dictionary")
    return content


def _dense(value: Any, key: str) -> np.ndarray:
    """A plain array of numbers from one, from chumpy's, or from scipy's sparse matrix."""
    if isinstance(value, np.ndarray) and value.dtype.hasobject and value.ndim == 0:
        value = value.item()  # how np.savez stores a sparse matrix
    if isinstance(value, Placeholder):
        state = value.state if isinstance(value.state, dict) else {}
        kind = value.name.rpartition(".")[2]
        if value.name.startswith("chumpy.") and "x" in state:
            value = state["x"]
        elif value.name.startswith("scipy.sparse.") and kind[:3] in ("csc", "csr"):
            value = _dense_matrix(state, is_by_columns=kind[:3] == "csc", key=key)
    values = np.asarray(value)
    if isinstance(value, Placeholder) or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ValueError(f"{key} are no finite numbers")
    return values


def _dense_matrix(state: dict[str, Any], is_by_columns: bool, key: str) -> np.ndarray:
    """What a compressed sparse matrix's state stands for, put together by numpy, which checks every index."""
    n_rows, n_columns = (int(length) for length in state["_shape"])
    starts, minor, values = (np.asarray(state[name]) for name in ("indptr", "indices", "data"))
    n_major = n_columns if is_by_columns else n_rows
    is_sound = starts.shape == (n_major + 1,) and minor.shape == values.shape == (starts[-1],) and starts[0] == 0
    if not is_sound or n_rows * n_columns > 2**27 or (minor < 0).any() or (np.diff(starts) < 0).any():
        raise ValueError(f"{key} is a damaged sparse matrix")
    major = np.repeat(np.arange(n_major), np.diff(starts))
    dense = np.zeros((n_rows, n_columns))
    try:
        np.add.at(dense, (minor, major) if is_by_columns else (major, minor), values)
    except IndexError as error:
        raise ValueError(f"{key} is a damaged sparse matrix") from error
    return dense


def _check(values: np.ndarray, shape: tuple[int, ...], key: str) -> None:
    if values.shape != shape:
        raise ValueError(f"{key} must be {list(shape)}, got {list(values.shape)}")
