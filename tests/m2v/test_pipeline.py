"""From a picture and landmarks to frames: as many as asked for, without seams, one clip at a time."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import InputError
from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.triplane import TriPlane
from m2v.autoencoder import save_autoencoder
from m2v.condition import Conditions
from m2v.denoiser import Denoiser, save_denoiser
from m2v.pipeline import MCVDM, N_FADE, N_FRAMES, clip_spans
from m2v.source import Still, as_picture
from tests.m2v.tiny import DENOISER, SIDE_PX, autoencoder, denoiser, face, picture, talking

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reference() -> ReferencePicture:
    nobody = ReferencePicture.mean(FaceModel.builtin(), SIDE_PX)
    shown = ((picture() + 1) * 127.5).round().byte().movedim(0, -1).numpy()
    return replace(nobody, picture=shown)


@pytest.fixture(scope="module")
def model() -> MCVDM:
    """As after training: no weights are zero."""
    return MCVDM(autoencoder(by=0.02), denoiser(by=0.05), CPU)


def frames(model: MCVDM, reference: ReferencePicture, landmarks: Tensor, seed: int = 0, n_steps: int = 1) -> np.ndarray:
    return np.stack([as_picture(frame) for frame in model.render(Still(reference), landmarks, seed, n_steps)])


@given(n_frames=st.integers(1, 500))
@settings(deadline=None)
def test_clips_cover_all_frames_and_share_what_is_faded(n_frames: int) -> None:
    spans = clip_spans(n_frames)
    assert spans[0][0] == 0 and spans[-1][1] == n_frames
    assert all(0 < last - first <= N_FRAMES for first, last in spans)
    for (_, last), (first, end) in pairwise(spans):
        assert last - first == N_FADE and end - first > N_FADE


@pytest.mark.parametrize("n_frames", [1, 15, 16, 17, 29, 40])
def test_as_many_frames_as_landmarks(model: MCVDM, reference: ReferencePicture, n_frames: int) -> None:
    rendered = frames(model, reference, talking(n_frames), n_steps=0)
    assert rendered.shape == (n_frames, SIDE_PX, SIDE_PX, 3) and rendered.dtype == np.uint8


class Plain(MCVDM):
    """Clips are the warp as it is: what joining them does to it can be seen."""

    def clip(self, conditions: Conditions, planes: TriPlane) -> Tensor:
        return conditions.warped.movedim(1, 2)


def test_joining_clips_leaves_no_seam(reference: ReferencePicture) -> None:
    plain = Plain(autoencoder(), denoiser(), CPU)
    together = frames(plain, reference, talking(29))
    for k in (0, 11, 12, 15, 16, 25, 28):
        alone = frames(plain, reference, talking(29)[k : k + 1])[0]
        assert np.abs(together[k].astype(int) - alone).max() <= 1
    still = frames(plain, reference, reference.landmarks.expand(29, -1, -1))
    assert (still == still[0]).all()


class Numbered(Plain):
    """Clips of one grey each, lighter from clip to clip."""

    n_done = 0

    def clip(self, conditions: Conditions, planes: TriPlane) -> Tensor:
        self.n_done += 1
        return torch.full_like(conditions.warped.movedim(1, 2), -1 + 0.4 * self.n_done)


def test_clips_fade_into_each_other_in_even_steps(reference: ReferencePicture) -> None:
    greys = frames(Numbered(autoencoder(), denoiser(), CPU), reference, talking(29))[:, 0, 0, 0].astype(float)
    steps = np.diff(greys)
    assert greys[:12].std() == 0 and greys[16:24].std() == 0 and greys[28:].std() == 0
    assert np.abs(steps[11:16] - steps.sum() / 10).max() <= 1  # five steps from clip to clip, no jump
    assert (steps >= 0).all() and greys[-1] == round(1.2 * 127.5)


def test_frames_come_clip_by_clip(reference: ReferencePicture) -> None:
    model = Numbered(autoencoder(), denoiser(), CPU)
    rendering = model.render(Still(reference), talking(40))
    assert model.n_done == 0
    done = []
    for _ in rendering:
        done.append(model.n_done)
    assert done == [1] * 12 + [2] * 12 + [3] * 16  # the last clip waits for nobody


def test_the_same_seed_gives_the_same_frames_and_another_other_ones(model: MCVDM, reference: ReferencePicture) -> None:
    one = frames(model, reference, talking(18))
    assert (frames(model, reference, talking(18)) == one).all()
    assert (frames(model, reference, talking(18), seed=1) != one).any()
    regression = frames(model, reference, talking(18), n_steps=0)
    assert (frames(model, reference, talking(18), seed=1, n_steps=0) == regression).all()
    assert (one != regression).any()


def test_what_comes_later_changes_nothing_before(model: MCVDM, reference: ReferencePicture) -> None:
    """Up to the fade, and for as many landmarks as a clip sees."""
    short, long = (frames(model, reference, talking(n)) for n in (16, 30))
    assert (short[:12] == long[:12]).all()


def test_a_global_generator_is_neither_used_nor_touched(model: MCVDM, reference: ReferencePicture) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = frames(model, reference, talking(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert (frames(model, reference, talking(3)) == one).all()


def test_depth_of_landmarks_is_ignored(model: MCVDM, reference: ReferencePicture) -> None:
    flat = talking(2)
    deep = torch.cat([flat, torch.rand(2, 68, 1)], dim=-1)
    assert (frames(model, reference, deep) == frames(model, reference, flat)).all()


def test_untrained_networks_give_the_reference_for_landmarks_as_in_it(reference: ReferencePicture) -> None:
    model = MCVDM(autoencoder(), denoiser(), CPU)
    frame = frames(model, reference, reference.landmarks[None])[0].astype(int)
    outside = np.ones((SIDE_PX, SIDE_PX), bool)
    (left, top), (right, bottom) = (f(face()[48:68], dim=0).int().tolist() for f in (torch.amin, torch.amax))
    outside[top - 4 : bottom + 5, left - 4 : right + 5] = False
    assert np.abs(frame - reference.picture)[outside].max() <= 2


def test_values_beyond_the_range_are_cut_not_wrapped() -> None:
    values = torch.tensor([-300.0, 0.0, 127.5, 255.0, 256.0, 600.0]).view(1, 1, 6).expand(3, 2, 6)
    shown = as_picture(values)
    assert shown.shape == (2, 6, 3) and shown[0, :, 0].tolist() == [0, 0, 128, 255, 255, 255]


def test_weights_from_folders_must_belong_together(tmp_path: Path, model: MCVDM, reference: ReferencePicture) -> None:
    save_autoencoder(model.autoencoder, tmp_path / "a")
    save_denoiser(model.denoiser, tmp_path / "d")
    loaded = MCVDM.from_pretrained(tmp_path / "a", tmp_path / "d")
    change = frames(loaded, reference, talking(2)).astype(int) - frames(model, reference, talking(2))
    assert np.abs(change).mean() < 4
    save_denoiser(Denoiser(replace(DENOISER, plane_channels=6)), tmp_path / "e")
    with pytest.raises(InputError, match="planes of 6 channels"):
        MCVDM.from_pretrained(tmp_path / "a", tmp_path / "e")
