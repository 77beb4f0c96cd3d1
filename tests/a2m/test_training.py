"""AToM-Net's samples, loss and a first training: what a batch holds, what the loss sees, one clip learnt by heart."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from a2m.data import Clip, interpolate
from a2m.model import AToMConfig, AToMNet
from a2m.pipeline import AudioToMotion
from a2m.pose import HeadPrior
from a2m.samples import DataConfig, Speech
from a2m.sampling import predict_openings
from a2m.space import MotionSpace
from a2m.training import draw_samples, load, loss_terms, make_loss, save
from common.errors import InputError
from common.face.model import FaceModel
from common.trainer import Task, TrainConfig, train
from tests.a2m.tiny import PLAIN, clip

CONFIG = AToMConfig(n_lip=3, n_rest=2, width=32, n_layers=1, n_heads=2, ff_width=64, dropout=0.0, window=32, overlap=8)


def speech(clips: list[Clip], options: DataConfig = PLAIN, seed: int = 0) -> tuple[AToMNet, Speech]:
    torch.manual_seed(0)
    net = AToMNet(CONFIG)
    data = Speech(clips, net, FaceModel.builtin(), options, seed)
    net.space.fit(clips, data.shares, FaceModel.builtin(), is_points=False)
    data.prepare()
    return net, data


def test_a_sample_follows_from_seed_and_number() -> None:
    clips = [clip("a", 0), clip("lrwar_b", 1, 16)]
    options = DataConfig()
    _, first = speech(clips, options)
    _, again = speech(clips, options)
    _, other = speech(clips, options, seed=1)
    a, b, c, d = first[7], again[7], first[8], other[7]
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["audio"], c["audio"]) and not torch.equal(a["audio"], d["audio"])


def test_short_clips_are_padded_and_masked_and_the_rest_pose_has_no_lip_offset() -> None:
    net, data = speech([clip("a", 0), clip("lrwar_b", 1, 16)])
    for number in range(12):
        item = data[number]
        n = int(item["is_frame"].sum())
        assert item["x_0"].shape == (32, net.space.n_values) and item["audio"].shape == (32, 256)
        assert n in (24, 16) and item["is_frame"][:n].all()
        assert item["x_0"][n:].abs().max() == 0 and item["audio"][n:].abs().max() == 0
        lips = net.space.decode_lips(item["x_0"][:n])  # from the closed mouth, so exactly the clip's
        expected = data.clips[0 if n == 24 else 1].lip_motion
        torch.testing.assert_close(lips, expected, atol=5e-3, rtol=0)


def test_the_residual_of_the_reference_frame_is_zero() -> None:
    still = clip("a", 0, 1)  # the only frame is the reference
    moving, _ = speech([clip("b", 1)], replace(PLAIN, rest_share=0.0))
    data = Speech([still], moving, FaceModel.builtin(), replace(PLAIN, rest_share=0.0), 0)
    data.prepare()
    assert data[0]["x_0"].abs().max() < 1e-5
    torch.testing.assert_close(data[0]["reference"].abs().sum(), still.lm3d[0].abs().sum())


def test_coefficients_give_the_motion_back_and_have_unit_variance() -> None:
    clips = [clip("a", 0), clip("b", 1)]
    net, data = speech(clips)
    for each, (plain, _) in zip(clips, data.values, strict=True):
        torch.testing.assert_close(net.space.decode_lips(plain), each.lip_motion, atol=5e-3, rtol=0)
    variance = torch.stack([plain.var(dim=0) for plain, _ in data.values]).mean(dim=0)
    assert variance[0] == pytest.approx(1.0, rel=0.1)


def test_stretching_time_moves_sound_and_motion_alike() -> None:
    x = torch.sin(torch.arange(100.0) / 5)[:, None]
    at = 10 + (torch.arange(40) + 0.5) * 1.1 - 0.5
    torch.testing.assert_close(interpolate(x, at)[:, 0], torch.sin(at / 5), atol=6e-3, rtol=0)
    assert torch.equal(interpolate(x, torch.tensor([-5.0, 300.0])), x[[0, -1]])


def test_the_loss_ignores_padding_and_weighs_as_published() -> None:
    space = MotionSpace(2, 1, 0)
    options = DataConfig(rest_weight=0.0, opening_weight=0.0)
    x_0 = torch.zeros(1, 6, 3)
    is_frame = torch.tensor([[True, True, True, True, False, False]])
    off = torch.zeros(1, 6, 3)
    off[:, :, :2] = 1.0
    off[:, 4:] = 1e6
    terms = loss_terms(off, x_0, is_frame, space, torch.ones(3), options, torch.ones(1))
    assert float(terms["reconstruction"]) == pytest.approx(7.5)
    assert float(terms["velocity"]) == 0
    ramp = torch.arange(6.0)[None, :, None].expand(1, 6, 3)
    assert float(
        loss_terms(ramp, x_0, is_frame, space, torch.ones(3), options, torch.ones(1))["velocity"]
    ) == pytest.approx(1.5)


def test_one_clip_is_learnt_by_heart_and_comes_back_from_its_weights(tmp_path: Path) -> None:
    learnt = clip("a", 3)
    net, data = speech([learnt])
    loss = make_loss(PLAIN, net.space, CONFIG.n_timesteps)
    head = HeadPrior()
    task = Task(net, loss, data, lambda trained, folder: save(trained, head, PLAIN, folder))
    settings = TrainConfig(n_steps=120, batch_size=8, learning_rate=3e-3, warmup_steps=10, ema_decay=0.95, device="cpu")
    quiet = replace(settings, precision="no", log_every=0, validate_every=0, sample_every=0)
    trained = train(task, tmp_path / "run", quiet)
    assert isinstance(trained, AToMNet)
    openings = predict_openings(trained, learnt, [0, 1, 2], n_steps=6)
    assert openings.shape == (3, 24)
    for curve in openings:
        assert float(torch.corrcoef(torch.stack([curve, learnt.opening]))[0, 1]) > 0.9

    loaded = AudioToMotion.from_pretrained(tmp_path / "run" / "weights")
    assert loaded.name == "atom" and isinstance(loaded.model, AToMNet)
    stored = predict_openings(loaded.model, learnt, [0], n_steps=6)[0]
    assert (stored - openings[0]).abs().max() < 0.1 * openings[0].std()  # bfloat16
    other, _ = speech([clip("b", 4)])
    load(other, str(tmp_path / "run" / "weights"))
    torch.testing.assert_close(other.space.lip_decoder, loaded.model.space.lip_decoder)
    draw_samples(trained, [learnt], tmp_path / "strip.png")
    assert (tmp_path / "strip.png").stat().st_size > 0


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    net, _ = speech([clip("a", 0)])
    save(net, HeadPrior(), PLAIN, tmp_path)
    with pytest.raises(InputError, match="don't fit"):
        load(AToMNet(replace(CONFIG, width=16)), str(tmp_path))


def test_the_loss_is_finite_for_a_batch_that_hears_nothing() -> None:
    net, data = speech([clip("a", 0)], replace(PLAIN, audio_dropout=1.0))
    batch = {key: torch.stack([data[0][key], data[1][key]]) for key in data[0]}
    assert not batch["has_audio"].any()
    terms = make_loss(PLAIN, net.space, 1000)(net, batch, Generator().manual_seed(0))
    value: Tensor = torch.stack([*terms.values()]).sum()
    value.backward()
    assert math.isfinite(float(value.detach()))
