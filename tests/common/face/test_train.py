"""Training of the finder and the landmark network: what the batches hold, the losses, and resuming a run."""

import argparse
import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from common import weights
from common.errors import InputError
from common.face import train
from common.face.data import FRAME_PX, FaceSet
from common.face.model import MIRROR, FaceModel
from common.face.nets import Finder, FinderConfig, LandmarkNet, LandmarkNetConfig
from common.media import VideoWriter, write_picture

DARK = 20
BACKGROUNDS = [np.full((64, 96, 3), DARK, np.uint8)]
FACE_PX = 100.0  # longer side of the toy faces


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def face_landmarks(centre: tuple[float, float] = (127.5, 127.5), opening_px: float = 0.0) -> np.ndarray:
    """The mean face as image landmarks [68, 3], `FACE_PX` large; the lower lip lies `opening_px` lower."""
    points = FaceModel.builtin().mean.numpy() * np.array([1, -1, -1])  # y down, z negative towards the camera
    low, high = points.min(0), points.max(0)
    points = (points - (low + high) / 2) * (FACE_PX / (high - low)[:2].max()) + (*centre, 0)
    points[[55, 56, 57, 58, 59, 65, 66, 67], 1] += opening_px
    return points.astype(np.float32)


def with_spots(points: np.ndarray, sigma_px: float = 5.0) -> np.ndarray:
    """uint8 [256, 256, 3]: dark, with a bright spot at each of points [P, 2 or 3]."""
    y, x = np.mgrid[:FRAME_PX, :FRAME_PX]
    light = np.zeros((FRAME_PX, FRAME_PX))
    for point in points:
        light = np.maximum(light, np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * sigma_px**2)))
    return np.repeat((DARK + (255 - DARK) * light).round().astype(np.uint8)[..., None], 3, axis=2)


def spotted_set(landmark: int, n: int = 6) -> FaceSet:
    """Faces at several places, each with one spot at one landmark."""
    landmarks = np.stack([face_landmarks((110 + 7 * k, 140 - 5 * k)) for k in range(n)])
    pictures = np.stack([with_spots(points[[landmark]]) for points in landmarks])
    return FaceSet(pictures, landmarks, np.tile(np.array([0, 0, FRAME_PX, FRAME_PX], np.float32), (n, 1)))


def disc_set(inside: tuple[float, float, float, float], n: int = 4) -> FaceSet:
    """Landmarks on a circle around a bright disc: turned as it may be, its box has one side and one centre."""
    landmarks, pictures = [], []
    y, x = np.mgrid[:FRAME_PX, :FRAME_PX]
    angle = np.arange(68) / 68 * 2 * np.pi
    for k in range(n):
        centre, radius = (124.0 + 2 * k, 130.0 - k), FACE_PX / 2
        circle = np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle), 0 * angle], axis=1)
        landmarks.append(circle.astype(np.float32))
        is_disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        pictures.append(np.repeat(np.where(is_disc, 255, DARK).astype(np.uint8)[..., None], 3, axis=2))
    return FaceSet(np.stack(pictures), np.stack(landmarks), np.tile(np.array(inside, np.float32), (n, 1)))


def bright_centroid(light: Tensor) -> tuple[Tensor, float]:
    """Grey picture [H, W] → centre (x, y) in pixel indices, and number, of the pixels brighter than half way."""
    y, x = torch.nonzero(light > (light.min() + light.max()) / 2, as_tuple=True)
    return torch.stack([x.float().mean(), y.float().mean()]), float(len(x))


# 1. Batches of the landmark network


@pytest.mark.parametrize("landmark", [8, 30, 36, 48])
def test_landmarks_mark_what_their_crops_show(landmark: int) -> None:
    faces, config = spotted_set(landmark), LandmarkNetConfig()
    batch = 64
    crops, points, is_face = train.landmark_batch(
        faces, faces, BACKGROUNDS, config, batch, Generator().manual_seed(landmark)
    )
    assert crops.shape == (batch, 3, 128, 128)
    assert points.shape == (batch, 68, 3)
    assert is_face.tolist() == [0.0] * 8 + [1.0] * 56
    assert crops.abs().max() <= 1

    light = F.avg_pool2d(crops.mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)[:, 0]  # noise averages out
    shown = torch.stack([bright_centroid(each)[0] for each in light[8:]])
    pixels = (points[8:, :, :2] + 1) / 2 * config.size_px - 0.5
    candidates = pixels[:, [landmark, MIRROR[landmark]]]  # in a mirrored crop the spot's landmark has the other number
    error = candidates - shown[:, None]
    distance, which = error.norm(dim=-1).min(1)
    # Rectangles of other crops are laid over 30 %, few of them over the spot or with another spot in them.
    hit = distance < 1.5
    assert hit.float().mean() > 0.85
    # Half a pixel of disagreement between crops and coordinates would show in the mean.
    assert error[torch.arange(len(which)), which][hit].mean(0).abs().max() < 0.25
    if MIRROR[landmark] != landmark:  # both kinds of crops are drawn, about as often
        assert 0.25 < which[hit].float().mean() < 0.75


def test_depth_is_scaled_like_the_plane_and_survives_mirroring() -> None:
    faces = spotted_set(30)
    _, points, _ = train.landmark_batch(faces, faces, BACKGROUNDS, LandmarkNetConfig(), 32, Generator().manual_seed(0))
    truth = torch.from_numpy(faces.landmarks[0])
    # Depths of nose and ear by the distance of the eye corners, which only turn in the plane.
    for near, far in ((30, 0), (30, 16)):
        expected = (truth[near, 2] - truth[far, 2]) / (truth[36, :2] - truth[45, :2]).norm()
        found = (points[:, near, 2] - points[:, far, 2]) / (points[:, 36, :2] - points[:, 45, :2]).norm(dim=-1)
        assert expected < -0.3  # the nose is nearer
        # The mean face is mirror-symmetric to about a percent.
        torch.testing.assert_close(found, expected.expand(32), atol=0.02, rtol=0)


# 2. Batches of the finder


def test_finder_targets_lie_where_the_faces_were_pasted() -> None:
    size_px, batch = FinderConfig().canvas_px, 24
    portraits, clips = disc_set((20, 10, 240, 250)), disc_set((0, 0, FRAME_PX, FRAME_PX))
    pictures, centres, sides = train.finder_batch(
        portraits, clips, BACKGROUNDS, size_px, batch, Generator().manual_seed(1)
    )
    n_faces = (sides > 0).sum(1)
    assert n_faces.tolist() == [4] * (batch // 4) + [0] * (batch // 6) + [1] * (batch - batch // 4 - batch // 6)

    n_seen = 0
    for k, slot in torch.nonzero(sides > 0).tolist():
        (x, y), side = centres[k, slot].tolist(), float(sides[k, slot])
        # Only what is near: out to 0.64 sides is the disc's own picture, and further on another face may begin.
        x0, y0, x1, y1 = (round(v) for v in (x - 0.64 * side, y - 0.64 * side, x + 0.64 * side, y + 0.64 * side))
        left, top, tile_px = 0, 0, size_px
        if n_faces[k] == 4:
            tile_px = size_px // 2
            left, top = slot % 2 * tile_px, slot // 2 * tile_px
        if x0 < left or y0 < top or x1 > left + tile_px or y1 > top + tile_px:
            continue  # cut by the edge of its picture
        n_seen += 1
        # The centre is in coordinates where pixel j covers j to j + 1.
        centroid, area = bright_centroid(pictures[k, :, y0:y1, x0:x1].mean(0))
        assert math.dist((centroid + 0.5 + torch.tensor([x0, y0])).tolist(), (x, y)) < 0.5 + 0.03 * side
        # Codecs' blur and the pixels at the rim: a pixel at either end.
        assert abs(2 * math.sqrt(area / math.pi) - side) < 2
    assert n_seen >= 15  # of 38: enough to say so


def test_the_same_seed_gives_the_same_batch() -> None:
    faces = disc_set((0, 0, FRAME_PX, FRAME_PX))
    for first, second in zip(
        train.finder_batch(faces, faces, BACKGROUNDS, 160, 12, Generator().manual_seed(5)),
        train.finder_batch(faces, faces, BACKGROUNDS, 160, 12, Generator().manual_seed(5)),
        strict=True,
    ):
        assert torch.equal(first, second)


# 3. Losses


def finder_answer(centres: Tensor, sides: Tensor, n_cells: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """What a perfect finder says, as `common.face.detect` reads it: the face's centre is (cell + ½ + offset)·8 px."""
    logits = torch.full((len(sides), n_cells, n_cells), -9.0)
    log_side = torch.zeros(len(sides), n_cells, n_cells)
    offset = torch.zeros(len(sides), 2, n_cells, n_cells)
    for k, slot in torch.nonzero(sides > 0).tolist():
        x, y = (int(v // 8) for v in centres[k, slot].tolist())  # the cell that it lies in
        logits[k, y, x] = 9.0
        log_side[k, y, x] = math.log(float(sides[k, slot]) / 8)
        offset[k, :, y, x] = centres[k, slot] / 8 - 0.5 - torch.tensor([x, y])
    return logits, log_side, offset


def test_finder_loss_prefers_the_right_answer() -> None:
    centres = torch.tensor([[[83.0, 61.0], [0.0, 0.0]], [[30.0, 121.0], [111.0, 37.0]], [[0.0, 0.0], [0.0, 0.0]]])
    sides = torch.tensor([[70.0, 0.0], [25.0, 14.0], [0.0, 0.0]])
    right = finder_answer(centres, sides)
    # Wrong in each way: nothing seen but a face where there is none; sizes by a factor of 1.6; half a cell aside.
    missed = right[0].roll((5, 5), (1, 2))
    wrong = (missed, right[1] + math.log(1.6), right[2] + 0.5)
    answers = [[part.clone().requires_grad_() for part in answer] for answer in (right, wrong)]
    right_losses, wrong_losses = (train.finder_loss(a, b, c, centres, sides) for a, b, c in answers)
    for name in ("heat", "size", "offset"):
        assert float(wrong_losses[name].detach()) > 3 * float(right_losses[name].detach()) + 0.1, name
    assert float(right_losses["size"].detach()) < 1e-5
    assert float(right_losses["offset"].detach()) < 1e-5
    for losses, answer in zip((right_losses, wrong_losses), answers, strict=True):
        torch.stack(list(losses.values())).sum().backward()
        assert all(part.grad is not None and part.grad.isfinite().all() for part in answer)


def test_finder_loss_is_finite_without_any_face() -> None:
    answer = [torch.zeros(2, 20, 20), torch.zeros(2, 20, 20), torch.zeros(2, 2, 20, 20)]
    for part in answer:
        part.requires_grad_()
    losses = train.finder_loss(answer[0], answer[1], answer[2], torch.zeros(2, 4, 2), torch.zeros(2, 4))
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    assert all(part.grad is None or part.grad.isfinite().all() for part in answer)


def test_landmark_loss_prefers_the_right_answer() -> None:
    points = torch.from_numpy(face_landmarks()).repeat(4, 1, 1) / 100
    is_face = torch.tensor([0.0, 1.0, 1.0, 1.0])
    wrong_points = points.clone()
    wrong_points[:, 48:, 1] *= 1.1
    wrong_points[0] = 0
    right = (points.clone().requires_grad_(), (is_face * 2 - 1).mul(6).requires_grad_())
    wrong = (wrong_points.requires_grad_(), (1 - is_face * 2).mul(6).requires_grad_())
    right_losses = train.landmark_loss(*right, points, is_face)
    wrong_losses = train.landmark_loss(*wrong, points, is_face)
    assert set(right_losses) == {"points", "openings", "is_face"}
    for name in right_losses:
        assert float(wrong_losses[name].detach()) > 3 * float(right_losses[name].detach()) + 1e-3, name
    for losses, (points_pred, logit) in ((right_losses, right), (wrong_losses, wrong)):
        torch.stack(list(losses.values())).sum().backward()
        assert points_pred.grad is not None
        assert logit.grad is not None
        assert points_pred.grad.isfinite().all()
        assert logit.grad.isfinite().all()
        assert (points_pred.grad[0] == 0).all()  # where there is no face, no point is asked for


# 4. Pieces of the loop


@pytest.mark.parametrize(("first", "end"), [(0, 5), (3, 4), (7, 12), (4, 4), (6, 2)])
def test_ahead_yields_every_step_with_its_own_batch(first: int, end: int) -> None:
    made = []

    def make(step: int) -> train.Batch:
        made.append(step)
        return (torch.tensor(step), torch.tensor(step), torch.tensor(step))

    seen = [(step, int(batch[0])) for step, batch in train._ahead(make, first, end)]
    assert seen == [(step, step) for step in range(first, end)]
    assert made == list(range(first, end))  # nothing made that isn't used


def test_learning_rate_warms_up_and_ends_at_a_hundredth() -> None:
    n_steps, peak = 6000, 2e-3
    rates = [train.learning_rate(step, n_steps, peak) for step in range(n_steps + 1)]
    assert rates[0] == pytest.approx(peak / 200)
    assert rates[:199] == sorted(rates[:199])
    assert rates[199:] == sorted(rates[199:], reverse=True)
    assert max(rates) == pytest.approx(peak, rel=0.01)  # the cosine has hardly begun
    assert rates[n_steps] == pytest.approx(peak / 100)
    assert rates[n_steps // 2] == pytest.approx(peak * (1 + 0.01) / 2)


def test_the_average_tends_to_the_model_and_copies_counters() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    average, model = network(), network()
    model.state_dict()["1.num_batches_tracked"].fill_(17)
    model.state_dict()["1.running_mean"].fill_(3.0)

    def distance() -> float:
        pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs if a.is_floating_point())

    before = distance()
    train.update_average(average, model, 0)
    assert distance() == pytest.approx(before / 10, rel=1e-4)  # warmed up: a tenth of the start is left at step 0
    assert int(average.state_dict()["1.num_batches_tracked"]) == 17
    late = distance()
    train.update_average(average, model, 1_000_000)
    assert distance() == pytest.approx(0.999 * late, rel=1e-3)
    for step in range(30):
        train.update_average(average, model, step)
    assert distance() < 1e-3 * before


# 5. Whole runs


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the smallest kind: three clips of two people, three portraits, all of them spots on black."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "tracks").mkdir()
    (folder / "portraits").mkdir()
    (folder / "clips").mkdir()
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "person", "split", "kind", "overlay"])
        writer.writerow(["overlaid", "ann", "train", "talking", "yes"])  # to be skipped: there are no files for it
        for clip_id, person, split in (("a", "ann", "train"), ("b", "ann", "train"), ("c", "bea", "val")):
            writer.writerow([clip_id, person, split, "talking", ""])
            landmarks = np.stack([face_landmarks((120 + k, 125), opening_px=3 * (k % 4)) for k in range(12)])
            with VideoWriter(folder / "clips" / f"{clip_id}.mp4", FRAME_PX, FRAME_PX) as video:
                for points in landmarks:
                    video.write(with_spots(points[::4]))
            valid = np.arange(12) != 5
            np.savez(folder / "tracks" / f"{clip_id}.npz", landmarks=landmarks.astype(np.float16), valid=valid)
    names = ["p0", "p1", "p2"]
    (folder / "portraits.csv").write_text("name,split\n" + "".join(f"{name},train\n" for name in names))
    points = face_landmarks((100, 90))
    for name in names:
        write_picture(folder / "portraits" / f"{name}.jpg", with_spots(points))
    np.savez(
        folder / "portraits_landmarks.npz", names=np.array(names), landmarks=np.stack([points] * 3), valid=np.ones(3)
    )
    return folder


def run(what: str, n_steps: int, data_dir: Path, folder: Path) -> None:
    arguments = {"what": what, "steps": n_steps, "batch": 12, "lr": 2e-3, "seed": 3, "backgrounds": None}
    train.train(argparse.Namespace(**arguments, data=data_dir, out=folder / "out", run=folder / "run"))


def flat(state: object) -> dict[str, Tensor]:
    """All tensors of a nested checkpoint, by path."""
    if isinstance(state, Tensor):
        return {"": state}
    if isinstance(state, dict):
        return {f"{key}/{path}": t for key, value in state.items() for path, t in flat(value).items()}
    return {}


def check_saved(model: nn.Module, what: str, checkpoint: dict[str, Tensor], out: Path) -> None:
    """What training saved loads into a fresh model and is the average of the checkpoint, in half precision."""
    state, config = weights.from_pretrained(out, model)
    assert config["type"] == what
    for key, value in weights.load_into(model, state, out).state_dict().items():
        torch.testing.assert_close(value, checkpoint[f"average/{key}/"], atol=1e-6, rtol=1e-3)


# A run of the landmark network begins with 512 crops for their mean: four runs take longer than the rest of this file.
@pytest.mark.parametrize("what", ["finder", pytest.param("landmarks", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_one_without_a_break(what: str, data_dir: Path, tmp_path: Path) -> None:
    # One step: the only length at which the learning rate so far doesn't depend on the whole run's.
    run(what, 1, data_dir, tmp_path / "broken")
    after_one = flat(weights.read_checkpoint(tmp_path / "broken" / "run" / "state.pt"))
    run(what, 3, data_dir, tmp_path / "broken")
    run(what, 3, data_dir, tmp_path / "straight")
    broken, straight = (weights.read_checkpoint(tmp_path / n / "run" / "state.pt") for n in ("broken", "straight"))
    assert broken["step"] == straight["step"] == 3
    broken, straight = flat(broken), flat(straight)
    assert broken.keys() == straight.keys()
    assert {key.split("/")[0] for key in broken} == {"model", "average", "optimizer"}
    assert all(torch.equal(broken[key], straight[key]) for key in broken)
    # The steps did something, and what they left is a number.
    assert any(not torch.equal(after_one[key], broken[key]) for key in broken if key.startswith("model/"))
    assert all(value.isfinite().all() for value in broken.values())

    model: nn.Module = Finder(FinderConfig()) if what == "finder" else LandmarkNet(LandmarkNetConfig())
    check_saved(model, what, straight, tmp_path / "broken" / "out")

    if isinstance(model, LandmarkNet):
        # It starts from the mean of its crops. All toy faces are the mean face, in squares of 1.6 sides; turns shrink
        # their mean by some percent, shifts (up to 0.3 of a half crop) average out over 448 of them.
        expected = torch.from_numpy(face_landmarks((0, 0))) / FACE_PX * 2 / model.config.margin
        torch.testing.assert_close(model.mean_points[:, :2], expected[:, :2], atol=0.08, rtol=0)

    saved = (tmp_path / "broken" / "run" / "state.pt").read_bytes()
    with pytest.raises(InputError, match=r"has done its 3 steps.*--steps"):
        run(what, 3, data_dir, tmp_path / "broken")
    assert (tmp_path / "broken" / "run" / "state.pt").read_bytes() == saved


def test_validation_of_landmarks_tells_a_still_mean_from_the_truth() -> None:
    faces, model = spotted_set(30), LandmarkNet(LandmarkNetConfig()).eval()
    # Untrained, the points' weights are zero: what it says is the mean it is given.
    nn.init.zeros_(model.points.bias)
    assert float(train.validate_landmarks(model, faces).split()[1]) > 30  # all points in the middle: far off
    model.mean_points.copy_(torch.from_numpy(face_landmarks((0, 0))) / FACE_PX * 2 / model.config.margin)
    # Crops are shifted by up to 0.04 of a side, 0.064 face sizes; the eyes' corners are some 0.65 apart.
    assert float(train.validate_landmarks(model, faces).split()[1]) < 12
