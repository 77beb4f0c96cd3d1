"""The Basel Face Model 2009 as the field uses it: `BFM_model_front.mat` of Deep3DFaceReconstruction.

35,709 vertices of the face; 80 identity directions of BFM 2009 and 64 expression directions of Guo et al. 2018, each as
long as one standard deviation; decimetres. Indices count from 1, as in MATLAB; `keypoints` are 68 vertices. What
`transferBFM09` of util/load_mats.py there writes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.face.model import FaceModel
from common.face.published.assemble import Parts, Source, assemble, at_vertices
from common.face.published.matlab import read_mat

FILE_NAME = "BFM_model_front.mat"
SOURCE = Source(
    "bfm",
    "the Basel Face Model",
    "make it from the Basel Face Model 2009 (faces.dmi.unibas.ch: register; research only) with util/load_mats.py of "
    "github.com/sicxu/Deep3DFaceRecon_pytorch",
)
_KEYS = ("meanshape", "idBase", "exBase", "tri", "keypoints")
_METRES_PER_UNIT = 0.1


def read(path: Path) -> FaceModel:
    """Read the file; ValueError or KeyError where it is not as described, InputError where it is missing."""
    if not path.is_file():
        raise SOURCE.missing(path)
    arrays = read_mat(path.read_bytes(), _KEYS)
    for key in _KEYS:
        if key not in arrays:
            raise KeyError(key)
    mean = arrays["meanshape"].reshape(-1)
    if mean.size % 3:
        raise ValueError(f"meanshape has {mean.size} numbers, not three for every vertex")
    vertices, weights = at_vertices(arrays["keypoints"].reshape(-1))
    return assemble(
        "bfm",
        Parts(
            mean.reshape(-1, 3),
            _directions(arrays["idBase"], mean.size, "idBase"),
            _directions(arrays["exBase"], mean.size, "exBase"),
            arrays["tri"].astype(np.float64) - 1,  # unsigned in the file
            vertices.astype(np.float64) - 1,
            weights,
            _METRES_PER_UNIT,
        ),
    )


def _directions(columns: np.ndarray, n_coordinates: int, key: str) -> np.ndarray:
    """[3 V, K] -> [K, V, 3]."""
    if columns.ndim != 2 or len(columns) != n_coordinates:
        raise ValueError(f"{key} must be [{n_coordinates}, K], got {list(columns.shape)}")
    return columns.T.reshape(columns.shape[1], -1, 3)
