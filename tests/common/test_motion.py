"""Motion: posing, slicing, and a file format that survives round trips and refuses everything else in one sentence."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.face.pos import Pose
from common.face.rotations import from_euler_rad
from common.motion import Motion, Reference

FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_pose(shape: tuple[int, ...], generator: torch.Generator) -> Pose:
    angles = 0.4 * torch.randn(*shape, 3, generator=generator)
    return Pose(
        80 + 5 * torch.rand(shape, generator=generator),
        from_euler_rad(angles),
        128 + torch.randn(*shape, 2, generator=generator),
    )


def random_motion(n_frames: int = 7, seed: int = 0, with_reference: bool = True) -> Motion:
    generator = torch.Generator().manual_seed(seed)
    reference = Reference(0.1 * torch.randn(68, 3, generator=generator), random_pose((), generator))
    return Motion(
        landmarks=0.1 * torch.randn(n_frames, 68, 3, generator=generator),
        mean_landmarks=torch.randn(68, 3, generator=generator),
        pose=random_pose((n_frames,), generator),
        fps=30000 / 1001,
        image_size=(320, 256),
        provenance={"tool": "tests", "who": "Zoë"},
        reference=reference if with_reference else None,
    )


def arrays_of(motion: Motion, folder: Path) -> dict[str, np.ndarray]:
    motion.save(folder / "whole.npz", overwrite=True)
    with np.load(folder / "whole.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def test_posed_is_scaled_orthography_with_rows_counted_from_the_top() -> None:
    motion = random_motion()
    shape = (motion.mean_landmarks + motion.landmarks)[3]
    pose = motion.pose[3]
    u = pose.scale * shape @ pose.rotation[0] + pose.translation[0]
    v = pose.scale * shape @ pose.rotation[1] + pose.translation[1]
    depth = pose.scale * shape @ pose.rotation[2]
    torch.testing.assert_close(motion.posed()[3], torch.stack([u, 255 - v, -depth], dim=-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_saved_motion_comes_back_bit_for_bit(tmp_path: Path, with_reference: bool) -> None:
    motion = random_motion(with_reference=with_reference)
    motion.save(tmp_path / "m.npz")
    again = Motion.load(tmp_path / "m.npz")
    assert torch.equal(again.posed(), motion.posed())
    assert torch.equal(again.landmarks, motion.landmarks)
    assert torch.equal(again.rest.landmarks, motion.rest.landmarks)
    assert torch.equal(again.rest.pose.translation, motion.rest.pose.translation)
    assert (again.fps, again.image_size, again.provenance) == (
        30000 / 1001,
        (320, 256),
        {"tool": "tests", "who": "Zoë"},
    )
    assert (again.model, again.convention) == ("builtin", "facemesh68")
    assert (again.reference is None) == (not with_reference)


def test_the_file_holds_the_documented_arrays_and_no_pickles(tmp_path: Path) -> None:
    arrays = arrays_of(random_motion(5), tmp_path)
    shapes = {key: (array.dtype.kind, array.shape) for key, array in arrays.items()}
    assert shapes["landmarks"] == ("f", (5, 68, 3))
    assert shapes["mean_landmarks"] == ("f", (68, 3))
    assert (shapes["scale"], shapes["rotation"], shapes["translation"]) == (
        ("f", (5,)),
        ("f", (5, 3, 3)),
        ("f", (5, 2)),
    )
    assert shapes["fps"] == ("f", ()) and shapes["image_size"] == ("i", (2,))
    assert all(shapes[key] == ("U", ()) for key in ("model", "convention", "provenance"))


def test_an_existing_file_is_kept_unless_overwriting_was_asked_for(tmp_path: Path) -> None:
    random_motion(2).save(tmp_path / "m.npz")
    with pytest.raises(InputError, match=r"m\.npz exists"):
        random_motion(3).save(tmp_path / "m.npz")
    assert Motion.load(tmp_path / "m.npz").n_frames == 2
    random_motion(3).save(tmp_path / "m.npz", overwrite=True)
    assert Motion.load(tmp_path / "m.npz").n_frames == 3
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_a_slice_keeps_its_frames_and_the_reference_of_the_whole() -> None:
    motion = random_motion(with_reference=False)
    part = motion.slice(2, 5)
    assert part.n_frames == 3
    assert torch.equal(part.posed(), motion.posed()[2:5])
    assert torch.equal(part.rest.landmarks, motion.landmarks[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"landmarks": torch.zeros(0, 68, 3)}, "at least one frame"),
        ({"landmarks": torch.zeros(7, 67, 3)}, r"landmarks must have shape \[7, 68, 3\], got \[7, 67, 3\]"),
        ({"landmarks": torch.full((7, 68, 3), torch.nan)}, "landmarks holds numbers that are not finite"),
        ({"fps": 0.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"image_size": (0, 256)}, "image_size"),
    ],
)
def test_a_motion_that_does_not_fit_is_refused_in_a_sentence(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(random_motion(), **change)


def test_a_reflection_is_not_a_rotation() -> None:
    motion = random_motion()
    flipped = Pose(motion.pose.scale, motion.pose.rotation * torch.tensor([1.0, 1.0, -1.0]), motion.pose.translation)
    with pytest.raises(ValueError, match="rotation matrices"):
        replace(motion, pose=flipped)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Motion.load(path)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_not_there_or_not_ours_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere.npz")
    refused(tmp_path)
    for name, content in {"empty.npz": b"", "text.npz": b"landmarks", "zip.npz": b"PK\x05\x06" + bytes(18)}.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros(3))
    refused(tmp_path / "array.npy")


def test_a_pickled_array_is_refused_and_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "boom",))

    arrays = arrays_of(random_motion(), tmp_path)
    for key in ("landmarks", "provenance", "fps"):
        hostile: dict[str, Any] = {**arrays, key: np.array([Bomb()], object)}
        np.savez(tmp_path / "bomb.npz", **hostile)
        refused(tmp_path / "bomb.npz")
    assert not (tmp_path / "boom").exists()


def test_an_array_that_would_unpack_to_gigabytes_is_refused_before_it_is(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**10, 68, 3)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("landmarks.npy", header.getvalue())
    refused(tmp_path / "huge.npz")


@FUZZ
@given(data=st.data())
def test_arrays_of_any_other_shape_kind_or_content_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    arrays = arrays_of(random_motion(), tmp_path)
    key = data.draw(st.sampled_from(sorted(arrays)))
    way = data.draw(st.sampled_from(["missing", "shape", "nan", "text", "complex", "object", "bool"]))
    if way == "missing":
        del arrays[key]
    elif way == "shape":
        arrays[key] = np.stack([arrays[key]] * data.draw(st.integers(2, 4)))
    elif way == "nan" and arrays[key].dtype.kind == "f":
        values = arrays[key].copy()
        values.flat[data.draw(st.integers(0, values.size - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        arrays[key] = values
    elif way == "complex":
        arrays[key] = np.ones(arrays[key].shape, np.complex64)
    elif way == "object":
        arrays[key] = np.full(arrays[key].shape, None, object)
    elif way == "bool":
        arrays[key] = np.ones(arrays[key].shape, bool)
    else:
        arrays[key] = np.full(arrays[key].shape, "[1, 2]" if key == "provenance" else "x")
        if key in ("model", "convention"):  # any text is a name
            arrays[key] = np.array(b"bytes")
    np.savez(tmp_path / "bad.npz", **cast(dict[str, Any], arrays))
    refused(tmp_path / "bad.npz")


@FUZZ
@given(data=st.data())
def test_damaged_files_are_refused_or_read_whole(tmp_path: Path, data: st.DataObject) -> None:
    motion = random_motion()
    motion.save(tmp_path / "good.npz", overwrite=True)
    content = bytearray((tmp_path / "good.npz").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "bad.npz").write_bytes(content)
    try:
        again = Motion.load(tmp_path / "bad.npz")
    except InputError as error:
        assert "bad.npz" in str(error)
    else:  # the damage hit a byte that says nothing (a time stamp)
        assert torch.equal(again.posed(), motion.posed())


@pytest.mark.parametrize("fps", [23.976, 25.0, 29.97, 60.0])
def test_at_another_rate_the_same_movement_is_seen(fps: float) -> None:
    n_frames = 50
    frames = torch.arange(n_frames)
    landmarks = torch.sin(2 * torch.pi * 1.5 * (frames + 0.5) / 25)[:, None, None].expand(-1, 68, 3)
    pose = Pose(torch.ones(n_frames), torch.eye(3).repeat(n_frames, 1, 1), torch.zeros(n_frames, 2))
    motion = Motion(landmarks, torch.zeros(68, 3), pose, 25.0, (256, 256))
    wanted = round(motion.duration_s * fps)
    seen = motion.landmarks_at(fps, wanted)
    time_s = (torch.arange(wanted) + 0.5) / fps
    within = (time_s > 0.04) & (time_s < 1.96)  # ends are held, not continued
    assert (seen[:, 0, 0] - torch.sin(2 * torch.pi * 1.5 * time_s))[within].abs().max() < 0.01
    assert torch.equal(motion.landmarks_at(25.0, n_frames), motion.landmarks)


@pytest.mark.parametrize("n_frames", [1, 2, 3])
def test_a_few_frames_have_any_rate_too(n_frames: int) -> None:
    pose = Pose(torch.ones(n_frames), torch.eye(3).repeat(n_frames, 1, 1), torch.zeros(n_frames, 2))
    motion = Motion(torch.rand(n_frames, 68, 3), torch.zeros(68, 3), pose, 25.0, (256, 256))
    seen = motion.landmarks_at(60.0, 7)
    assert seen.shape == (7, 68, 3) and torch.allclose(seen[0], motion.landmarks[0], atol=1e-6)
