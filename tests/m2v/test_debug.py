"""Pictures of how a frame was made: they are there, they show what was made, and making them changes nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import InputError
from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.media import read_picture
from common.triplane import TriPlane
from m2v.debug import Debug, PlaneColours, flow_colours
from m2v.pipeline import MCVDM
from m2v.preview import WarpRenderer
from m2v.source import Dubbed, Still, as_picture
from m2v.watch import Made, Watch
from tests.m2v.tiny import SIDE_PX, autoencoder, denoiser, picture, talking

TOLD = {"reference", "landmarks", "flow", "warped", "visible", "inner", "region"}
BLENDED = {"shift_warped", "shift_still", "share", "mixed", "correction"}
Render = Callable[[Watch | None], Iterator[Tensor]]


@pytest.fixture(scope="module")
def source() -> Still:
    nobody = ReferencePicture.mean(FaceModel.builtin(), SIDE_PX)
    return Still(replace(nobody, picture=as_picture((picture() + 1) * 127.5)))


@pytest.fixture(scope="module")
def model() -> MCVDM:
    return MCVDM(autoencoder(by=0.02), denoiser(by=0.05), torch.device("cpu"))


def drawn(folder: Path, source: Still, landmarks: Tensor, render: Render, frame: int | None = None) -> list[Tensor]:
    """The frames; everything that was drawn lies in the folder."""
    watch = Debug(folder, source.landmarks[None], landmarks, frame, overwrite=False)
    frames = list(render(watch))
    assert watch.is_done
    return frames


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def test_mcvdm_is_drawn_and_its_frames_stay_as_they_are(tmp_path: Path, source: Still, model: MCVDM) -> None:
    landmarks = talking(20)
    frames = drawn(tmp_path, source, landmarks, lambda watch: model.render(source, landmarks, watch=watch), 17)
    for one, other in zip(frames, model.render(source, landmarks), strict=True):
        assert torch.equal(one, other)
    columns = ("mean", "step_1", "step_2")  # as many as the tiny denoiser takes
    made = {f"{column}_{row}" for column in columns for row in ("planes", "frame", "change")}
    assert names(tmp_path) == TOLD | BLENDED | made | {"frame"}
    for name in names(tmp_path):
        side = SIDE_PX + 16 * 8 if name.endswith("planes") else SIDE_PX
        assert read_picture(tmp_path / f"{name}.png").shape == (side, side, 3)
    for name in ("overview.jpg", "steps.jpg"):
        assert min(read_picture(tmp_path / name).shape[:2]) > 200
    page = (tmp_path / "index.html").read_text()
    assert all(f'src="{name}.png"' in page for name in names(tmp_path))
    # Frame 17 is in the second clip alone: nothing is faded into it.
    final = read_picture(tmp_path / "frame.png").astype(int)
    assert np.abs(final - as_picture(frames[17])).max() == 0
    assert np.array_equal(final, read_picture(tmp_path / "step_2_frame.png"))  # the last step's planes are the clip's
    mixed, added = (read_picture(tmp_path / f"{name}.png").astype(float) for name in ("mixed", "correction"))
    is_within = np.all([(each > 0) & (each < 255) for each in (mixed, added, final)], axis=0)
    assert is_within.mean() > 0.1
    assert np.abs(mixed + (added - 127.5) / 4 - final)[is_within].max() <= 1.5


def test_without_sampling_the_mean_is_all_there_is(tmp_path: Path, source: Still, model: MCVDM) -> None:
    landmarks = talking(3)
    drawn(tmp_path, source, landmarks, lambda watch: model.render(source, landmarks, n_steps=0, watch=watch))
    assert names(tmp_path) == TOLD | BLENDED | {"frame", "mean_planes", "mean_frame", "mean_change"}


def test_of_the_warp_what_there_is_is_drawn(tmp_path: Path, source: Still) -> None:
    landmarks = talking(20)
    renderer = WarpRenderer(source)
    frames = drawn(tmp_path, source, landmarks, lambda watch: renderer.render(landmarks, watch), 18)
    for one, other in zip(frames, renderer.render(landmarks), strict=True):
        assert torch.equal(one, other)
    assert names(tmp_path) == TOLD | {"frame"}
    assert np.array_equal(read_picture(tmp_path / "frame.png"), as_picture(frames[18]))


def test_every_frame_of_a_video_has_its_own_picture(tmp_path: Path, model: MCVDM) -> None:
    pictures = [as_picture((picture(seed=k) + 1) * 127.5) for k in range(6)]
    landmarks = talking(6)
    for name in ("mcvdm", "warp"):
        source = Dubbed(iter(pictures), landmarks)
        watch = Debug(tmp_path / name, landmarks, landmarks, 4, overwrite=False)
        list(
            model.render(source, landmarks, watch=watch)
            if name == "mcvdm"
            else WarpRenderer(source).render(landmarks, watch)
        )
        corner = read_picture(tmp_path / name / "reference.png")[:6, :6]  # no landmark lies there
        assert np.array_equal(corner, pictures[4][:6, :6])


def test_the_frame_with_the_widest_mouth_is_drawn_once(tmp_path: Path, source: Still) -> None:
    landmarks = talking(40)
    watch = Debug(tmp_path, source.landmarks[None], landmarks, None, overwrite=False)
    assert watch.frame % 4 == 3
    assert watch.wants(0, 16) and not watch.wants(16, 40)
    list(WarpRenderer(source).render(landmarks, watch))
    assert not watch.wants(0, 16)


def test_what_is_there_stays_unless_it_may_go(tmp_path: Path, source: Still) -> None:
    (tmp_path / "flow.png").write_text("mine")
    for overwrite in (False, True):
        watch = Debug(tmp_path, source.landmarks[None], talking(2), None, overwrite)
        rendering = WarpRenderer(source).render(talking(2), watch)
        if not overwrite:
            with pytest.raises(InputError, match="exists already"):
                list(rendering)
            assert (tmp_path / "flow.png").read_text() == "mine"
        else:
            list(rendering)
            assert read_picture(tmp_path / "flow.png").shape == (SIDE_PX, SIDE_PX, 3)


def test_the_denoiser_shows_every_step_and_ends_with_its_planes(source: Still, model: MCVDM) -> None:
    class Kept:
        made: Made

        def wants(self, first: int, last: int) -> bool:
            return first == 0

        def see(self, made: Made) -> None:
            self.made = made

    kept = Kept()
    list(model.render(source, talking(20), n_steps=3, guidance_scale=2.0, watch=kept))
    assert len(kept.made.steps) == 3 and kept.made.planes is not None
    assert torch.allclose(kept.made.steps[-1].pack(), kept.made.planes.pack(), atol=1e-5)
    assert not torch.allclose(kept.made.steps[0].pack(), kept.made.planes.pack(), atol=1e-2)


def test_colours_of_a_flow_say_where_it_points() -> None:
    flow = torch.zeros(2, 1, 5)
    flow[:, 0, 1:] = torch.tensor([[4.0, -4, 0, 2], [0, 0, 4, 0]])
    nothing, right, left, down, half = flow_colours(flow)[0].astype(int).tolist()
    assert nothing == [255] * 3 and right == [255, 0, 0]
    assert half == pytest.approx([255, 128, 128], abs=1)
    assert left[0] == 0 and left[1] > 150 and left[2] == 255  # green-blue
    assert down[0] == 255 and down[1] > 200 and down[2] == 0  # yellow
    assert (flow_colours(torch.zeros(2, 3, 3)) == 255).all()


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_colours_of_planes_are_grey_where_nothing_is_said_and_opposite_for_opposites(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((8, 8), (4, 8), (4, 8))
    planes = TriPlane(*(torch.randn(1, channels, *shape, generator=generator) for shape in shapes))
    colours = PlaneColours(planes)
    drawn_planes, opposite, nothing = (
        colours(each).astype(int) for each in (planes, planes.map(torch.neg), planes.map(torch.zeros_like))
    )
    assert drawn_planes.shape == ((8 + 4) * 8, (8 + 4) * 8, 3)
    box = np.ones(drawn_planes.shape[:2], bool)
    box[64:, 64:] = False  # the corner that belongs to no plane
    assert np.abs(nothing - 127.5)[box].max() <= 0.5
    assert np.abs(drawn_planes + opposite - 255)[box].max() <= 1
    assert drawn_planes[box].std() > 20
