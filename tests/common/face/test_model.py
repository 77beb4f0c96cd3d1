"""The face model: index tables, symmetry, files; and fitting one to tracks we make up."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import InputError
from common.face import model as tables
from common.face.fit import frontalise
from common.face.model import MIRROR, FaceModel, mirror
from common.face.model_fit import directions, explained_variance, fit_face_model, resting_shape
from common.face.pos import Pose, flip_image
from common.face.rotations import from_euler_rad


def test_mirror_table_is_its_own_inverse_and_swaps_the_eyes() -> None:
    assert sorted(MIRROR) == list(range(68))
    assert [MIRROR[i] for i in MIRROR] == list(range(68))
    assert {MIRROR[i] for i in tables.LEFT_EYE} == set(tables.RIGHT_EYE)
    points = torch.randn(4, 68, 3)
    assert torch.equal(mirror(mirror(points)), points)


def test_streams_divide_the_68_points_as_the_paper_does() -> None:
    assert len(tables.LIP_STREAM) == 37 and len(tables.REST) == 31
    assert sorted(tables.LIP_STREAM + tables.REST) == list(range(68))
    assert set(tables.LIPS) == set(tables.OUTER_LIP) | set(tables.INNER_LIP)


def test_builtin_model_is_a_face_of_human_size() -> None:
    model = FaceModel.builtin()
    mm = model.mean * model.metres_per_unit * 1000
    assert 85 < (mm[36] - mm[45]).norm() < 95  # outer eye corners: anthropometry says about 90 mm
    assert mm[8, 1] < mm[57, 1] < mm[30, 1] < mm[27, 1] < mm[19, 1]  # chin below lips, nose tip, bridge, brows
    assert mm[30, 2] > mm[27, 2] > mm[0, 2]  # nose tip nearest, ears farthest
    assert mm[36, 0] < mm[45, 0]


def test_builtin_model_is_mirror_symmetric() -> None:
    model = FaceModel.builtin()
    torch.testing.assert_close(mirror(model.mean), model.mean, atol=1e-6, rtol=0)
    for basis in (model.identity, model.expression):
        torch.testing.assert_close(basis.flatten(1).norm(dim=1), torch.ones(len(basis)))
        same = (mirror(basis) * basis).sum(dim=(1, 2))  # 1 for symmetric directions, -1 for antisymmetric ones
        torch.testing.assert_close(same.abs(), torch.ones(len(basis)), atol=1e-5, rtol=0)


def test_shape_is_equation_1() -> None:
    model = FaceModel.builtin()
    identity, expression = torch.randn(5, len(model.identity)), torch.randn(5, len(model.expression))
    shape = model.mean.clone()
    for k in range(len(model.identity)):
        shape = shape + identity[3, k] * model.identity[k]
    for e in range(len(model.expression)):
        shape = shape + expression[3, e] * model.expression[e]
    torch.testing.assert_close(model.shape(identity, expression)[3], shape)
    assert torch.equal(model.shape(), model.mean)


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = FaceModel.builtin()
    model.save(tmp_path / "copy")
    again = FaceModel.load(tmp_path / "copy")
    for name in ("mean", "identity", "expression", "identity_std", "expression_std"):
        assert torch.equal(getattr(again, name), getattr(model, name))
    assert (again.name, again.convention, again.metres_per_unit) == (model.name, "facemesh68", 0.1)


def meshed() -> FaceModel:
    """The built-in model with two vertices more, its landmarks each between three of the 70."""
    model, generator = FaceModel.builtin(), torch.Generator().manual_seed(0)

    def with_rim(points: torch.Tensor) -> torch.Tensor:
        return torch.cat([points, torch.randn(*points.shape[:-2], 2, 3, generator=generator)], dim=-2)

    return FaceModel(
        with_rim(model.mean),
        with_rim(model.identity),
        with_rim(model.expression),
        model.identity_std,
        model.expression_std,
        model.metres_per_unit,
        "meshed",
        "ibug68_3d",
        triangles=torch.tensor([[0, 1, 2], [3, 69, 68]]),
        landmark_vertices=torch.randint(0, 70, (68, 3), generator=generator),
        landmark_weights=torch.rand(68, 3, generator=generator).softmax(dim=1),
        expression_names=tuple(f"e{i}" for i in range(len(model.expression_std))),
    )


def test_landmarks_of_a_mesh_are_weighted_means_of_three_vertices() -> None:
    model = meshed()
    shape = model.shape(torch.randn(2, 24), torch.randn(2, 32))
    assert shape.shape == (2, 70, 3)
    assert model.landmark_vertices is not None and model.landmark_weights is not None
    corners, weights = model.landmark_vertices[13].tolist(), model.landmark_weights[13].tolist()
    wanted = sum(weight * shape[1, corner] for corner, weight in zip(corners, weights, strict=True))
    torch.testing.assert_close(model.landmarks(shape)[1, 13], wanted)
    builtin = FaceModel.builtin()
    assert builtin.landmarks(builtin.mean) is builtin.mean and builtin.at_landmarks() is builtin


def test_a_model_of_landmarks_alone_gives_the_same_landmarks() -> None:
    model = meshed()
    small = model.at_landmarks()
    identity, expression = torch.randn(5, 24), torch.randn(5, 32)
    wanted = model.landmarks(model.shape(identity, expression))
    torch.testing.assert_close(small.shape(identity, expression), wanted, atol=1e-5, rtol=0)
    assert (small.name, small.convention, small.expression_names) == (model.name, "ibug68_3d", model.expression_names)


def test_a_saved_mesh_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = meshed()
    model.save(tmp_path / "copy")
    again = FaceModel.load(tmp_path / "copy").to("cpu")
    for name in ("mean", "triangles", "landmark_vertices", "landmark_weights"):
        assert torch.equal(getattr(again, name), getattr(model, name))
    assert again.expression_names == model.expression_names


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    model = meshed()
    wrong: list[tuple[str, dict[str, object]]] = [
        ("mean", {"landmark_vertices": None, "landmark_weights": None}),
        ("landmark_weights", {"landmark_weights": None}),
        ("landmark_vertices", {"landmark_vertices": torch.zeros(67, 3, dtype=torch.int64)}),
        ("0 to 70", {"triangles": torch.tensor([[0, 1, 70]])}),
        ("-1 to 2", {"triangles": torch.tensor([[-1, 1, 2]])}),
        ("int64", {"triangles": torch.zeros(4, 3)}),
        ("triangles", {"triangles": torch.zeros(4, 4, dtype=torch.int64)}),
        ("expression_names", {"expression_names": ("a",)}),
        ("identity_std", {"identity_std": torch.ones(24, 1)}),
    ]
    for what, changed in wrong:
        with pytest.raises(ValueError, match=what):
            replace(model, **changed)  # type: ignore[arg-type]


def test_folders_without_a_face_model_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    FaceModel.builtin().save(folder)
    weights_path, config_path = folder / "model.safetensors", folder / "config.json"
    tensors, config = load_file(weights_path), json.loads(config_path.read_text())
    damages = [
        {**tensors, "mean": torch.zeros(67, 3)},
        {**tensors, "mean": torch.full((68, 3), torch.nan)},
        {**tensors, "identity_std": torch.zeros(3)},
        {key: value for key, value in tensors.items() if key != "expression"},
    ]
    for damaged in damages:
        save_file(damaged, weights_path)
        with pytest.raises(InputError, match="copy"):
            FaceModel.load(folder)
    save_file(tensors, weights_path)
    for damaged_config in ({**config, "format": "other"}, {**config, "metres_per_unit": "x"}, {}):
        config_path.write_text(json.dumps(damaged_config))
        with pytest.raises(InputError, match="copy"):
            FaceModel.load(folder)


def test_directions_find_the_subspace_that_made_the_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 68, 3, generator=generator)
    truth = torch.stack([raw[0] + mirror(raw[0]), raw[1] - mirror(raw[1])])
    coefficients = torch.randn(400, 2, generator=generator) * torch.tensor([3.0, 1.0])
    samples = torch.einsum("nk,kpc->npc", coefficients, truth)
    weights = torch.ones(400)
    basis, std = directions(samples, weights, 2)
    assert explained_variance(samples, weights, basis, torch.ones(3)) == pytest.approx(1, abs=1e-5)
    wanted = coefficients.square().mean(dim=0).sqrt() * truth.flatten(1).norm(dim=1)
    torch.testing.assert_close(std, wanted, rtol=1e-3, atol=0)


def test_the_resting_shape_has_a_shut_mouth_and_open_eyes() -> None:
    mean = FaceModel.builtin().mean
    frames = mean.repeat(30, 1, 1)
    opening = torch.linspace(0, 0.3, 30)
    frames[:, 65:68, 1] -= opening[:, None]
    frames[:3, [37, 38, 43, 44], 1] = frames[:3, [41, 40, 47, 46], 1]  # a blink while the mouth is shut
    rest = resting_shape(frames)
    assert torch.equal(rest[[37, 38, 43, 44]], mean[[37, 38, 43, 44]])
    assert (mean[66, 1] - rest[66, 1]) < 0.1


def test_a_model_fitted_to_made_up_tracks_explains_made_up_faces(tmp_path: Path) -> None:
    """The whole command on invented people: faces of the built-in model, posed at random, written as tracks."""
    truth, generator = FaceModel.builtin(), torch.Generator().manual_seed(0)

    def clip(n_frames: int = 12) -> torch.Tensor:
        identity = truth.identity_std[:4] * torch.randn(4, generator=generator)
        expression = truth.expression_std[:4] * torch.randn(n_frames, 4, generator=generator)
        person = truth.mean + torch.einsum("k,kpc->pc", identity, truth.identity[:4])
        shapes = person + torch.einsum("te,epc->tpc", expression, truth.expression[:4])
        angles = 0.15 * torch.randn(n_frames, 3, generator=generator)
        pose = Pose(torch.full((n_frames,), 80.0), from_euler_rad(angles), torch.full((n_frames, 2), 128.0))
        return flip_image(pose.project(shapes), 256)

    (tmp_path / "tracks").mkdir()
    rows = [{"clip_id": f"c{i}", "split": "train", "synthetic": "no", "person": f"p{i}"} for i in range(30)]
    for row in rows:
        track = clip().numpy()
        left, right = track[:, 36:42].mean(axis=1), track[:, 42:48].mean(axis=1)
        np.savez(
            tmp_path / "tracks" / f"{row['clip_id']}.npz",
            landmarks=track,
            valid=np.ones(len(track), bool),
            iris=np.stack([left, right], axis=1),
        )
    with (tmp_path / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "portraits.csv").write_text("name,split,kind\na,train,photo\n")
    np.savez(
        tmp_path / "portraits_landmarks.npz", names=np.array(["a"]), landmarks=clip(1).numpy(), valid=np.array([True])
    )
    model = fit_face_model(tmp_path, n_identity=6, n_expression=6)
    points = clip(40)
    lm3d, _ = frontalise(points, 256, model)
    moves = lm3d - lm3d.mean(dim=0)
    assert explained_variance(moves, torch.ones(40), model.expression, torch.ones(3)) > 0.9
    eyes = model.mean[list(tables.LEFT_EYE)].mean(dim=0), model.mean[list(tables.RIGHT_EYE)].mean(dim=0)
    assert (eyes[0] - eyes[1]).norm() * model.metres_per_unit == pytest.approx(0.063, rel=0.03)


def test_fitting_without_data_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.csv"):
        fit_face_model(tmp_path, 2, 2)
