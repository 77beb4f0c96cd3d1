"""Finishing: what is cut around mouths is a part of the whole, and of the model the decoder alone learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from common.trainer import Task, TrainConfig, train
from common.triplane import TriPlane, unpack
from m2v.autoencoder import Autoencoder, load_autoencoder, save_autoencoder
from m2v.condition import FACTOR, Conditions
from m2v.data import ClipSamples, DataConfig, Sample, conditions_of
from m2v.denoiser import Denoiser, glance
from m2v.finishing import (
    CROP_PX,
    MEAN,
    N_FRAMES,
    PLANES,
    SAMPLED,
    SIGNED,
    TRUE,
    ZERO,
    Finishing,
    MouthSamples,
    PatchDiscriminator,
    adversarial,
    crop,
    cut_mouths,
    finishing_loss,
    pairs,
    shown,
)
from m2v.losses import LandmarkFeatures
from m2v.planes import Encoded, cached, encode
from tests.m2v.tiny import AUTOENCODER, autoencoder, conditions, denoiser, picture, training_clips

N, SIDE_PX, N_WHOLE = 3, 128, 10
CONFIG = DataConfig(size_px=SIDE_PX, crop_px=SIDE_PX, n_frames=N_WHOLE)
FIELDS = ("reference", "warped", "inner", "visible", "maps", "flow", "region")
TERMS_OF_PIXELS = ("charbonnier", "laplacian", "texture")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("m2v-finishing")


@pytest.fixture(scope="module")
def samples(folder: Path) -> ClipSamples:
    return ClipSamples(training_clips(folder, N_WHOLE), CONFIG, seed=0)


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    return autoencoder(by=0.05)


@pytest.fixture(scope="module")
def sampler() -> Denoiser:
    return denoiser(by=0.05)


@pytest.fixture(scope="module")
def encoded(model: Autoencoder, samples: ClipSamples, folder: Path) -> Encoded:
    return encode(model, samples, N, folder / "planes")


@pytest.fixture(scope="module")
def mouths(sampler: Denoiser, samples: ClipSamples, encoded: Encoded, folder: Path) -> Encoded:
    return cut_mouths(sampler, samples, encoded, folder / "mouths")


@pytest.fixture(scope="module")
def batch(mouths: Encoded) -> Sample:
    return torch.utils.data.default_collate([MouthSamples(mouths, 0)[i] for i in range(2)])


def corner(sample: Sample, mouths: Encoded, k: int) -> tuple[int, int]:
    """First row and column of the square that was cut, as its mouth tells."""
    left, top = (sample["mouth"] - torch.from_numpy(np.array(mouths["mouth"][k])))[0, :2].round().int().tolist()
    return top, left


def plane_part(planes: TriPlane, top: int, left: int, n: int = CROP_PX // FACTOR) -> TriPlane:
    rows, columns = (slice(low // FACTOR, low // FACTOR + n) for low in (top, left))
    return TriPlane(planes.xy[..., rows, columns], planes.xt[..., columns], planes.yt[..., rows])


def stored_planes(mouths: Encoded, name: str, k: int) -> TriPlane:
    side = CROP_PX // FACTOR
    return unpack(torch.from_numpy(np.array(mouths[name][k]))[None].float(), N_WHOLE, side, side)


def gradients(term: Tensor, module: nn.Module) -> dict[str, float]:
    """Largest gradient of each weight that a term gives one."""
    module.zero_grad()
    term.backward(retain_graph=True)
    return {name: float(p.grad.abs().max()) for name, p in module.named_parameters() if p.grad is not None}


# ---- samples --------------------------------------------------------------------------------------------------------


def test_a_cut_mouth_is_a_window_of_the_whole_sample(samples: ClipSamples, mouths: Encoded) -> None:
    assert set(mouths) == {*FIELDS, "clip", "mouth", *PLANES}
    for k in range(N):
        sample = samples[k]
        top, left = corner(sample, mouths, k)
        assert top % FACTOR == left % FACTOR == 0 and 0 <= top <= SIDE_PX - CROP_PX and 0 <= left <= SIDE_PX - CROP_PX
        for name in (*FIELDS, "clip"):
            expected, value = crop(sample[name], SIDE_PX, top, left), torch.from_numpy(np.array(mouths[name][k]))
            if name == "flow":
                assert torch.equal(value, expected.half())
            else:
                value = value / 127.5 - 1 if name in SIGNED else value / 255
                assert torch.allclose(value, expected, atol=0.51 / (127.5 if name in SIGNED else 255)), name


def test_the_mouth_is_in_the_middle_unless_the_pictures_border_is_near(samples: ClipSamples, mouths: Encoded) -> None:
    for k in range(N):
        x, y = mouths["mouth"][k][:, :2].mean(axis=0)
        top, left = corner(samples[k], mouths, k)
        for place, low in ((x, left), (y, top)):
            assert abs(place - CROP_PX / 2) <= FACTOR / 2 or low in (0, SIDE_PX - CROP_PX)


def test_all_kinds_of_planes_are_cut_at_the_same_place(
    samples: ClipSamples, encoded: Encoded, sampler: Denoiser, mouths: Encoded
) -> None:
    side = SIDE_PX // FACTOR
    for k in range(N):
        sample = samples[k]
        top, left = corner(sample, mouths, k)
        packed = torch.from_numpy(np.array(encoded["planes"][k]))[None]
        true = plane_part(unpack(packed, N_WHOLE, side, side), top, left)
        assert torch.equal(stored_planes(mouths, "true", k).pack(), true.pack().float())
        noise = torch.randn(packed.shape, generator=torch.Generator().manual_seed(k))
        for name, n_steps in (("sampled", None), ("mean", 1)):
            drawn = sampler.sample(glance(conditions_of(sample).batched()), noise, n_steps)
            exact = plane_part(drawn, top, left).pack()
            error = stored_planes(mouths, name, k).pack() - exact
            assert error.abs().mean() < 0.05 * exact.std()  # computed in bf16


def test_decoding_what_was_cut_gives_that_part_of_the_whole(samples: ClipSamples, folder: Path) -> None:
    """Beyond the reach of the convolutions: so the mouth lies in the picture's corner here."""
    model = autoencoder(replace(AUTOENCODER, has_shift=False), by=0.05)
    clips = [replace(clip, tracks=clip.tracks - torch.tensor([100.0, 150.0])) for clip in samples.clips]
    cornered = ClipSamples(clips, CONFIG, seed=1, is_disturbed=False)
    planes = encode(model, cornered, 1, folder / "cornered")
    mouths = cut_mouths(denoiser(), cornered, planes, folder / "cornered mouths")
    sample, side = cornered[0], SIDE_PX // FACTOR
    assert corner(sample, mouths, 0) == (0, 0)
    mouth = with_all_frames(mouths)
    with torch.no_grad():
        true = unpack(torch.from_numpy(np.array(planes["planes"][0]))[None].float(), N_WHOLE, side, side)
        whole = model.decode(true, conditions_of(sample).batched())
        part = model.decode(stored_planes(mouths, "true", 0), conditions_of(mouth).batched())
    error = (whole[..., :CROP_PX, :CROP_PX] - part).abs()
    assert error[..., :16, :16].max() < 0.02  # bytes
    assert error[..., -16:, -16:].max() > 0.05


def with_all_frames(mouths: Encoded) -> Sample:
    fields = {name: torch.from_numpy(np.array(mouths[name][0])).float() for name in FIELDS}
    fields = {name: value if name == "flow" else value / 255 for name, value in fields.items()}
    return {name: value * 2 - 1 if name in SIGNED else value for name, value in fields.items()}


def test_samples_follow_from_seed_and_number_and_fit_the_decoder(mouths: Encoded, model: Autoencoder) -> None:
    samples, again = MouthSamples(mouths, 3), MouthSamples(mouths, 3)
    backwards = [again[i] for i in (5, 1, 0)][::-1]
    for i, other in zip((0, 1, 5), backwards, strict=True):
        sample = samples[i]
        assert all(torch.equal(sample[name], other[name]) for name in sample)
        given = conditions_of(sample).batched()
        assert sample["clip"].shape == (3, N_FRAMES, CROP_PX, CROP_PX) and sample["mouth"].shape == (N_FRAMES, 4)
        assert sample["clip"].min() < -0.3 and sample["clip"].max() > 0.3 and given.inner.unique().tolist()[-1] <= 1
        for name in PLANES:
            planes = unpack(sample[name][None], N_FRAMES, CROP_PX // FACTOR, CROP_PX // FACTOR)
            assert [plane.shape for plane in planes] == [plane.shape for plane in model.zeros(given)]
        for name in ("warped", "inner", "visible", "maps", "flow", "region"):
            assert getattr(given, name).shape[1] == N_FRAMES, name


def test_every_clip_comes_once_a_round_in_an_order_of_its_own(mouths: Encoded) -> None:
    rounds = MouthSamples(mouths, 1)
    orders = [[clip_number(mouths, rounds[N * r + i]) for i in range(N)] for r in range(6)]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def clip_number(mouths: Encoded, sample: Sample) -> int:
    side = CROP_PX // FACTOR
    xy = unpack(sample["true"][None], N_FRAMES, side, side).xy
    return next(k for k in range(N) if torch.equal(stored_planes(mouths, "true", k).xy, xy))


def test_frames_and_planes_of_a_sample_begin_at_the_same_frame(mouths: Encoded) -> None:
    starts = set()
    for i in range(4 * N):
        sample = MouthSamples(mouths, 2)[i]
        k, side = clip_number(mouths, sample), CROP_PX // FACTOR
        clip = torch.from_numpy(np.array(mouths["clip"][k])).float() / 127.5 - 1
        found = [s for s in range(N_WHOLE - N_FRAMES + 1) if torch.equal(clip[:, s : s + N_FRAMES], sample["clip"])]
        part = slice(found[0], found[0] + N_FRAMES)
        starts.add(found[0])
        for name in PLANES:
            planes, whole = unpack(sample[name][None], N_FRAMES, side, side), stored_planes(mouths, name, k)
            assert torch.equal(planes.xt, whole.xt[:, :, part]) and torch.equal(planes.yt, whole.yt[:, :, part])
            assert torch.equal(planes.xy, whole.xy)
        assert torch.equal(sample["mouth"], torch.from_numpy(mouths["mouth"][k][part].copy()))
        assert torch.equal(sample["flow"], torch.from_numpy(mouths["flow"][k][part].copy()).float())
    assert starts == {0, 1, 2}


# ---- what is made once ----------------------------------------------------------------------------------------------


def test_arrays_are_made_once_and_anew_when_made_of_something_else(tmp_path: Path) -> None:
    made: list[int] = []

    def make(k: int) -> Encoded:
        made.append(k)
        return {"double": np.array([2 * k, 1]), "picture": np.full((2, 2), k, np.uint8)}

    def arrays(n: int, made_of: str) -> Encoded:
        made.clear()
        found = cached(make, n, tmp_path / "a" / "b", made_of)
        assert set(found) == {"double", "picture"}
        assert found["double"].tolist() == [[2 * k, 1] for k in range(n)] and found["picture"].shape == (n, 2, 2)
        return found

    arrays(3, "x")
    assert sorted(made) == [0, 1, 2]
    assert arrays(3, "x")["picture"].dtype == np.uint8 and made == []
    assert len(arrays(2, "x")["picture"]) == 2 and made == []  # fewer of them are there as well
    arrays(4, "x")
    assert sorted(made) == [0, 1, 2, 3]
    arrays(2, "y")
    assert sorted(made) == [0, 1]
    (tmp_path / "a" / "b" / "made_from.json").unlink()  # killed before the end
    (tmp_path / "a" / "b" / "left.npy").write_bytes(b"half of it")
    arrays(2, "y")
    assert sorted(made) == [0, 1]


def test_a_folder_of_other_things_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"a night of work")
    with pytest.raises(InputError, match="other things than planes"):
        cached(lambda k: {"x": np.zeros(1)}, 1, tmp_path, "x")
    assert (tmp_path / "weights" / "model.safetensors").is_file()


def test_mouths_are_cut_anew_when_either_network_has_changed(
    samples: ClipSamples, encoded: Encoded, tmp_path: Path
) -> None:
    def stamp(sampler: Denoiser, planes: np.ndarray) -> str:
        cut_mouths(sampler, samples, {"planes": planes}, tmp_path)
        return (tmp_path / "made_from.json").read_text()

    first = np.array(encoded["planes"][:1])
    stamps = [stamp(denoiser(), first), stamp(denoiser(by=0.05), first), stamp(denoiser(), first + np.float16(1))]
    assert len(set(stamps)) == 3 and stamp(denoiser(), first) == stamps[0]


# ---- losses ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_pairs_are_frames_2k_and_2k_plus_1_of_a_clip(n_clips: int, n_pairs: int, n_channels: int) -> None:
    shape = (n_clips, n_channels, 2 * n_pairs, 2, 3)
    clip = torch.arange(float(np.prod(shape))).view(shape)
    two = pairs(clip)
    assert two.shape == (n_clips * n_pairs, 2 * n_channels, 2, 3)
    for b in range(n_clips):
        for k in range(n_pairs):
            assert torch.equal(two[b * n_pairs + k], torch.cat([clip[b, :, 2 * k], clip[b, :, 2 * k + 1]]))


def judge(model: Finishing) -> PatchDiscriminator:
    assert model.discriminator is not None
    return model.discriminator


def test_the_discriminator_sees_frames_inner_lips_and_warp(batch: Sample) -> None:
    given = conditions_of(batch)
    seen = shown(batch["clip"], given)
    assert seen.shape == (2 * N_FRAMES // 2, 14, CROP_PX, CROP_PX)
    b, k = 1, 2
    for half, frame in ((seen[b * 4 + k, :7], 2 * k), (seen[b * 4 + k, 7:], 2 * k + 1)):
        assert torch.equal(half[:3], batch["clip"][b, :, frame])
        assert torch.equal(half[3:4], given.inner[b, frame]) and torch.equal(half[4:], given.warped[b, frame])
    *features, logits = judge(finishing())(seen)
    assert [f.shape[-1] for f in features] == [CROP_PX // 2, CROP_PX // 4, CROP_PX // 8]
    assert logits.shape[1:] == given.region.shape[2:]  # one beside the other


def finishing(features: nn.Module | None = None) -> Finishing:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Finishing(autoencoder(by=0.05), features).train()


def test_each_term_trains_the_decoder_or_the_discriminator_never_both(batch: Sample) -> None:
    model = finishing(LandmarkFeatures())
    terms = model.terms(batch, torch.tensor([TRUE, SAMPLED]))
    assert set(terms) == {*TERMS_OF_PIXELS, "features", "discriminator", "adversarial", "matching"}
    learns = {name for part in model.autoencoder.decoder_parts() for name in names_of(part, model)}
    judges = set(names_of(judge(model), model))
    for name, term in terms.items():
        assert term.ndim == 0 and term.isfinite()
        found = {key for key, size in gradients(term, model).items() if size > 0}
        assert found and found <= (judges if name == "discriminator" else learns), name
    everything = {key for key, size in gradients(torch.stack([*terms.values()]).sum(), model).items() if size > 0}
    assert everything | {"discriminator.logits.bias"} == learns | judges  # real and fake pull at that one alike


def names_of(part: nn.Module, model: nn.Module) -> list[str]:
    own = {id(p) for p in part.parameters()}
    return [name for name, p in model.named_parameters() if id(p) in own]


def test_best_guesses_are_not_judged(batch: Sample) -> None:
    model = finishing()
    terms = model.terms(batch, torch.tensor([ZERO, MEAN]))
    assert all(terms[name] == 0 for name in ("discriminator", "adversarial", "matching", "texture"))
    assert terms["charbonnier"] > 0
    given, clip = conditions_of(batch), batch["clip"]
    pred = torch.zeros_like(clip).requires_grad_()
    judged = adversarial(judge(model), pred, clip, given, torch.tensor([0.0, 1.0]))
    torch.stack([*judged.values()]).sum().backward()
    assert pred.grad is not None and not pred.grad[0].any() and pred.grad[1].any()


@torch.no_grad()
def test_between_the_lips_sampled_planes_are_asked_for_less(batch: Sample) -> None:
    """Of the same planes: only what they are said to be differs."""
    model, alike = finishing(), {**batch, "sampled": batch["true"]}
    own, sampled = (model.terms(alike, torch.full((2,), kind)) for kind in (TRUE, SAMPLED))
    assert all(sampled[name] < own[name] for name in TERMS_OF_PIXELS)
    assert all(torch.isclose(sampled[name], own[name], rtol=0.1) for name in ("adversarial", "matching"))
    closed = {**alike, "inner": torch.zeros_like(batch["inner"])}
    own, sampled = (model.terms(closed, torch.full((2,), kind)) for kind in (TRUE, SAMPLED))
    assert all(torch.equal(sampled[name], own[name]) for name in TERMS_OF_PIXELS)


def test_kinds_of_planes_come_from_the_generator(batch: Sample) -> None:
    model = finishing().eval()
    with torch.no_grad():
        seeds = [model(batch, torch.Generator().manual_seed(seed))["charbonnier"] for seed in (0, 0, 1, 2)]
    assert seeds[0] == seeds[1] and len(set(map(float, seeds))) > 1


def test_the_discriminator_learns_to_tell_grey_from_a_clip() -> None:
    model, given = finishing(), conditions(2, 2)
    given = Conditions(**{**vars(given), "region": torch.ones_like(given.region)})
    clip = torch.stack([picture(seed=k) for k in (7, 8)])[:, :, None].expand(-1, -1, 2, -1, -1)
    grey = torch.zeros_like(clip)
    optimizer = torch.optim.Adam(judge(model).parameters(), lr=2e-3, betas=(0.5, 0.99))
    for _ in range(20):
        loss = adversarial(judge(model), grey, clip, given, torch.ones(2))["discriminator"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        real, fake = (judge(model)(shown(each, given))[-1] for each in (clip, grey))
    assert loss < 1 and real.mean() > 0.3 and fake.mean() < -0.3


def test_the_adversarial_term_falls_where_the_discriminator_sees_a_clip() -> None:
    """Its gradient points the decoder to what the discriminator takes for real."""
    model, given = finishing().eval(), conditions(1, 2)
    pred = torch.zeros(1, 3, 2, 64, 64, requires_grad=True)
    adversarial(judge(model), pred, pred.detach() + 0.1, given, torch.ones(1))["adversarial"].backward()
    assert pred.grad is not None
    region = F.interpolate(pairs(given.region.transpose(1, 2))[:, :1], (8, 8))
    before, after = ((judge(model)(shown(each, given))[-1] * region).mean() for each in (pred, pred - 1e3 * pred.grad))
    assert after > before


# ---- training -------------------------------------------------------------------------------------------------------


def test_steps_change_the_decoder_and_nothing_else(mouths: Encoded, tmp_path: Path) -> None:
    model = finishing(LandmarkFeatures())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = Task(model, finishing_loss, MouthSamples(mouths, 0), save_finished)
    config = TrainConfig(n_steps=2, batch_size=2, learning_rate=1e-3, warmup_steps=0, ema_decay=0.0, device="cpu")
    ema = train(task, tmp_path, replace(config, validate_every=0, sample_every=0))
    changed = {name for name, value in ema.state_dict().items() if not torch.equal(value, before[name])}
    parts = {name for part in model.autoencoder.decoder_parts() for name in names_of(part, model)}
    assert {name for name in changed if name.startswith("autoencoder.")} == parts
    assert not {name for name in changed if name.startswith("features.")}
    loaded = load_autoencoder(tmp_path / "weights")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, ema.state_dict()[f"autoencoder.{name}"].bfloat16().float()), name


def save_finished(model: nn.Module, folder: Path) -> None:
    assert isinstance(model, Finishing)
    save_autoencoder(model.autoencoder, folder)


def test_without_a_discriminator_only_the_other_terms_are_left(batch: Sample) -> None:
    alone, both = (Finishing(autoencoder(by=0.05), has_discriminator=has) for has in (False, True))
    kind = torch.full((len(batch["clip"]),), SAMPLED)
    assert set(alone.terms(batch, kind)) == {*TERMS_OF_PIXELS}
    assert all(torch.equal(value, both.terms(batch, kind)[name]) for name, value in alone.terms(batch, kind).items())
