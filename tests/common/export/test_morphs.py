"""Takes as meshes with morph targets: exact for the 68 points, as close as the model for a dense one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from common.export.arkit import SEEN, closed_mouth, solve
from common.export.keys import face_keys
from common.export.morphs import EXACT_M, MorphMesh, landmark_mesh, model_mesh
from common.export.points import POINT_NAMES
from common.export.take import METRES_PER_UNIT, Take
from common.face.mesh import landmark_triangles, vertex_normals
from common.face.model import FaceModel
from tests.common.export.takes import smooth_take, takes


def shapes(mesh: MorphMesh) -> np.ndarray:
    """[T, V, 3]: what a tool makes of it."""
    return mesh.points + np.einsum("tk,kvc->tvc", mesh.weights, mesh.targets)


def off_m(points: np.ndarray, others: np.ndarray) -> float:
    """The greatest distance of two points."""
    return float(np.linalg.norm(points - others, axis=-1).max())


def dense_model(name: str, expression: torch.Tensor, std: float, names: tuple[str, ...] = ()) -> FaceModel:
    """The built-in model with the middles of its triangles as further vertices; expression: [E, 68, 3]."""
    face = FaceModel.builtin()
    corners = landmark_triangles(face.mean)
    middles = torch.arange(68, 68 + len(corners))
    around = [torch.stack([corners[:, i], corners[:, (i + 1) % 3], middles], dim=1) for i in range(3)]

    def dense(points: torch.Tensor) -> torch.Tensor:
        return torch.cat([points, points[..., corners, :].mean(dim=-2)], dim=-2)

    return FaceModel(
        dense(face.mean),
        dense(face.identity),
        dense(expression),
        face.identity_std,
        torch.full((len(expression),), std),
        METRES_PER_UNIT,
        name,
        triangles=torch.cat(around),
        landmark_vertices=torch.arange(68)[:, None].repeat(1, 3),
        landmark_weights=torch.tensor([[1.0, 0.0, 0.0]]).repeat(68, 1),
        expression_names=names,
    )


def statistical_model() -> FaceModel:
    face = FaceModel.builtin()
    return dense_model("flame", face.expression * face.expression_std[:, None, None], 1.0)


def blend_shape_model() -> FaceModel:
    """Six blend shapes of some 4 mm."""
    expression = FaceModel.builtin().expression[:6]
    longest = expression.norm(dim=-1).amax(dim=1)
    return dense_model("ict", expression / longest[:, None, None] * 0.04, 0.3, tuple(f"shape{i}" for i in range(6)))


def spoken_by(model: FaceModel, expression: np.ndarray) -> tuple[Take, np.ndarray]:
    """A take in which a model's person has expressions [T, E], and all its vertices [T, V, 3] in metres."""
    take = smooth_take(len(expression))
    identity = 0.5 * model.identity_std
    person = model.shape(identity)
    vertices = model.shape(identity, torch.from_numpy(expression).float()) * METRES_PER_UNIT
    points = model.landmarks(vertices).double().numpy()
    neutral = (model.landmarks(person) * METRES_PER_UNIT).double().numpy()
    return replace(take, points=points, neutral=neutral), vertices.double().numpy()


@settings(max_examples=20, deadline=None)
@given(takes())
def test_every_key_of_any_take_is_exact(take: Take) -> None:
    mesh = landmark_mesh(take, solve(take))
    assert off_m(shapes(mesh), take.points) <= 1.001 * EXACT_M  # and rounding
    assert mesh.weights.min() >= 0 and mesh.weights.max() <= 1
    assert len(set(mesh.target_names)) == len(mesh.target_names) == len(mesh.targets) == mesh.weights.shape[1]


def test_curves_come_first_by_name_and_the_rest_is_correctives() -> None:
    take = smooth_take(50)
    mesh = landmark_mesh(take, solve(take))
    assert mesh.target_names[: len(SEEN)] == SEEN
    assert all(name.startswith("corrective_") and name[-1] in "+-" for name in mesh.target_names[len(SEEN) :])
    assert mesh.point_names == POINT_NAMES


def test_a_face_that_rests_needs_no_correctives() -> None:
    take = smooth_take(3)
    take = replace(take, points=np.repeat(closed_mouth(take)[None], 3, axis=0))
    mesh = landmark_mesh(take, solve(take))
    assert mesh.target_names == SEEN and mesh.weights.max() < 1e-6


def test_an_open_mouth_of_the_reference_is_closed_in_the_mesh_and_open_in_the_keys() -> None:
    take = smooth_take(2)
    neutral = take.neutral.copy()
    neutral[[65, 66, 67], 1] -= 0.01
    take = replace(take, neutral=neutral, points=np.repeat(neutral[None], 2, axis=0))
    mesh = landmark_mesh(take, solve(take))
    assert mesh.points[62, 1] - mesh.points[66, 1] < 0.003
    assert off_m(shapes(mesh), take.points) <= 1.001 * EXACT_M


def test_every_take_has_the_same_triangles_and_they_look_outwards() -> None:
    one, other = (landmark_mesh(take, solve(take)) for take in (smooth_take(2), smooth_take(5, seed=1)))
    assert (one.triangles == other.triangles).all()
    normals = vertex_normals(torch.from_numpy(one.points), torch.from_numpy(one.triangles))
    assert (normals[:, 2] > 0).all()  # a face seen from the front shows none of its inside


def test_a_statistical_model_follows_its_own_person() -> None:
    model = statistical_model()
    rng = np.random.default_rng(0)
    n = len(model.expression_std)
    expression = np.cumsum(rng.normal(size=(30, n)), axis=0) / 8
    take, vertices = spoken_by(model, expression.clip(-2.5, 2.5))
    mesh = model_mesh(take, model)
    assert off_m(shapes(mesh), vertices) < 0.001  # priors draw it a little towards the mean
    assert np.linalg.norm(shapes(mesh) - vertices, axis=-1).mean() < 0.0003
    assert mesh.weights.min() >= 0 and mesh.weights.max() <= 1
    assert len(mesh.targets) <= 2 * n and all(name.startswith("movement_") for name in mesh.target_names)


def test_blend_shapes_keep_their_names_and_their_weights() -> None:
    model = blend_shape_model()
    weights = np.random.default_rng(0).uniform(-0.5, 1.0, (40, 6)).clip(0, 1)  # a third of them at rest
    take, vertices = spoken_by(model, weights)
    mesh = model_mesh(take, model)
    assert mesh.target_names == model.expression_names
    assert mesh.weights.min() >= 0 and mesh.weights.max() <= 1
    assert np.abs(mesh.weights - weights).mean() < 0.05
    assert off_m(shapes(mesh), vertices) < 0.001


def test_what_the_model_cannot_be_is_not_taken_for_an_expression() -> None:
    """Landmarks of another convention, or of an unusual face: the same offset in every key."""
    model = blend_shape_model()
    take, _ = spoken_by(model, np.zeros((5, 6)))
    offset = np.random.default_rng(1).normal(size=(68, 3)) * 0.003
    mesh = model_mesh(replace(take, points=take.points + offset, neutral=take.neutral + offset), model)
    still = mesh.weights - mesh.weights[0]
    assert np.abs(still).max() < 1e-6
    assert off_m(shapes(mesh)[0], shapes(mesh)[-1]) < 1e-9


def test_a_face_that_is_turned_a_little_moved_and_grown_is_the_same_person() -> None:
    model = statistical_model()
    take, vertices = spoken_by(model, np.zeros((2, len(model.expression_std))))
    angle = 0.03
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])

    def placed(points: np.ndarray) -> np.ndarray:
        return 1.04 * points @ turn.T + [0.002, -0.003, 0.004]

    mesh = model_mesh(replace(take, points=placed(take.points), neutral=placed(take.neutral)), model)
    assert off_m(shapes(mesh), placed(vertices)) < 0.001


def test_a_model_without_triangles_is_refused() -> None:
    with pytest.raises(ValueError, match="no triangles"):
        model_mesh(smooth_take(2), FaceModel.builtin())


@pytest.mark.parametrize("model", [statistical_model(), blend_shape_model()], ids=["statistical", "blend shapes"])
def test_no_vertex_of_a_dense_mesh_is_further_off_than_stated_between_keys(model: FaceModel) -> None:
    take, error_m = smooth_take(300, fps=200), 1e-3
    mesh = model_mesh(take, model)
    kept = face_keys(take, error_m, [mesh])
    assert len(kept) < 200
    between = np.stack([np.interp(np.arange(300), kept, column[kept]) for column in mesh.weights.T], axis=1)
    assert off_m(shapes(replace(mesh, weights=between)), shapes(mesh)) <= error_m / 2
