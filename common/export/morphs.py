"""Meshes with morph targets: how a take becomes an animated face in glTF and USD."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MorphMesh:
    """A mesh whose shape at key k is points + Σ weights[k] · targets, in the head's space (frontal, metres).

    points: [V, 3] float64, the neutral face; triangles: [F, 3] int64, counter-clockwise as seen from outside; targets:
    [K, V, 3], what a whole weight moves each vertex by; weights: [T, K] in 0..1 (tools clamp beyond); point_names: V
    of them where the vertices are landmarks, else none.
    """

    name: str
    points: np.ndarray
    triangles: np.ndarray
    target_names: tuple[str, ...]
    targets: np.ndarray
    weights: np.ndarray
    point_names: tuple[str, ...] = ()
