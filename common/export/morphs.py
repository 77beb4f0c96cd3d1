"""Meshes with morph targets: how a take becomes an animated face in glTF and USD.

The 68 points become a small mesh whose targets are ARKit's curves and, as those curves are a few dozen gestures and no
exact basis, correctives: what they leave, by singular value decomposition, until nothing is left that could be seen. A
dense face model is fitted instead; it is as exact as the model is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from common.export.arkit import CURVES, SEEN, Curves, closed_mouth
from common.export.points import POINT_NAMES
from common.export.take import Take
from common.face.mesh import landmark_triangles
from common.face.model import FaceModel
from common.face.published import ict

EXACT_M = 1e-5  # no point of any key is further off than 0.01 mm
_NOISE_M = 0.0005  # of a take's points, which are calmer than a tracker's (`common.face.fit.NOISE_M`)
_MOST_STD = 3.0  # how far coefficients of a model that knows their spread may go
_MAX_SWEEPS, _SETTLED = 100, 1e-4


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


def landmark_mesh(take: Take, curves: Curves) -> MorphMesh:
    """The 68 points, eyes and mouth left open; every key as in the take to within EXACT_M.

    Targets: the curves that 68 points can see, by ARKit's names, then `corrective_00+`, `corrective_00-` and so on, the
    two directions of one movement, as weights below 0 are not for every tool.
    """
    neutral = closed_mouth(take)
    seen = [CURVES.index(name) for name in SEEN]
    basis, values = curves.basis[seen], curves.values[:, seen]
    left = take.points - neutral - np.einsum("tk,kpc->tpc", values, basis)
    amounts, directions = _movements(left)
    names, targets, weights = _one_way("corrective", amounts, directions)
    return MorphMesh(
        name="face",
        points=neutral,
        triangles=landmark_triangles(FaceModel.builtin().mean).numpy(),
        target_names=SEEN + names,
        targets=np.concatenate([basis, targets]),
        weights=np.concatenate([values, weights], axis=1),
        point_names=POINT_NAMES,
    )


def model_mesh(take: Take, model: FaceModel) -> MorphMesh:
    """A dense model's mesh: its identity as the take's neutral face, its expressions as in every key.

    Where the landmarks of the neutral face differ from the model's best, in every key they differ by as much. Targets
    are ICT-FaceKit's blend shapes by their names, or the take's own movements (`_own_movements`), two ways each.
    """
    if model.triangles is None:
        raise ValueError(f"the face model {model.name} has no triangles, so no mesh")
    small, is_blend_shapes = model.at_landmarks(), model.name == ict.SOURCE.name
    unit, std = model.metres_per_unit, model.expression_std.double().numpy()
    low, high = (np.zeros_like(std), np.ones_like(std)) if is_blend_shapes else (-_MOST_STD * std, _MOST_STD * std)
    expression = _flat(small.expression) * unit  # [E, 204]
    placed = _flat(_placements(small.mean) * unit)  # [7, 204]
    shared = np.concatenate([placed, _flat(small.identity) * unit])
    free = np.concatenate([np.full(len(placed), np.inf), model.identity_std.double().numpy()])
    mean = _flat(small.mean[None])[0] * unit

    bases, stds = np.concatenate([shared, expression]), np.concatenate([free, std])
    bounds = np.concatenate([np.full(len(free), np.inf), high]), np.concatenate([np.full(len(free), -np.inf), low])
    found = _bounded(bases, stds, bounds[1], bounds[0], (take.neutral.ravel() - mean)[None])[0]
    person = mean + found[: len(free)] @ shared
    misfit = take.neutral.ravel() - person - found[len(free) :] @ expression
    moves = take.points.reshape(take.n_keys, -1) - person - misfit
    amounts = _bounded(expression, std, low, high, moves)  # [T, E]

    directions = torch.cat([_placements(model.mean), model.identity]).double().numpy() * unit
    points = model.mean.double().numpy() * unit + np.tensordot(found[: len(free)], directions, 1)
    targets = model.expression.double().numpy() * unit  # [E, V, 3]
    if is_blend_shapes:
        names, weights = model.expression_names, amounts
    else:
        names, targets, weights = _one_way("movement", *_own_movements(amounts, targets))
    return MorphMesh(model.name, points, model.triangles.numpy(), names, targets, weights)


def _movements(left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As few movements as keep every point of left [T, P, 3] within EXACT_M: amounts [T, K], directions [K, P, 3]."""
    flat = left.reshape(len(left), -1)
    amounts, lengths, directions = np.linalg.svd(flat, full_matrices=False)
    amounts *= lengths

    def is_exact(n: int) -> bool:
        off = (flat - amounts[:, :n] @ directions[:n]).reshape(left.shape)
        return bool((np.square(off).sum(axis=-1) <= EXACT_M**2).all())

    few, enough = -1, len(directions)  # too few, and enough: all of them
    while enough - few > 1:
        n = (few + enough) // 2
        few, enough = (few, n) if is_exact(n) else (n, enough)
    return amounts[:, :enough], directions[:enough].reshape(-1, *left.shape[1:])


def _own_movements(amounts: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A take's own movements among a model's many directions: amounts [T, E] of targets [E, V, 3], but fewer.

    Statistical models have up to hundreds, one as little to be posed by hand as the other. The vertices of every key
    stay within EXACT_M, root mean square.
    """
    flat = targets.reshape(len(targets), -1)
    squares, vectors = np.linalg.eigh(flat @ flat.T / targets.shape[1])
    moved = amounts @ (vectors * np.sqrt(squares.clip(min=0)))  # [T, E], as long as the mean square movement is large
    when, lengths, _ = np.linalg.svd(moved, full_matrices=False)
    rest = np.square(when * lengths)[:, ::-1].cumsum(axis=1)[:, ::-1].max(axis=0)  # [E], of all from the i-th on
    few = when[:, rest > EXACT_M**2]
    return few, np.tensordot(few.T @ amounts, targets, 1)


def _one_way(name: str, amounts: np.ndarray, directions: np.ndarray) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Movements with a sign as pairs of targets with weights in 0..1, 1 where they go furthest.

    amounts: [T, K]; directions: [K, V, 3]. A way that is never gone is left out.
    """
    both = np.stack([amounts.clip(min=0), (-amounts).clip(min=0)], axis=2).reshape(len(amounts), -1)  # [T, 2K]
    furthest = both.max(axis=0)
    gone = np.flatnonzero(furthest > 0)
    signed = furthest[gone] * np.where(gone % 2, -1, 1)
    targets = directions[gone // 2] * signed[:, None, None]
    return tuple(f"{name}_{i // 2:02d}{'+-'[i % 2]}" for i in gone), targets, both[:, gone] / furthest[gone]


def _placements(points: torch.Tensor) -> torch.Tensor:
    """Moves [7, V, 3] of points [V, 3]: along x, y and z, (small) turns about them, and growth."""
    along = torch.eye(3).to(points)
    moved = along[:, None].expand(3, *points.shape)
    turned = torch.linalg.cross(moved, points.expand(3, *points.shape))
    return torch.cat([moved, turned, points[None]])


def _bounded(bases: np.ndarray, std: np.ndarray, low: np.ndarray, high: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Coefficients [T, E] within low..high [E] that explain moves [T, 204] by bases [E, 204] and are as likely as std

    [E] makes them: coordinate descent, every key by itself, from where it would end without bounds.
    """
    normal = bases @ bases.T + np.diag((_NOISE_M / std) ** 2)
    right = moves @ bases.T
    free = np.linalg.solve(normal, right.T).T
    found = free.clip(low, high)
    bound = np.flatnonzero((found != free).any(axis=1))  # the others are there already
    inside, right = found[bound], right[bound]
    for _ in range(_MAX_SWEEPS):
        before = inside.copy()
        for e in range(len(bases)):
            step = (right[:, e] - inside @ normal[:, e]) / normal[e, e]
            inside[:, e] = (inside[:, e] + step).clip(low[e], high[e])
        if (np.abs(inside - before) <= _SETTLED * np.where(np.isfinite(std), std, 1)).all():
            break
    found[bound] = inside
    return found


def _flat(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().reshape(len(tensor), -1)
