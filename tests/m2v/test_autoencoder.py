"""The autoencoder: planes of zeros are a blend of what is given, and planes say what that lacks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor

from common.errors import InputError
from common.triplane import TriPlane
from m2v.autoencoder import Autoencoder, AutoencoderConfig, load_autoencoder, save_autoencoder, shifted
from m2v.condition import FACTOR, Conditions, build
from m2v.denoiser import save_denoiser
from tests.m2v.tiny import AUTOENCODER, autoencoder, clips, conditions, denoiser, face, perturbed, picture, talking


def still_of(given: Conditions) -> Tensor:
    return repeat(given.reference, "b c h w -> b c s h w", s=given.warped.shape[1])


def some_planes(model: Autoencoder, given: Conditions) -> TriPlane:
    generator = torch.Generator().manual_seed(3)
    return model.zeros(given).map(lambda plane: torch.randn(plane.shape, generator=generator))


def test_before_training_a_frame_is_a_blend_of_the_warp_and_the_still_reference() -> None:
    model, given = autoencoder(), conditions()
    warped = rearrange(given.warped, "b s c h w -> b c s h w")
    expected = torch.lerp(still_of(given), warped, torch.sigmoid(torch.tensor(2.0)))
    for planes in (model.zeros(given), some_planes(model, given)):
        assert torch.allclose(model.decode(planes, given), expected, atol=1e-5)


def test_planes_are_an_eighth_of_the_side_whatever_the_clips_size() -> None:
    model = autoencoder()
    given = build(picture(64)[:, :48], face(), talking(3)).batched()
    planes = model.encode(clips(1, 3)[..., :48, :], given)
    assert planes.xy.shape == (1, AUTOENCODER.plane_channels, 48 // FACTOR, 64 // FACTOR)
    assert [p.shape for p in planes] == [p.shape for p in model.zeros(given)]
    assert model.decode(planes, given).shape == (1, 3, 3, 48, 64)


def test_shares_lie_between_0_and_1_and_differ() -> None:
    model, given = autoencoder(by=0.2), conditions()
    blend = model.blend(some_planes(model, given), given)
    assert blend.share.shape == (2, 1, 4, 64, 64) and blend.share.min() >= 0 and blend.share.max() <= 1
    assert blend.share.std() > 1e-3 and blend.shift.shape == (2, 4, 4, 16, 16)
    assert torch.equal(blend.frames, model.decode(some_planes(model, given), given))


def test_gradients_reach_all_weights_after_a_step() -> None:
    model, given, clip = autoencoder().train(), conditions(), clips()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    n = model.zeros(given).pack().shape[2]
    for _ in range(2):
        optimizer.zero_grad()
        pred, planes = model(clip, given, torch.zeros(2, AUTOENCODER.plane_channels, n), torch.ones(2, 2))
        ((pred - clip).square().mean() + planes.pack().square().mean()).backward()
        optimizer.step()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_an_item_does_not_depend_on_the_rest_of_its_batch() -> None:
    model, given, clip = autoencoder(by=0.05), conditions(3), clips(3)
    planes = model.encode(clip, given)
    decoded = model.decode(planes, given)
    for k in range(3):
        alone = model.encode(clip[k : k + 1], given[k : k + 1])
        assert torch.allclose(alone.pack(), planes.pack()[k : k + 1], atol=1e-4)
        assert torch.allclose(model.decode(alone, given[k : k + 1]), decoded[k : k + 1], atol=1e-4)


def test_training_without_planes_is_decoding_zeros() -> None:
    model, given = autoencoder(by=0.05), conditions()
    zeros = model.zeros(given)
    noise = torch.randn(zeros.pack().shape, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    pred, planes = model(clips(), given, noise, keep)
    assert torch.allclose(pred[0], model.decode(zeros, given)[0], atol=1e-5)
    assert not torch.allclose(pred[1], model.decode(zeros, given)[1], atol=1e-3)
    assert torch.allclose(planes.pack(), model.encode(clips(), given).pack(), atol=1e-5)  # the noise isn't in them
    quiet, _ = model(clips(), given, noise * 0, keep)
    assert torch.allclose(quiet, model.decode(planes.map(lambda p: p * keep[:, :1, None, None]), given), atol=1e-5)


def test_decoding_a_part_gives_that_part_of_the_whole() -> None:
    """Beyond the reach of the convolutions, about 100 pixels here; so crops can train what sees whole frames."""
    model = autoencoder(by=0.05)
    shown, targets = picture(288), talking(2, 288)
    whole, part = (build(shown, face(288), targets, window).batched() for window in (None, (0, 0, 256)))
    planes = some_planes(model, whole)
    n = 256 // FACTOR
    cut = TriPlane(planes.xy[..., :n, :n], planes.xt[..., :n], planes.yt[..., :n])
    a, b = model.decode(planes, whole), model.decode(cut, part)
    assert torch.allclose(a[..., :24, :24], b[..., :24, :24], atol=1e-4)
    assert not torch.allclose(a[..., 232:256, 232:256], b[..., 232:, 232:], atol=1e-3)


def test_planes_learn_what_the_conditions_cannot_tell() -> None:
    """Two clips of the same landmarks and reference, one with a light mouth, one with a dark one."""
    given = build(picture(32), face(32), talking(2, 32)).batched()
    given = Conditions(*(torch.cat([value, value]) for value in vars(given).values()))
    clip = repeat(given.reference, "b c h w -> b c s h w", s=2).clone()
    clip[0, :, :, 18:26, 12:20] += 0.5
    clip[1, :, :, 18:26, 12:20] -= 0.5
    model = autoencoder().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        noise = torch.randn(model.zeros(given).pack().shape, generator=generator)
        keep = (torch.rand(2, 2, generator=generator) < torch.tensor([0.8, 1.0])).float()
        pred, _ = model(clip, given, noise, keep)
        optimizer.zero_grad()
        (pred - clip).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        true, zero = (model.decode(p, given) for p in (model.encode(clip, given), model.zeros(given)))
    assert (true - clip).square().mean() < 0.3 * (zero - clip).square().mean()


def test_weights_come_back_from_a_folder(tmp_path: Path) -> None:
    model, given = autoencoder(by=0.05), conditions()
    save_autoencoder(model, tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert loaded.config == AUTOENCODER and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name
    planes = some_planes(model, given)
    change = loaded.decode(planes, given) - model.decode(planes, given)
    assert change.abs().mean() < 0.02 * model.decode(planes, given).std()


def test_other_weights_are_refused_in_a_sentence(tmp_path: Path) -> None:
    save_autoencoder(autoencoder(), tmp_path)
    with pytest.raises(InputError, match="don't fit this model"):
        load_autoencoder(tmp_path, AutoencoderConfig(widths=(32, 64)))
    with pytest.raises(InputError, match="nowhere"):
        load_autoencoder(tmp_path / "nowhere")
    save_denoiser(denoiser(), tmp_path / "other")
    for name in ("small/landmarks", tmp_path / "other"):
        with pytest.raises(InputError, match="does not hold an autoencoder"):
            load_autoencoder(name)


def test_half_precision_computes_the_same_to_its_rounding() -> None:
    model, given, clip = autoencoder(by=0.05), conditions(), clips()
    exact = model.decode(model.encode(clip, given), given)
    with torch.autocast("cpu", torch.bfloat16):
        planes = model.encode(clip, given)
        rough = model.decode(planes, given)
    assert planes.xy.dtype == torch.bfloat16 and rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.05 * exact.std()


def test_planes_do_not_depend_on_what_only_decodes() -> None:
    given, clip = conditions(), clips()
    model, learnt = autoencoder(by=0.05), autoencoder(by=0.05)
    for part in learnt.decoder_parts():
        perturbed(part, 0.1)
    planes = model.encode(clip, given)
    assert torch.equal(learnt.encode(clip, given).pack(), planes.pack())
    assert not torch.allclose(learnt.decode(planes, given), model.decode(planes, given), atol=1e-2)


def test_a_shift_looks_that_many_pixels_to_the_side() -> None:
    pictures = torch.arange(16.0).expand(1, 1, 16, 16) + 100 * torch.arange(16.0)[:, None]
    moved = shifted(pictures, torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4))
    assert torch.allclose(moved[..., 1:, :14], pictures[..., :-1, 2:], atol=1e-2)
    assert torch.allclose(shifted(pictures, torch.zeros(1, 2, 4, 4)), pictures, atol=1e-2)


def test_away_from_the_mouth_planes_say_nothing() -> None:
    model, given = autoencoder(by=0.2), conditions()
    deaf = replace(given, region=torch.zeros_like(given.region))
    assert torch.allclose(
        model.decode(some_planes(model, deaf), deaf), model.decode(model.zeros(deaf), deaf), atol=1e-5
    )
    assert not torch.allclose(model.decode(some_planes(model, given), given), model.decode(model.zeros(given), given))


def test_weights_from_before_the_shift_load(tmp_path: Path) -> None:
    older = autoencoder(replace(AUTOENCODER, has_shift=False), by=0.1)
    save_autoencoder(older, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["autoencoder"]["has_shift"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded, given = load_autoencoder(tmp_path), conditions()
    assert loaded.blend(loaded.zeros(given), given).shift.abs().max() == 0
