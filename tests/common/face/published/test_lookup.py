"""Published face models: every kind comes out as the face that was written, and everything else as one sentence."""

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.face.fit import fit
from common.face.model import FaceModel, describe, eye_distance, main
from common.face.published import lookup
from common.face.published.ict import read_obj, read_vertices
from common.unpickle import load_npy
from tests.common.face.published import writers

FACE = writers.made_up()
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ["bfm", "flame 2020", "flame 2023", "flame npz", "flame ringnet", "ict", "gnm"]


def write(kind: str, folder: Path) -> Path:
    """A model of that kind in the folder; the path by which it is loaded."""
    folder.mkdir(exist_ok=True)
    name, _, style = kind.partition(" ")
    if name == "bfm":
        return writers.write_bfm(folder / "BFM_model_front.mat", FACE)
    if name == "ict":
        return writers.write_ict(folder, FACE)
    if name == "gnm":
        return writers.write_gnm(folder, FACE)
    if style == "ringnet":
        writers.write_ringnet_embedding(folder, FACE)
        return writers.write_flame(folder / "generic_model.pkl", writers.flame_arrays(FACE))
    writers.write_deca_embedding(folder, FACE)
    path = folder / ("flame.npz" if style == "npz" else "flame.pkl")
    return writers.write_flame(path, writers.flame_arrays(FACE), style)


def refusal(name_or_path: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        FaceModel.load(name_or_path)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_out_as_the_face_that_was_written(kind: str, tmp_path: Path) -> None:
    model = FaceModel.load(write(kind, tmp_path))
    n_identity, n_expression = len(FACE.identity), len(FACE.expression)
    assert (model.name, model.convention, model.metres_per_unit) == (kind.split()[0], "ibug68_3d", 0.1)
    # Zero coefficients are the mean face, in the built-in model's units, about its origin: a hundredth of a millimetre.
    torch.testing.assert_close(model.shape(), torch.tensor(FACE.centred(FACE.mean)).float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        model.landmarks(model.mean), FaceModel.builtin().mean, atol=1e-3 if kind == "gnm" else 1e-4, rtol=0
    )
    # Coefficients are those of the file: eq. 1 in metres is eq. 1 here.
    identity, expression = torch.zeros(len(model.identity)), torch.zeros(len(model.expression))
    identity[:n_identity], expression[:n_expression] = torch.randn(n_identity), torch.randn(n_expression)
    wanted = FACE.mean + np.einsum("k,kvc->vc", identity[:n_identity].numpy(), FACE.identity)
    wanted = wanted + np.einsum("e,evc->vc", expression[:n_expression].numpy(), FACE.expression)
    torch.testing.assert_close(
        model.shape(identity, expression), torch.tensor(FACE.centred(wanted)).float(), atol=2e-4, rtol=0
    )
    assert "chumpy" not in sys.modules


@pytest.mark.parametrize("kind", KINDS)
def test_triangles_look_outwards_whichever_way_the_file_has_them(kind: str, tmp_path: Path) -> None:
    model = FaceModel.load(write(kind, tmp_path))
    assert model.triangles is not None and model.triangles.dtype == torch.int64
    corners = model.mean[model.triangles]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 2] > 0).all()  # the made-up face is a relief
    area = normals[:, 2].sum()
    if kind == "bfm":
        turned = FACE.triangles[:, [0, 2, 1]] + 1
        again = FaceModel.load(writers.write_bfm(tmp_path / "BFM_model_front.mat", FACE, tri=turned))
        assert again.triangles is not None
        assert {tuple(sorted(t)) for t in again.triangles.tolist()} == {
            tuple(sorted(t)) for t in model.triangles.tolist()
        }
        corners = again.mean[again.triangles]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        torch.testing.assert_close(normals[:, 2].sum(), area)


@pytest.mark.parametrize("kind", ["bfm", "flame 2023", "ict", "gnm"])
def test_the_landmark_model_has_the_same_coefficients(kind: str, tmp_path: Path) -> None:
    model = FaceModel.load(write(kind, tmp_path))
    small = model.at_landmarks()
    identity, expression = torch.randn(4, len(model.identity)), torch.randn(4, len(model.expression))
    whole = model.landmarks(model.shape(identity, expression))
    torch.testing.assert_close(small.shape(identity, expression), whole, atol=1e-5, rtol=0)
    assert small.triangles is None and small.at_landmarks() is small
    assert 0.55 < eye_distance(small.mean) < 0.7
    assert small.expression_names == model.expression_names


@pytest.mark.parametrize("kind", ["bfm", "ict"])
def test_a_published_model_can_be_fitted(kind: str, tmp_path: Path) -> None:
    model = FaceModel.load(write(kind, tmp_path))
    seen = 100 * model.landmarks(model.mean) * torch.tensor([1.0, -1.0, -1.0]) + 128
    assert fit(model, seen.repeat(3, 1, 1), 256).residual_px.max() < 0.1


def test_names_are_looked_for_in_face_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "FACE_MODELS_DIR", tmp_path)
    for kind in ("bfm", "flame 2023", "ict", "gnm"):
        name = kind.split()[0]
        sentence = refusal(name)
        assert str(tmp_path / name) in sentence and "put it there" in sentence
        write(kind, tmp_path / name)
        assert FaceModel.load(name).name == name
        if name != "flame":
            assert FaceModel.load(tmp_path / name).name == name
    (tmp_path / "flame" / "other.pkl").write_bytes(b"")
    assert "flame.pkl and other.pkl" in refusal("flame")
    assert lookup.find("small/face_model") is None


def test_icts_repository_is_as_good_as_its_folder(tmp_path: Path) -> None:
    writers.write_ict(tmp_path / "FaceXModel", FACE)
    assert FaceModel.load(tmp_path).expression_names == tuple(writers.ICT_NAMES)


def test_every_missing_file_is_named_with_its_source_and_its_terms(tmp_path: Path) -> None:
    bfm = refusal(tmp_path / "BFM_model_front.mat")
    assert all(word in bfm for word in ("BFM_model_front.mat", "faces.dmi.unibas.ch", "research", "load_mats.py"))
    flame = refusal(tmp_path / "generic_model.pkl")
    assert all(word in flame for word in ("generic_model.pkl", "flame.is.tue.mpg.de", "CC BY 4.0", "register"))
    path = writers.write_flame(tmp_path / "flame.pkl", writers.flame_arrays(FACE), "2023")
    assert "landmark_embedding.npy" in (embedding := refusal(path)) and "yfeng95/DECA" in embedding
    writers.write_ringnet_embedding(tmp_path, FACE)
    (tmp_path / "flame_dynamic_embedding.npy").unlink()
    assert "flame_dynamic_embedding.npy is missing" in refusal(path)
    gnm = writers.write_gnm(tmp_path, FACE)
    (tmp_path / "head_sparse_68.txt").unlink()
    assert all(word in refusal(gnm) for word in ("head_sparse_68.txt is missing", "google/GNM", "Apache 2.0"))
    gnm.unlink()
    assert "gnm_head.npz is missing" in refusal(gnm)
    folder = writers.write_ict(tmp_path / "ict", FACE)
    for name in ("jawOpen.obj", "identity000.obj", "generic_neutral_mesh.obj"):
        (folder / name).unlink()
        sentence = refusal(folder)
        assert f"{name} is missing" in sentence and "ICT-VGL/ICT-FaceKit (MIT" in sentence


def not_a_number(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(values.size).reshape(values.shape) == 5, np.nan, values)


BFM_DAMAGES: list[tuple[str, dict[str, object]]] = [
    ("no tri", {"tri": None}),
    ("triangles", {"tri": FACE.triangles}),  # counted from 0
    ("triangles", {"tri": FACE.triangles + 2}),
    ("67", {"keypoints": FACE.landmarks[:67] + 1}),
    ("meanshape", {"meanshape": np.zeros((1, 4))}),
    ("idBase", {"idBase": np.zeros((9, 2))}),
    ("exBase", {"exBase": np.array(["no", "numbers"])}),
    ("finite", {"meanshape": not_a_number(FACE.mean.reshape(1, -1))}),
    ("not a face", {"keypoints": (FACE.landmarks + 1)[::-1]}),
    ("638 mm", {"meanshape": FACE.mean.reshape(1, -1) * 100}),  # centimetres
]


@pytest.mark.parametrize(("reason", "changed"), BFM_DAMAGES)
def test_a_basel_model_that_does_not_fit_says_why(reason: str, changed: dict[str, object], tmp_path: Path) -> None:
    sentence = refusal(writers.write_bfm(tmp_path / "BFM_model_front.mat", FACE, **changed))
    assert reason in sentence and "BFM_model_front.mat" in sentence


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("no expression_basis", {"expression_basis": None}),
        ("vertices", {"template_vertex_positions": np.zeros((0, 3))}),
        ("not numbers", {"triangles": np.array([["a", "b", "c"]])}),
        ("expression_names", {"expression_names": np.array(["a"])}),
        ("identity", {"vertex_identity_basis": np.zeros((2, 7, 3))}),
        ("triangles", {"triangles": np.array([[0.5, 1, 2]])}),
        ("vertices", {"template_vertex_positions": FACE.mean[:30]}),
    ],
)
def test_a_gnm_head_that_does_not_fit_says_why(reason: str, changed: dict[str, object], tmp_path: Path) -> None:
    assert reason in refusal(writers.write_gnm(tmp_path, FACE, **changed))


def test_gnms_jaw_line_is_put_in_order_and_left_where_it_is(tmp_path: Path) -> None:
    path = writers.write_gnm(tmp_path, FACE)
    published = FaceModel.load(path)
    lines = (tmp_path / "head_sparse_68.txt").read_text().splitlines()
    lines[2:7] = lines[2:7][::-1]  # a later version that has them in order
    (tmp_path / "head_sparse_68.txt").write_text("\n".join(lines))
    mended = FaceModel.load(path)
    assert published.landmark_vertices is not None and mended.landmark_vertices is not None
    assert torch.equal(published.landmark_vertices, mended.landmark_vertices)
    assert published.landmark_vertices[:, 0].tolist() == FACE.landmarks.tolist()


@pytest.mark.parametrize(
    ("reason", "changed"),
    [
        ("expressions", {"expressions": ["../../etc/passwd"]}),
        ("expressions", {"expressions": "jawOpen"}),
        ("landmark", {"idx_to_landmark_verts": [1.5] * 68}),
        ("landmark", {"idx_to_landmark_verts": [0] * 67}),
        ("landmark", {"idx_to_landmark_verts": [10**6] * 68}),
        ("not a face", {"idx_to_landmark_verts": [0] * 68}),
    ],
)
def test_an_ict_folder_that_does_not_fit_says_why(reason: str, changed: dict[str, object], tmp_path: Path) -> None:
    assert reason in refusal(writers.write_ict(tmp_path / "ict", FACE, **changed))


def test_an_ict_shape_of_another_mesh_is_named(tmp_path: Path) -> None:
    folder = writers.write_ict(tmp_path / "ict", FACE)
    (folder / "identity003.obj").write_text("v 1 2 3\n")
    assert "identity003.obj has 1 vertices" in refusal(folder)


def test_obj_files_of_any_hand_are_read() -> None:
    content = b"# a comment\r\nv 0 0 0 1.0\r\nv  1 0 0 1.0\r\nvn 0 0 1\r\nv 1e0 1 0 1.0\r\nv\t0 1 0 1.0\r\n"
    content += b"f 1//1 2//1 3//1 4//1\r\nf -1 -4 -3\n"
    vertices, triangles = read_obj(content)
    assert vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3], [3, 0, 1]]
    for tail in (b"", b"\n", b"\r\nf 1 2 1\nv\t7 8 9", b"\nvt 1 2\n"):
        assert read_vertices(b"v 1 2 3\nv 4 5 6" + tail)[1:].tolist() == [[4, 5, 6], [7, 8, 9]][: 1 + (b"7" in tail)]
    for damaged in (b"", b"v 1 2\n", b"v 1 2 x\n", b"v 1 2 3\nf 1 1 2\n", b"v 1 2 3\nf 1 1\n", b"v 1 2 3\nf a b c\n"):
        with pytest.raises(ValueError):
            read_obj(damaged)


@FUZZ
@given(st.binary(max_size=200) | st.text(alphabet="vf 0123456789./-enai\n\r", max_size=200).map(str.encode))
def test_any_bytes_are_an_obj_or_a_value_error(content: bytes) -> None:
    for read in (read_vertices, read_obj):
        with suppress(ValueError):
            read(content)


@FUZZ
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x93NUMPY\x01\x00v\x00" + tail))
def test_any_bytes_are_an_npy_or_a_value_error(content: bytes) -> None:
    with suppress(ValueError):
        load_npy(content)


FILES: list[tuple[str, Callable[[Path], Path]]] = [
    ("bfm", lambda folder: folder / "BFM_model_front.mat"),
    ("flame 2020", lambda folder: folder / "flame.pkl"),
    ("flame npz", lambda folder: folder / "flame.npz"),
    ("flame npz", lambda folder: folder / "landmark_embedding.npy"),
    ("flame ringnet", lambda folder: folder / "flame_static_embedding.pkl"),
    ("ict", lambda folder: folder / "vertex_indices.json"),
    ("ict", lambda folder: folder / "jawOpen.obj"),
    ("gnm", lambda folder: folder / "gnm_head.npz"),
    ("gnm", lambda folder: folder / "head_sparse_68.txt"),
]


@pytest.mark.parametrize(("kind", "file"), FILES, ids=lambda value: value if isinstance(value, str) else "")
@FUZZ
@given(data=st.data())
def test_damaged_files_are_a_model_or_one_sentence(
    kind: str, file: Callable[[Path], Path], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / kind.replace(" ", "_")
    path = write(kind, folder)
    damaged = bytearray(file(folder).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):  # most damage where the structure is
        at = data.draw(st.integers(0, len(damaged) - 1) | st.integers(0, min(400, len(damaged) - 1)))
        damaged[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.none() | st.integers(0, len(damaged)))
    file(folder).write_bytes(bytes(damaged[:end]))
    try:
        model = FaceModel.load(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert model.shape().isfinite().all() and model.landmarks(model.mean).shape == (68, 3)


def test_info_says_what_a_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", str(write("ict", tmp_path))])
    text = capsys.readouterr().out
    assert "84 vertices" in text and "ibug68_3d" in text and "jawOpen" in text
    assert "63.8 mm apart" in text and "5 directions" in text
    assert "facemesh68" in describe(FaceModel.builtin())
