"""What frames begin with: one picture, the nearest of several, or a video's own frames."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from m2v.condition import build
from m2v.source import Dubbed, Several, Still, as_tensor, difference, face_region
from tests.m2v.tiny import SIDE_PX, picture, talking


def reference(seed: int, landmarks: Tensor | None = None) -> ReferencePicture:
    nobody = ReferencePicture.mean(FaceModel.builtin(), SIDE_PX)
    shown = ((picture(SIDE_PX, seed) + 1) * 127.5).round().byte().movedim(0, -1).numpy()
    points = nobody.landmarks if landmarks is None else landmarks
    return replace(nobody, picture=shown, landmarks=points)


def opened(by_px: float) -> Tensor:
    points = ReferencePicture.mean(FaceModel.builtin(), SIDE_PX).landmarks.clone()
    points[[*range(5, 12), *range(55, 60), 65, 66, 67], 1] += by_px
    return points


def test_several_of_the_same_picture_are_that_picture() -> None:
    one = reference(1)
    targets = talking(4)
    alone, several = (source.conditions(0, targets) for source in (Still(one), Several([one, one, one])))
    for name in ("reference", "warped", "inner", "visible", "maps"):
        assert torch.equal(getattr(alone, name), getattr(several, name))


def test_the_face_comes_from_the_nearest_picture_and_the_rest_from_the_first() -> None:
    shut, wide = reference(1), reference(1, opened(8.0))
    source = Several([shut, wide])
    source.lends = [True, True]
    source.conditions(0, shut.landmarks[None, :, :2].repeat(4, 1, 1))
    assert source.chosen == 0
    targets = opened(8.0)[None, :, :2].repeat(4, 1, 1)
    loud, main = source.conditions(4, targets), Still(shut).conditions(4, targets)
    assert source.chosen == 1 and source.n_clips == [1, 1]
    face = face_region(targets, SIDE_PX, SIDE_PX)[0, 0]
    outside, inside = face < 0.001, face > 0.98
    assert outside.any() and inside.any()
    change = (loud.warped - main.warped).abs().amax(dim=1)
    assert change[:, outside].max() < 0.01 and change[:, inside].mean() > 0.05
    assert torch.equal(loud.reference, main.reference)


def test_a_face_in_another_light_lends_nothing() -> None:
    first = reference(1)
    darker = replace(first, picture=first.picture // 2)
    noise = np.random.default_rng(0).integers(-25, 26, first.picture.shape)
    grainy = replace(first, picture=(first.picture.astype(int) + noise).clip(0, 255).astype(np.uint8))
    assert difference(first, first) < 0.1 and difference(first, grainy) < 5
    source = Several([first, replace(darker, landmarks=opened(8.0)), grainy])
    assert source.lends == [True, False, True]
    source.conditions(0, opened(8.0)[None, :, :2].repeat(4, 1, 1))
    assert source.chosen != 1


def test_a_picture_is_kept_until_another_is_clearly_nearer() -> None:
    source = Several([reference(1), reference(2, opened(8.0))])
    source.lends = [True, True]
    between = opened(4.0)[None, :, :2]
    at_first = source.nearest(between)
    source.chosen = 1 - at_first
    nearly = [source.nearest(opened(4.0 + by)[None, :, :2]) for by in (-0.2, 0.0, 0.2)]
    assert nearly == [source.chosen] * 3


class Counted:
    """Crops of a video; how many were read."""

    def __init__(self, pictures: list[np.ndarray]) -> None:
        self.pictures, self.n_read = pictures, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for each in self.pictures:
            self.n_read += 1
            yield each


@pytest.mark.parametrize("n_frames", [1, 16, 40])
def test_every_frame_of_a_video_begins_with_itself(n_frames: int) -> None:
    pictures = [reference(k).picture for k in range(n_frames)]
    points = talking(n_frames)
    counted = Counted(pictures)
    source = Dubbed(iter(counted), points)
    for first in range(0, n_frames, 12):
        targets = points[first : first + 16] + 1.0
        targets = torch.cat([targets, targets[-1:].expand(16 - len(targets), -1, -1)])
        told = source.conditions(first, targets)
        assert told.reference.shape == (16, 3, SIDE_PX, SIDE_PX)
        for k in (0, 5, 15):
            frame = min(first + k, n_frames - 1)
            alone = build(as_tensor(pictures[frame]), points[frame], targets[k : k + 1])
            assert torch.equal(told.reference[k], as_tensor(pictures[frame]))
            assert (told.visible[k] - alone.visible[0]).abs().max() < 1e-4
            outside = told.inner[k] == 0  # the dark of the mouth is one for the clip
            assert ((told.warped[k] - alone.warped[0]).abs() * outside).max() < 1e-3
        assert counted.n_read == min(first + 16, n_frames) and len(source.held) <= 16
