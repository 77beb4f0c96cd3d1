"""FLAME: what its files hold, and a jaw that opens as the joint does."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from common.errors import InputError
from common.face.model import FaceModel
from common.face.published.flame import JAW_NAMES, N_EXPRESSION, N_IDENTITY, jaw_directions
from common.unpickle import load
from tests.common.face.published import writers

FACE = writers.made_up()
ARRAYS = writers.flame_arrays(FACE)


def skinned(arrays: dict[str, Any], jaw_rad: np.ndarray) -> np.ndarray:
    """FLAME's vertices [V, 3] with the jaw turned: pose correctives, then linear blend skinning (Loper et al. 2015)."""
    parents = [-1, 0, 1, 1, 1]
    rotations = [np.eye(3)] * 5
    rotations[2] = Rotation.from_rotvec(jaw_rad).as_matrix()
    joints = arrays["J_regressor"] @ arrays["v_template"]
    feature = np.concatenate([(rotation - np.eye(3)).reshape(9) for rotation in rotations[1:]])
    vertices = arrays["v_template"] + arrays["posedirs"] @ feature
    world: list[np.ndarray] = []
    for joint, parent in enumerate(parents):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    posed = np.zeros_like(vertices)
    for joint, transform in enumerate(world):
        moved = (vertices - joints[joint]) @ transform[:3, :3].T + transform[:3, 3]
        posed += arrays["weights"][:, joint : joint + 1] * moved
    return posed


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_linear_jaw_is_the_derivative_of_skinning(axis: int) -> None:
    directions = jaw_directions(
        *(ARRAYS[k] for k in ("v_template", "posedirs", "J_regressor", "kintree_table", "weights"))
    )
    step = 1e-5 * np.eye(3)[axis]
    derivative = (skinned(ARRAYS, step) - skinned(ARRAYS, -step)) / 2e-5
    np.testing.assert_allclose(directions[axis], derivative, atol=1e-8)


def test_the_linear_jaw_errs_by_second_order(tmp_path: Path) -> None:
    writers.write_deca_embedding(tmp_path, FACE)
    model = FaceModel.load(writers.write_flame(tmp_path / "flame.pkl", ARRAYS))
    assert model.expression_names[-3:] == JAW_NAMES
    assert (len(model.identity), len(model.expression)) == (N_IDENTITY, N_EXPRESSION + 3)
    errors = []
    for angle in (0.05, 0.1, 0.2):
        expression = torch.zeros(N_EXPRESSION + 3)
        expression[N_EXPRESSION] = angle
        truth = FACE.centred(skinned(ARRAYS, np.array([angle, 0, 0])))
        errors.append(np.abs(model.shape(expression=expression).numpy() - truth).max())
    assert 3.5 < errors[1] / errors[0] < 4.5 and 3.5 < errors[2] / errors[1] < 4.5


def test_a_turn_about_x_opens_the_mouth(tmp_path: Path) -> None:
    """The jaw alone carries what lies below the mouth here, without correctives, about a joint near the ears."""
    lower = np.zeros(len(FACE.mean), dtype=bool)
    lower[FACE.landmarks[[*range(3, 14), *range(55, 60), *range(65, 68)]]] = True
    weights = np.zeros((len(FACE.mean), 5))
    weights[np.arange(len(weights)), np.where(lower, 2, 1)] = 1
    regressor = np.zeros((5, len(FACE.mean)))
    regressor[:, FACE.landmarks[0]] = regressor[:, FACE.landmarks[16]] = 0.5
    arrays = {**ARRAYS, "weights": weights, "J_regressor": regressor, "posedirs": 0 * ARRAYS["posedirs"]}
    writers.write_deca_embedding(tmp_path, FACE)
    model = FaceModel.load(writers.write_flame(tmp_path / "flame.pkl", arrays)).at_landmarks()
    expression = torch.zeros(len(model.expression))
    expression[N_EXPRESSION] = 0.2
    moved = model.shape(expression=expression) - model.mean
    assert moved[8, 1] < -0.1 and moved[62].norm() == 0  # the chin falls a centimetre, the upper lip stays


def test_what_the_jaw_carries_turns_with_it() -> None:
    """An invented sixth joint below the jaw (a tongue, say) has no rotation of its own, but the jaw's."""
    kintree = np.array([[4294967295, 0, 1, 1, 1, 2], [0, 1, 2, 3, 4, 5]])
    weights = np.concatenate([ARRAYS["weights"], ARRAYS["weights"][:, 2:3]], axis=1)
    weights[:, 2] = 0
    regressor = np.concatenate([ARRAYS["J_regressor"], ARRAYS["J_regressor"][:1]])
    posedirs = np.concatenate([ARRAYS["posedirs"], ARRAYS["posedirs"][..., :9]], axis=2)
    carried = jaw_directions(ARRAYS["v_template"], posedirs, regressor, kintree, weights)
    directions = jaw_directions(
        *(ARRAYS[k] for k in ("v_template", "posedirs", "J_regressor", "kintree_table", "weights"))
    )
    np.testing.assert_allclose(carried, directions, atol=1e-12)


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("shapedirs", {"shapedirs": np.zeros((84, 3, 100))}),
        ("no posedirs", {"posedirs": None}),
        ("posedirs", {"posedirs": np.zeros((84, 3, 9))}),
        ("posedirs", {"posedirs": "text"}),
        ("weights", {"weights": np.full((84, 5), np.inf)}),
        ("joints", {"J_regressor": np.zeros((2, 84))}),
        ("triangles", {"f": FACE.triangles + 9}),
        ("whole", {"f": FACE.triangles + 0.5}),
        ("v_template", {"v_template": FACE.mean[:, :2]}),
        ("lie in triangles", {"f": FACE.triangles[:3]}),
        ("kintree_table", {"kintree_table": np.zeros(5)}),
    ],
)
def test_a_flame_that_does_not_fit_says_why(reason: str, changed: dict[str, Any], tmp_path: Path) -> None:
    writers.write_deca_embedding(tmp_path, FACE)
    arrays = {key: value for key, value in {**ARRAYS, **changed}.items() if value is not None}
    path = tmp_path / "flame.pkl"
    path.write_bytes(pickle.dumps(arrays))
    with pytest.raises(InputError, match=reason):
        FaceModel.load(path)


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("67 landmarks", {"full_lmk_faces_idx": np.zeros((1, 67), dtype=int)}),
        ("finite", {"full_lmk_bary_coords": np.full((1, 68, 3), np.nan)}),
        ("add up", {"full_lmk_bary_coords": np.full((1, 68, 3), 0.5)}),
        ("triangles", {"full_lmk_faces_idx": np.full((1, 68), -1)}),
        ("landmarks", {"full_lmk_faces_idx": None}),
    ],
)
def test_an_embedding_that_does_not_fit_says_why(reason: str, changed: dict[str, Any], tmp_path: Path) -> None:
    writers.write_deca_embedding(tmp_path, FACE, **changed)
    with pytest.raises(InputError, match=reason):
        FaceModel.load(writers.write_flame(tmp_path / "flame.pkl", ARRAYS, "2023"))


def test_a_sparse_matrix_is_read_whichever_way_it_is_packed(tmp_path: Path) -> None:
    writers.write_deca_embedding(tmp_path, FACE)
    path = tmp_path / "flame.pkl"
    by_columns = FaceModel.load(writers.write_flame(path, ARRAYS, "2023"))
    path.write_bytes(pickle.dumps({**ARRAYS, "J_regressor": csr_matrix(ARRAYS["J_regressor"])}))
    torch.testing.assert_close(FaceModel.load(path).expression, by_columns.expression)
    np.savez(
        tmp_path / "flame.npz", **{**ARRAYS, "J_regressor": np.array(csr_matrix(ARRAYS["J_regressor"]), dtype=object)}
    )
    torch.testing.assert_close(FaceModel.load(tmp_path / "flame.npz").expression, by_columns.expression)
    for name, values in (("indices", [-1] * 9), ("indices", [999] * 9), ("indptr", [0, 9, 3, 9, 9, 9])):
        matrix = csr_matrix((np.ones(9), list(range(9)), [0, 2, 3, 5, 7, 9]), shape=(5, 84))
        setattr(matrix, name, np.array(values))
        path.write_bytes(pickle.dumps({**ARRAYS, "J_regressor": matrix}))
        with pytest.raises(InputError, match="sparse"):
            FaceModel.load(path)


def test_code_in_a_flame_pickle_is_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    writers.write_deca_embedding(tmp_path, FACE)
    path = tmp_path / "flame.pkl"
    for key in ("v_template", "bs_type"):  # where an array is expected, and where nobody looks
        path.write_bytes(pickle.dumps({**ARRAYS, key: Hostile()}))
        try:
            FaceModel.load(path)
        except InputError as error:
            assert "v_template" in str(error)
    np.save(tmp_path / "landmark_embedding.npy", np.array({"full_lmk_faces_idx": Hostile()}, dtype=object), True)
    with pytest.raises(InputError, match="flame"):
        FaceModel.load(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(path.read_bytes())  # the test is a test: an ordinary reader would have run it
    assert (tmp_path / "made").exists()


def test_the_writer_writes_what_python_reads() -> None:
    """Opcodes by hand are a pickle to Python's own reader too, where it needs no chumpy."""
    content = {"posedirs": ARRAYS["posedirs"], "f": ARRAYS["f"], "none": None, "pair": (1, True)}
    written = b"\x80\x02" + writers.as_python_2_wrote(content) + b"."
    ours, theirs = load(io.BytesIO(written)), pickle.loads(written, encoding="latin1")
    for key in ("posedirs", "f"):
        assert np.array_equal(ours[key], content[key]) and np.array_equal(theirs[key], content[key])
        assert ours[key].dtype == content[key].dtype
    assert ours["pair"] == theirs["pair"] == (1, True)
