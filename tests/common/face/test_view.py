"""The fitted mesh over a video: in the right place, on the right frames, and everything else as it was."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from common.errors import InputError
from common.face import mesh, mesh_pytorch3d
from common.face.fit import frontalise
from common.face.model import CONVENTION, FaceModel
from common.face.view import (
    DRAWN,
    DRAWN_ALONE,
    GREY,
    Footage,
    choose_see,
    even,
    fit_to,
    main,
    meshes,
    overlays,
    read,
    triangles_of,
)
from common.media import GENERATED, VideoReader, VideoWriter, read_audio, read_picture, write_picture
from common.motion import Motion

PORTRAIT = Path(__file__).parents[3] / "examples" / "portrait.jpg"
MARGIN_PX = 20  # beyond the mesh no pixel may change; the video's coding blurs that by a macroblock


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """Odd sides: 301 wide, 261 high."""
    return np.asarray(Image.fromarray(read_picture(PORTRAIT)[:260, :300]).resize((301, 261)))


@pytest.fixture(scope="module")
def still(portrait: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Footage:
    path = tmp_path_factory.mktemp("still") / "a.png"
    write_picture(path, portrait)
    return read(path)


def subdivided(model: FaceModel, times: int) -> FaceModel:
    """The same surface in triangles of a quarter the size, again and again; directions are cut up as the mean is."""
    triangles = mesh.landmark_triangles(model.mean)
    parts = [model.mean[None], model.identity, model.expression]
    for _ in range(times):
        edges = torch.cat([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
        pairs, number = edges.sort(dim=1).values.unique(dim=0, return_inverse=True)
        ab, bc, ca = (parts[0].shape[1] + number).view(3, -1)
        a, b, c = triangles.unbind(1)
        parts = [torch.cat([each, each[:, pairs].mean(dim=2)], dim=1) for each in parts]
        fans = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
        triangles = torch.cat([torch.stack(fan, dim=1) for fan in fans])
    return replace(
        model,
        mean=parts[0][0],
        identity=parts[1],
        expression=parts[2],
        triangles=triangles,
        landmark_vertices=torch.arange(68)[:, None].expand(-1, 3).contiguous(),
        landmark_weights=torch.tensor([[1.0, 0, 0]]).repeat(68, 1),
        name="dense",
    )


def moving(still: Footage, portrait: np.ndarray, shifts: list[int], first: int, n_points: int) -> Footage:
    """The picture rolled to and fro; points for some of its frames."""
    frames = [np.roll(portrait, dx, axis=1) for dx in shifts]
    points = still.points + torch.tensor([[[float(dx), 0, 0]] for dx in shifts])
    return replace(still, frames=lambda: iter(frames), points=points[first : first + n_points], first=first)


def mask(points: Tensor, model: FaceModel, shape: tuple[int, ...]) -> np.ndarray:
    face, _, _ = mesh.rasterise(points, triangles_of(model), shape[0], shape[1])
    return (face >= 0).numpy()


def write_video(path: Path, frames: list[np.ndarray], fps: Fraction, comment: str = "", sound: bool = True) -> None:
    audio_path = path.with_suffix(".wav") if sound else None
    if audio_path:
        n = round(len(frames) / fps * 16000)
        soundfile.write(audio_path, 0.3 * np.sin(np.arange(n) * 2 * np.pi * 440 / 16000), 16000)
    height, width, _ = even(frames[0]).shape
    with VideoWriter(path, width, height, fps, audio_path, comment, description=comment) as writer:
        for frame in frames:
            writer.write(even(frame))


def test_the_mesh_lies_as_far_from_the_landmarks_as_the_fit_says(still: Footage, portrait: np.ndarray) -> None:
    footage = moving(still, portrait, [0, 5, -7, 30], first=0, n_points=4)
    model = FaceModel.builtin()
    fitted = fit_to(model, footage)
    drawn = torch.stack(list(meshes(model, fitted, footage.height)))
    distance = (drawn - footage.points)[..., :2].square().sum(dim=-1).mean(dim=-1).sqrt()
    assert torch.allclose(distance, fitted.residual_px, atol=1e-3)
    assert float(distance.max()) < 2.0
    nearer = drawn[..., 30, 2] < drawn[..., [0, 16], 2].amin(dim=-1)  # the nose's tip, before the ears
    assert nearer.all()


def test_only_pixels_of_the_mesh_change_and_only_where_there_is_a_face(still: Footage, portrait: np.ndarray) -> None:
    shifts = [0, 4, 8, 4, 0, -4]
    footage = moving(still, portrait, shifts, first=2, n_points=3)
    model = FaceModel.builtin()
    fitted = fit_to(model, footage)
    frames = list(footage.frames())
    drawn = list(overlays(footage, model, fitted, alpha=1.0))
    assert len(drawn) == len(shifts)
    for number in (0, 1, 5):
        assert np.array_equal(drawn[number], frames[number])
    for number, points in zip((2, 3, 4), meshes(model, fitted, footage.height), strict=True):
        covered = mask(points, model, portrait.shape)
        assert covered.sum() > 3000
        assert np.array_equal(drawn[number][~covered], frames[number][~covered])
        grey = drawn[number][covered]
        assert (np.ptp(grey, axis=1) == 0).all()
    for pair, frame, mixed in zip(overlays(footage, model, fitted, alpha=1.0, side_by_side=True), frames, drawn):  # noqa: B905
        assert np.array_equal(pair, np.concatenate([frame, mixed], axis=1))
    for frame, untouched in zip(frames, overlays(footage, model, fitted, alpha=0.0), strict=True):
        assert np.array_equal(frame, untouched)


def test_a_dense_model_of_the_same_surface_is_fitted_and_covers_the_same(still: Footage) -> None:
    coarse = FaceModel.builtin()
    dense = subdivided(coarse, 3)
    assert len(triangles_of(dense)) == 64 * len(triangles_of(coarse))
    one, other = fit_to(coarse, still), fit_to(dense, still)
    assert torch.allclose(one.identity, other.identity, atol=1e-4)
    assert torch.allclose(one.residual_px, other.residual_px, atol=1e-3)
    (points,), (many) = list(meshes(coarse, one, still.height)), list(meshes(dense, other, still.height))
    shape = (still.height, still.width)
    assert (mask(points, coarse, shape) != mask(many[0], dense, shape)).sum() <= 5  # rims, to 1/1024 px


def test_a_video_keeps_its_size_rate_sound_and_surroundings(portrait: np.ndarray, tmp_path: Path) -> None:
    frames = [np.roll(portrait, dx, axis=1) for dx in (0, 3, 6, 3, 0, -3)]
    fps = Fraction(30000, 1001)
    write_video(tmp_path / "a.mp4", frames, fps)
    main([str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "--alpha", "1"])
    with VideoReader(tmp_path / "a.mp4") as before, VideoReader(tmp_path / "b.mp4") as after:
        assert (after.width, after.height, after.fps) == (302, 262, fps)
        pairs = list(zip((f for _, f in before), (f for _, f in after), strict=True))
    assert len(pairs) == 6
    for old, new in pairs:
        changed = np.abs(old.astype(int) - new.astype(int)).max(axis=2) > 24
        rows, columns = np.nonzero(changed)
        assert 3000 < changed.sum() < 0.5 * changed.size
        assert np.ptp(rows) < 0.75 * 262 and np.ptp(columns) < 0.75 * 302  # the face, which fills so much
    sounds = [read_audio(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    n = min(len(sound) for sound in sounds)
    assert n > 0.18 * 16000 and float(np.corrcoef(sounds[0][:n], sounds[1][:n])[0, 1]) > 0.95
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.metadata["comment"] == container.metadata["description"] == DRAWN


def test_a_generated_video_stays_a_generated_one_with_a_mesh_over_it(portrait: np.ndarray, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [portrait] * 2, Fraction(25), GENERATED, sound=False)
    main([str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), "--side-by-side"])
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.metadata["comment"] == f"{DRAWN} Of those, their file says: {GENERATED}"
        assert not container.streams.audio
        assert (container.streams.video[0].width, container.streams.video[0].height) == (604, 262)


def test_a_picture_becomes_a_picture_or_a_video(portrait: np.ndarray, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", portrait)
    main([str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--shading", "normals"])
    drawn = read_picture(tmp_path / "b.png")
    assert drawn.shape == portrait.shape and 3000 < (drawn != portrait).any(axis=2).sum() < 0.5 * 301 * 261
    main([str(tmp_path / "a.png"), str(tmp_path / "b.mp4")])
    with VideoReader(tmp_path / "b.mp4") as video:
        assert (video.width, video.height) == (302, 262) and len(list(video)) == 1


def test_a_model_of_the_users_own_is_drawn(
    portrait: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = subdivided(FaceModel.builtin(), 2)
    dense.save(tmp_path / "dense")
    write_picture(tmp_path / "a.png", portrait)
    main([str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", str(tmp_path / "dense")])
    assert f"{len(dense.mean)} vertices and {len(triangles_of(dense))} triangles" in capsys.readouterr().out
    main([str(tmp_path / "a.png"), str(tmp_path / "c.png")])
    two = [read_picture(tmp_path / name).astype(int) for name in ("b.png", "c.png")]
    covered = [(each != portrait).any(axis=2) for each in two]
    assert (covered[0] != covered[1]).mean() < 1e-3  # the same surface, shaded in more detail
    assert np.abs(two[0] - two[1]).max() > 10


def test_a_motion_is_drawn_alone(still: Footage, portrait: np.ndarray, tmp_path: Path) -> None:
    footage = moving(still, portrait, [0, 10, 20], first=0, n_points=3)
    model = FaceModel.builtin()
    lm3d, pose = frontalise(footage.points, footage.height, model)
    size = (footage.width, footage.height)
    Motion(lm3d, model.mean, pose, 12.5, size, model.name, model.convention).save(tmp_path / "m.npz")
    main([str(tmp_path / "m.npz"), str(tmp_path / "b.mp4"), "--alpha", "1"])
    with VideoReader(tmp_path / "b.mp4") as video:
        assert (video.width, video.height, video.fps) == (302, 262, Fraction(25, 2))
        middles = [np.nonzero(np.abs(f.astype(int) - GREY).max(axis=2) > 24)[1].mean() for _, f in video]
    assert np.diff(middles).tolist() == pytest.approx([10, 10], abs=1.0)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.metadata["comment"] == DRAWN_ALONE


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none.mp4", "b.mp4"], "There is no video at"),
        (["none.png", "b.mp4"], "There is no picture at"),
        (["none.npz", "b.mp4"], "There is no motion file at"),
        (["empty.png", "b.mp4"], "no face was found"),
        (["empty.mp4", "b.mp4"], "no face was found"),
        (["empty.mp4", "b.avi"], "end in .mp4"),
        (["empty.mp4", "b.png"], "named as a picture"),
        (["empty.mp4", "empty.mp4", "--overwrite"], "another name"),
        (["empty.mp4", "empty.png"], "named as a picture"),
        (["empty.mp4", "b.mp4", "--alpha", "1.5"], "0 to 1"),
        (["empty.mp4", "b.mp4", "--alpha", "nan"], "0 to 1"),
        (["empty.mp4", "b.mp4", "--model", "no/such/model"], "no/such/model"),
        (["none.npz", "b.mp4", "--detector", "builtin"], "leave out --detector"),
        (["empty.mp4", "b.mp4", "--detector", "dlib"], "invalid choice"),
        (["empty.mp4"], "required"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence_and_no_file(arguments: list[str], reason: str, tmp_path: Path) -> None:
    empty = np.full((128, 128, 3), 60, np.uint8)
    write_picture(tmp_path / "empty.png", empty)
    write_video(tmp_path / "empty.mp4", [empty] * 2, Fraction(25), sound=False)
    names = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    paths = [str(tmp_path / each) if each.endswith((".mp4", ".png", ".npz", ".avi")) else each for each in arguments]
    with pytest.raises(InputError, match=reason.replace(".", r"\.")) as caught:
        main(paths)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == names


def test_a_model_without_a_surface_is_refused() -> None:
    dense = replace(subdivided(FaceModel.builtin(), 1), triangles=None)
    with pytest.raises(InputError, match="has no triangles"):
        triangles_of(dense)


def test_a_convention_without_a_mapping_is_refused(still: Footage) -> None:
    with pytest.raises(InputError, match="nobody"):
        fit_to(FaceModel.builtin(), replace(still, convention="nobody's"))
    assert still.convention == CONVENTION


def test_pytorch3d_is_used_where_it_can_be_and_makes_sense() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_see("own", 100, gpu) is mesh.see
    if mesh_pytorch3d.is_importable():
        assert choose_see("auto", 100, cpu) is choose_see("auto", 70_000, gpu) is mesh_pytorch3d.see
        assert choose_see("pytorch3d", 70_000, cpu) is mesh_pytorch3d.see
    else:
        assert choose_see("auto", 100, cpu) is choose_see("auto", 70_000, gpu) is mesh.see
        with pytest.raises(InputError, match="pytorch3d can't be imported"):
            choose_see("pytorch3d", 100, cpu)
    assert choose_see("auto", 70_000, cpu) is mesh.see
