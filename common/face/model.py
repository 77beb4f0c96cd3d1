"""The face model: M = M̄ + M_id α_id + M_exp α_exp (dual-diffusion paper, eq. 1), over 68 landmarks or a whole mesh.

Face space: x to the image's right, y up, z towards the camera; iBUG-68 order. `python -m common.face.model fit` makes
the built-in model from landmark tracks (see `common.face.model_fit` for how), `info` says what a model is; published
models are read by `common.face.published`. This module only holds and stores one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from common import entry, weights
from common.errors import InputError

N_POINTS = 68
CONVENTION = "facemesh68"  # FaceMesh's points in iBUG order: at the cheeks the jaw line lies inside iBUG's
BUILTIN = "small/face_model"
_FORMAT = "duet-face-model-1"

# Groups of points, iBUG-68, by number. Left and right are the image's.
JAW = tuple(range(17))
BROWS = tuple(range(17, 27))
NOSE = tuple(range(27, 36))
LEFT_EYE, RIGHT_EYE = tuple(range(36, 42)), tuple(range(42, 48))
EYES = LEFT_EYE + RIGHT_EYE
LIDS = (37, 38, 40, 41, 43, 44, 46, 47)  # the eyes without their corners
LID_PAIRS = ((37, 41), (38, 40), (43, 47), (44, 46))  # upper, lower
LIPS = tuple(range(48, 68))
OUTER_LIP, INNER_LIP = tuple(range(48, 60)), tuple(range(60, 68))
LIP_STREAM = JAW + LIPS  # 37 points: the paper's lip-related stream
REST = BROWS + NOSE + EYES  # 31 points: the rest
RIGID = (27, 28, 29, 30, 36, 39, 42, 45, 0, 16)  # move with the skull: nose bridge, eye corners, ears
MIRROR = (
    *range(16, -1, -1),
    *range(26, 16, -1),
    *(27, 28, 29, 30, 35, 34, 33, 32, 31),
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
    *(64, 63, 62, 61, 60, 67, 66, 65),
)  # point i of a mirrored face is point MIRROR[i] of the face


def mirror(points: Tensor) -> Tensor:
    """The mirror image of face-space points or displacements [..., 68, 3]: x changes sign, left and right swap."""
    return points[..., MIRROR, :] * points.new_tensor([-1.0, 1.0, 1.0])


def eye_distance(points: Tensor) -> Tensor:
    """Distance of the eye centres: [..., 68, 2 or 3] -> [...]."""
    return (points[..., LEFT_EYE, :].mean(dim=-2) - points[..., RIGHT_EYE, :].mean(dim=-2)).norm(dim=-1)


def mouth_opening(points: Tensor) -> Tensor:
    """Distance of the middles of the inner lips by that of the eye centres: [..., 68, 2 or 3] -> [...]."""
    return (points[..., 62, :] - points[..., 66, :]).norm(dim=-1) / eye_distance(points)


@dataclass(frozen=True)
class FaceModel:
    """A linear face model of V vertices; float32, all in units of metres_per_unit. The built-in one: V = 68.

    mean: [V, 3]; identity: [K, V, 3] and expression: [E, V, 3], directions: of length 1 in the built-in model, one
    standard deviation or one whole blend shape in published ones; identity_std: [K] and expression_std: [E], the
    standard deviations of their coefficients. triangles: [F, 3] int64, counter-clockwise as seen from outside.
    landmark_vertices: [68, 3] int64, landmark_weights: [68, 3]: a landmark is the weighted mean of three vertices
    (barycentric); None where the vertices are the landmarks, V = 68. expression_names: E of them, or none.
    convention: how the landmarks are placed: `facemesh68` (built-in), `ibug68_3d` (iBUG's, with a jaw line that stays
    on the head as it turns: BFM, FLAME, ICT-FaceKit).
    """

    mean: Tensor
    identity: Tensor
    expression: Tensor
    identity_std: Tensor
    expression_std: Tensor
    metres_per_unit: float
    name: str
    convention: str = CONVENTION
    triangles: Tensor | None = None
    landmark_vertices: Tensor | None = None
    landmark_weights: Tensor | None = None
    expression_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        k, e, v = len(self.identity_std), len(self.expression_std), len(self.mean)
        wanted = {"mean": (v, 3), "identity": (k, v, 3), "expression": (e, v, 3)}
        wanted |= {"identity_std": (k,), "expression_std": (e,)}
        if self.landmark_vertices is not None:
            wanted |= {"landmark_vertices": (N_POINTS, 3), "landmark_weights": (N_POINTS, 3)}
        elif v != N_POINTS:
            wanted["mean"] = (N_POINTS, 3)  # vertices are the landmarks, unless it is said which are
        if self.triangles is not None:
            wanted["triangles"] = (len(self.triangles), 3)
        for field, shape in wanted.items():
            value = getattr(self, field)
            if value is None or tuple(value.shape) != shape:
                raise ValueError(f"{field} must be {list(shape)}, got {'none' if value is None else list(value.shape)}")
        for field in ("triangles", "landmark_vertices"):
            indices = getattr(self, field)
            if indices is None or len(indices) == 0:
                continue
            if indices.dtype != torch.int64:
                raise ValueError(f"{field} must be int64, got {indices.dtype}")
            if not 0 <= int(indices.min()) <= int(indices.max()) < v:
                raise ValueError(
                    f"{field} must be numbers of the {v} vertices, got {int(indices.min())} to {int(indices.max())}"
                )
        if self.expression_names and len(self.expression_names) != e:
            raise ValueError(f"expression_names must be {e}, got {len(self.expression_names)}")

    def shape(self, identity: Tensor | None = None, expression: Tensor | None = None) -> Tensor:
        """Points [..., V, 3] of coefficients [..., K] and [..., E], in units (not standard deviations); eq. 1."""
        points = self.mean
        if identity is not None:
            points = points + torch.einsum("...k,kpc->...pc", identity, self.identity)
        if expression is not None:
            points = points + torch.einsum("...e,epc->...pc", expression, self.expression)
        return points

    def landmarks(self, shape: Tensor) -> Tensor:
        """The 68 landmarks [..., 68, 3] of vertices (or displacements of vertices) [..., V, 3]."""
        if self.landmark_vertices is None or self.landmark_weights is None:
            return shape
        return (shape[..., self.landmark_vertices, :] * self.landmark_weights[..., None]).sum(dim=-2)

    def at_landmarks(self) -> FaceModel:
        """The model of the 68 landmarks alone, with the same coefficients (this one, if it has no other vertices)."""
        if self.landmark_vertices is None:
            return self
        parts = {name: self.landmarks(getattr(self, name)) for name in ("mean", "identity", "expression")}
        return self._with({**parts, "triangles": None, "landmark_vertices": None, "landmark_weights": None})

    def to(self, device: torch.device | str) -> FaceModel:
        return self._with({name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _with(self, tensors: Mapping[str, Tensor | None]) -> FaceModel:
        return FaceModel(**{field.name: tensors.get(field.name, getattr(self, field.name)) for field in fields(self)})

    def _tensors(self) -> dict[str, Tensor]:
        found = {name: getattr(self, name) for name in (*_TENSORS, *_MESH_TENSORS)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def save(self, folder: Path) -> None:
        """Write model.safetensors (float32: some tens of KB) and config.json; raises InputError where it can't."""
        config: dict[str, object] = {
            "format": _FORMAT,
            "name": self.name,
            "convention": self.convention,
            "metres_per_unit": self.metres_per_unit,
            "n_identity": len(self.identity_std),
            "n_expression": len(self.expression_std),
        }
        if self.expression_names:
            config["expression_names"] = list(self.expression_names)
        weights.save(folder, self._tensors(), config, torch.float32)

    @staticmethod
    def load(name_or_path: str | Path) -> FaceModel:
        """Read what `save` wrote, or a published model; raises InputError where it isn't there or doesn't fit.

        name_or_path: a built-in name, a folder or a hub id of ours; `bfm`, `flame`, `ict` or `gnm`, which are looked
        for in face_models/; or the path of such a model: BFM's .mat, FLAME's .pkl or .npz, ICT-FaceKit's folder, GNM's
        .npz. All come in face space, in decimetres, with the built-in model's origin (the mean of `RIGID`).
        """
        from common.face.published import lookup  # it needs this module

        if (published := lookup.load(name_or_path)) is not None:
            return published
        state, config = weights.from_pretrained(name_or_path)
        try:
            if config["format"] != _FORMAT:
                raise InputError(f"{name_or_path} is not a face model of this version: format {config['format']!r}.")
            model = FaceModel(
                **{name: state[name].float() for name in _TENSORS},
                **{name: state[name] for name in _MESH_TENSORS if name in state},
                metres_per_unit=float(config["metres_per_unit"]),
                name=str(config["name"]),
                convention=str(config["convention"]),
                expression_names=tuple(str(name) for name in config.get("expression_names", ())),
            )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{name_or_path} is not a face model ({error}): give the folder of one.") from error
        if not all(getattr(model, name).isfinite().all() for name in _TENSORS) or not model.metres_per_unit > 0:
            raise InputError(f"{name_or_path} holds numbers that are not finite: get a fresh copy of it.")
        return model

    @staticmethod
    @cache
    def builtin() -> FaceModel:
        """The model in this repository (weights/small/face_model)."""
        return FaceModel.load(BUILTIN)


_TENSORS = ("mean", "identity", "expression", "identity_std", "expression_std")
_MESH_TENSORS = ("triangles", "landmark_vertices", "landmark_weights")


def describe(model: FaceModel) -> str:
    """A few lines on a model: counts, what its directions move, units and size."""
    small, mm = model.at_landmarks(), 1000 * model.metres_per_unit
    n_triangles = "no" if model.triangles is None else len(model.triangles)
    sides = (mm * (model.mean.amax(dim=0) - model.mean.amin(dim=0))).tolist()
    lines = [
        f"{model.name}: {len(model.mean)} vertices, {n_triangles} triangles, 68 landmarks as {model.convention}",
        f"units of {mm:g} mm; {' x '.join(f'{side:.0f}' for side in sides)} mm, "
        f"eye centres {mm * eye_distance(small.mean):.1f} mm apart",
    ]
    for what, basis, std in (
        ("identity", small.identity, small.identity_std),
        ("expression", small.expression, small.expression_std),
    ):
        moved = mm * (basis * std[:, None, None]).square().sum(dim=(0, 2)).mean().sqrt()
        lines.append(f"{what}: {len(std)} directions, a landmark's standard deviation is {moved:.1f} mm")
    if model.expression_names:
        lines.append("expressions: " + ", ".join(model.expression_names))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m common.face.model", description=__doc__)
    commands = parser.add_subparsers(required=True)
    fit = commands.add_parser("fit", help="fit the model to the landmark tracks of a data folder's train split")
    fit.add_argument("--data", type=Path, required=True, help="folder with index.csv and tracks/")
    fit.add_argument("--out", type=Path, default=weights.BUILT_IN_DIR / BUILTIN)
    fit.add_argument("--identity", type=int, default=24, help="identity directions")
    fit.add_argument("--expression", type=int, default=32, help="expression directions")
    info = commands.add_parser("info", help="say what a model is: its vertices, directions, units, size")
    info.add_argument("model", help="bfm, flame, ict or gnm (in face_models/), a path, or a built-in name")
    arguments = parser.parse_args(argv)

    if hasattr(arguments, "model"):
        print(describe(FaceModel.load(arguments.model)))
        return

    from common.face.model_fit import fit_face_model, report  # it needs this module

    torch.set_num_threads(1)  # small batches: more threads only wait for each other
    model = fit_face_model(arguments.data, arguments.identity, arguments.expression)
    model.save(arguments.out)
    print(report(model, arguments.data))


if __name__ == "__main__":
    entry.run(main)
