"""What the tables of quality rest on: scenes, measures that know a perfect and a bad renderer, claims and verdicts."""

import math
from dataclasses import astuple, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Generator, Tensor

from a2m.data import Clip
from benchmarks import diffusion_ablation as ablation
from benchmarks import openings, renders
from benchmarks.renders import Quality, Scene
from common.face.framing import ReferencePicture
from common.face.model import LIP_STREAM, FaceModel, mouth_opening
from common.face.mouth import closed, opening_direction
from common.face.pos import Pose
from m2v.autoencoder import Autoencoder, AutoencoderConfig
from m2v.denoiser import Denoiser, DenoiserConfig
from m2v.pipeline import MCVDM, clip_spans
from tests.benchmarks.test_benchmarks import clip_of, spoken

SIZE = 96


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A drawn face of 96 pixels whose mouth opens and closes on a noisy background, nine frames long."""
    model = FaceModel.builtin()
    nobody = ReferencePicture.mean(model, SIZE)
    rng = np.random.default_rng(0)
    base = rng.integers(60, 200, (SIZE // 4, SIZE // 4, 3), np.uint8)
    picture = np.asarray(Image.fromarray(base).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    landmarks = nobody.landmarks.repeat(9, 1, 1)
    frames = []
    for k in range(9):
        landmarks[k, [55, 56, 57, 58, 59, 65, 66, 67], 1] += 6 + 3 * math.sin(k)
        frame = picture.astype(np.int16) + rng.integers(-3, 4, picture.shape)
        inside = renders.lips_mask(landmarks[k].numpy(), SIZE, SIZE)
        frame[inside] = 30 + 40 * (np.indices((SIZE, SIZE)).sum(0)[inside] % 2)[:, None]
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return Scene(
        "a", "ann", False, replace(nobody, picture=picture), landmarks, np.stack(frames), np.ones(9, dtype=bool)
    )


def test_the_real_frames_are_perfect(scene: Scene) -> None:
    quality = renders.measure(scene, scene.frames, every=6)
    assert quality.psnr == quality.mouth_psnr == renders.MOST_PSNR
    assert quality.ssim == pytest.approx(1)
    assert quality.mouth_energy == quality.inside_energy == 1
    assert quality.motion_error == 0
    assert quality.flicker == quality.background == quality.tremble == 1


def test_the_picture_repeated_stands_still(scene: Scene) -> None:
    shown = renders.repeated(scene.reference, scene.landmarks, scene.frames)
    quality = renders.measure(scene, shown, every=6)
    assert shown.shape == scene.frames.shape
    assert quality.flicker == quality.background == quality.tremble == 0
    assert quality.motion_error == pytest.approx(1)
    assert quality.psnr < 45
    assert quality.inside_energy < 0.2  # the smooth picture has no teeth


def test_blur_costs_detail_and_noise_adds_it(scene: Scene) -> None:
    small = [Image.fromarray(frame).resize((SIZE // 3, SIZE // 3)).resize((SIZE, SIZE)) for frame in scene.frames]
    blurred = renders.measure(scene, np.stack([np.asarray(each) for each in small]), every=6)
    rng = np.random.default_rng(1)
    noisy = (scene.frames.astype(np.int16) + rng.integers(-40, 41, scene.frames.shape)).clip(0, 255).astype(np.uint8)
    loud = renders.measure(scene, noisy, every=6)
    assert blurred.mouth_energy < 0.5
    assert blurred.inside_energy < 0.5
    assert loud.mouth_energy > 1.2
    assert min(loud.flicker, loud.background, loud.tremble) > 3


def test_frames_that_are_not_judged_change_nothing(scene: Scene) -> None:
    broken = scene.frames.copy()
    broken[4] = 0
    part = replace(scene, valid=np.arange(9) != 4)
    whole, hidden = (renders.measure(part, each, every=6) for each in (scene.frames, broken))
    assert astuple(hidden) == pytest.approx(astuple(whole))
    assert hidden.psnr == renders.MOST_PSNR


def test_results_of_another_size_are_refused(scene: Scene) -> None:
    with pytest.raises(ValueError, match="a has frames"):
        renders.measure(scene, scene.frames[:-1])


def test_judge_pairs_every_method_with_every_scene(scene: Scene) -> None:
    methods = {"truth": lambda reference, landmarks, frames: frames, "still": renders.repeated}
    seen, values, seconds = renders.judge([scene, scene], methods, every=9)
    assert [each.person for each in seen] == ["ann", "ann"]
    assert {name: len(scores) for name, scores in values.items()} == {"truth": 2, "still": 2, renders.REAL: 2}
    assert seconds.keys() == methods.keys()
    real, truth = values[renders.REAL][0], values["truth"][0]
    assert (real.landmarks, real.lips) == (truth.landmarks, truth.lips)
    assert math.isnan(real.psnr)
    assert math.isnan(real.flicker)


# Renderers


@pytest.fixture(scope="module")
def model() -> MCVDM:
    """Both networks, tiny and untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = Autoencoder(AutoencoderConfig(widths=(32, 32), plane_width=32, n_blocks=(1, 1)))
        config = DenoiserConfig(condition_channels=4, condition_width=32, channel_mult=(1, 1))
        for parameter in autoencoder.parameters():
            if not parameter.any():  # layers that begin at zero would let no plane through
                torch.nn.init.normal_(parameter, std=0.1)
        return MCVDM(autoencoder.eval(), Denoiser(config).eval(), torch.device("cpu"))


def test_only_the_ceiling_looks_at_the_real_frames(scene: Scene, model: MCVDM) -> None:
    real = np.concatenate([scene.frames] * 2)[:17]  # two clips: frames 0 to 15, 12 to 16
    landmarks = scene.landmarks.repeat(2, 1, 1)[:17]
    other = real.copy()
    other[16] = 255 - other[16]  # in the second clip alone
    blind, told = renders.mcvdm(model, 1), renders.ceiling(model)
    assert (blind(scene.reference, landmarks, real) == blind(scene.reference, landmarks, other)).all()
    one, two = (told(scene.reference, landmarks, frames) for frames in (real, other))
    assert one.shape == real.shape
    assert one.dtype == np.uint8
    assert (one[:12] == two[:12]).all()
    assert (one[16] != two[16]).any()
    # Without the real planes it is what planes of zeros give.
    assert (one != renders.mcvdm(model, 0)(scene.reference, landmarks, real)).any()


@pytest.mark.parametrize("n_frames", [1, 4, 5, 16, 17, 28, 29, 40])
def test_clips_hold_every_real_frame_in_its_place(n_frames: int) -> None:
    frames = np.arange(n_frames, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2).repeat(3, 3)
    clips = list(renders.clips_of(frames))
    spans = clip_spans(n_frames)
    assert len(clips) == len(spans)
    for clip, (first, last) in zip(clips, spans, strict=True):
        shown = ((clip[0, 0, :, 0, 0] + 1) * 127.5).round().int().tolist()
        assert shown == [*range(first, last), *[last - 1] * (16 - (last - first))]


# Which frames


@settings(max_examples=200, deadline=None)
@given(judged=st.lists(st.booleans(), min_size=2, max_size=40), n=st.integers(1, 45), data=st.data())
def test_the_best_part_has_the_most_judged_frames(judged: list[bool], n: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(judged) - 1))
    part = renders.best_part(np.array(judged), first, n)
    length = min(n, len(judged) - first)
    assert part.start >= first
    assert part.stop - part.start == length
    others = [sum(judged[k : k + length]) for k in range(first, len(judged) - length + 1)]
    assert sum(judged[part]) == max(others)


def test_of_equally_good_parts_the_middle_is_taken() -> None:
    assert renders.best_part(np.ones(21, bool), 1, 10) == slice(6, 16)
    late = np.arange(21) > 12
    assert renders.best_part(late, 1, 5).start in (13, 14, 15, 16)


@pytest.mark.parametrize(("turn_deg", "is_judged"), [(0, True), (15, True), (40, False)])
def test_turned_heads_are_not_judged(turn_deg: float, is_judged: bool) -> None:
    model = FaceModel.builtin()
    reference = ReferencePicture.mean(model)
    angle = math.radians(turn_deg)
    turn = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    pose = Pose(reference.pose.scale, turn, reference.pose.translation)
    points = pose.project(model.mean)
    points[:, 1] = 255 - points[:, 1]
    points[:, 2] *= -1
    judged = renders.judged_frames(
        torch.stack([points, points + torch.tensor([300.0, 0, 0])]).numpy(), reference, model
    )
    assert judged.tolist() == [is_judged, False]  # the second lies outside the picture


# Forecasts


def heard(opening: Tensor, seed: int) -> Clip:
    """A clip whose sound tells the opening: a fixed pattern over the bands, times it, and noise."""
    pattern = torch.randn(4, 64, generator=Generator().manual_seed(0))
    noise = torch.randn(len(opening), 4, 64, generator=Generator().manual_seed(seed))
    return replace(clip_of(opening), mel=40 * (opening - 0.1)[:, None, None] * pattern + 0.1 * noise)


def test_retrieval_gives_a_training_clip_back() -> None:
    clip = heard(spoken(60), 1)
    found = openings.Retrieval([clip])(clip)
    assert found.opening.shape == (1, 60)
    assert found.lips is not None
    assert found.lips.shape == (1, 60, 37, 3)
    assert openings.score(found, clip).correlation > 0.95
    assert openings.score(found, clip).error < 0.4


@pytest.mark.parametrize("n_frames", [12, 20, 25, 31])
def test_retrieval_answers_clips_of_any_length(n_frames: int) -> None:
    forecast = openings.Retrieval([heard(spoken(60), 1)])(heard(spoken(n_frames), 2)).opening
    assert forecast.shape == (1, n_frames)
    assert forecast.isfinite().all()


@pytest.mark.parametrize("n_frames", [5, 30, 100])
def test_other_people_lend_their_mouths(n_frames: int) -> None:
    ann, bea = (replace(clip_of(spoken(n)), person=person) for person, n in (("ann", 30), ("bea", 40)))
    others = openings.OtherPeople([ann, bea], [torch.full((30,), 1.0).cumsum(0), spoken(40)], n_samples=3)
    asked = replace(clip_of(spoken(n_frames)), person="ann")
    samples = others(asked)
    assert samples.shape == (3, n_frames)
    known = (spoken(40) - spoken(40).mean()).tolist()
    assert all(value in known for value in samples.flatten().tolist())  # bea's, never one's own
    assert (others(asked) == samples).all()
    assert (samples[0] != samples[1]).any()


def test_score_of_samples_is_the_mean_of_theirs_but_for_the_energy() -> None:
    clip = clip_of(spoken())
    real = clip.opening
    samples = torch.stack([real, real.mean() + (real - real.mean()) / 2])
    score = openings.score(openings.Course(samples), clip)
    assert score.amplitude == pytest.approx(0.75, abs=1e-4)
    assert score.roughness == pytest.approx(0.75, abs=1e-4)
    assert score.error == pytest.approx(0.25, abs=1e-4)
    assert score.peak == 1
    assert math.isnan(score.lmd)  # an opening has no landmarks
    # E|X - y| = d / 2 and E|X - X'| = d, with d half the deviation of the real course: 0.
    assert score.energy == pytest.approx(0, abs=1e-2)
    still = openings.score(openings.held_still(clip), clip)
    assert still.energy == pytest.approx(1000 * float(real.std(correction=0)), rel=1e-4)
    assert math.isnan(still.peak)


def test_lips_are_judged_from_the_closed_mouth_and_about_their_means() -> None:
    """A face whose lower lip falls: motion that repeats it is exact both ways, the same a little lower one way only."""
    model = FaceModel.builtin()
    fall = 0.3 * spoken(30).abs()
    fall[7] = 0  # the frame that the rest is taken from
    clip = clip_of(torch.ones(30))
    moved = (closed(model.mean, opening_direction(model)) - model.mean).repeat(30, 1, 1)
    lower = [LIP_STREAM.index(point) for point in (65, 66, 67, 56, 57, 58)]
    moved[:, [LIP_STREAM[k] for k in lower], 1] -= fall[:, None]
    clip = replace(clip, lm3d=moved, opening=mouth_opening(moved + model.mean), sound=torch.ones(30, dtype=torch.bool))
    exact, low = torch.zeros(1, 30, 37, 3), torch.zeros(1, 30, 37, 3)
    exact[0, :, lower, 1] = -fall[:, None]
    low[:] = exact
    low[0, :, lower, 1] -= 0.05
    scores = [openings.score(openings.shown(lips, clip), clip) for lips in (exact, low)]
    assert scores[0].lmd == pytest.approx(0, abs=1e-3)
    assert scores[0].lmd_course == pytest.approx(0, abs=1e-3)
    assert scores[1].lmd == pytest.approx(100 * 0.05 * 6 / 20 / clip.eye_distance, rel=1e-3)
    assert scores[1].lmd_course == pytest.approx(0, abs=1e-3)
    still = openings.score(openings.held_still(clip), clip)
    assert still.lmd == pytest.approx(100 * float(fall.mean()) * 6 / 20 / clip.eye_distance, rel=1e-3)
    about = float((fall - fall.mean()).abs().mean())
    assert still.lmd_course == pytest.approx(100 * about * 6 / 20 / clip.eye_distance, rel=1e-3)


def test_the_mean_of_samples_is_a_forecast_of_one() -> None:
    lips = torch.randn(4, 9, 37, 3, generator=Generator().manual_seed(0))
    mean = openings.Course(lips[..., 0, 0], lips).mean()
    assert mean.lips is not None
    assert torch.equal(mean.opening, lips[..., 0, 0].mean(dim=0)[None])
    assert torch.equal(mean.lips, lips.mean(dim=0)[None])


# Verdicts


@pytest.mark.parametrize(
    ("values", "is_below", "word"),
    [
        ([-1.0, -1.2, -0.8], True, "holds"),
        ([-1.0, -1.2, -0.8], False, "does not hold"),
        ([1.0, 1.2, 0.8], True, "does not hold"),
        ([-1.0, 1.2, -0.8], True, "is not shown"),
        ([math.nan, -1.2, -0.8], True, "holds"),
        ([math.nan, math.nan, -0.8], True, "cannot be told"),
    ],
)
def test_verdicts_are_what_the_interval_says(values: list[float], is_below: bool, word: str) -> None:
    verdict = ablation.Claim("claim", values, is_below).verdict(["ann", "bea", "cid"])
    assert verdict.startswith("claim: " + word)


def test_claims_about_planes_have_the_right_sign() -> None:
    """Sampled planes with all the detail, a regression with half of it and zeros with a tenth."""

    def of(energy: float) -> list[Quality]:
        values = dict.fromkeys((field.name for field in fields(Quality)), 1.0)
        return [Quality(**{**values, "mouth_energy": energy, "inside_energy": energy})] * 3

    made = {ablation.SAMPLED: of(0.95), ablation.ZERO: of(0.1), ablation.REGRESSED: of(0.5), ablation.TRUE: of(1.0)}
    persons = ["ann", "bea", "cid"]
    assert all("holds" in claim.verdict(persons) for claim in ablation.plane_claims(made))
    made[ablation.SAMPLED], made[ablation.REGRESSED] = of(3.0), of(0.5)  # more noise than detail
    verdicts = [claim.verdict(persons) for claim in ablation.plane_claims(made)]
    assert [": holds" in verdict for verdict in verdicts] == [True, False, True, False]
