"""AToM-Net: what may and what may not reach what, masks, sizes, and the space it works in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from a2m.model import AToMConfig, AToMNet, Attention, Timed, rotate
from a2m.space import N_SLOW, MotionSpace, mirror_rest, mirror_slow
from common.face.model import LIP_STREAM, REST

TINY = AToMConfig(audio_dim=8, width=16, n_layers=2, n_heads=2, ff_width=16, n_encoder_layers=1, window=16, overlap=4)


def network(config: AToMConfig = TINY) -> AToMNet:
    torch.manual_seed(0)
    net = AToMNet(config).eval()
    for name, parameter in net.named_parameters():
        if ".films." in name:  # zero at first: nothing would come through
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def inputs(net: AToMNet, T: int, B: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x_t": torch.randn(B, T, net.space.n_values, generator=generator),
        "timesteps": torch.tensor([10, 900])[:B],
        "audio": torch.randn(B, T * net.config.n_audio_states, net.config.audio_dim, generator=generator),
        "reference": 0.1 * torch.randn(B, 68, 3, generator=generator),
        "is_frame": torch.ones(B, T, dtype=torch.bool),
        "has_audio": torch.ones(B, dtype=torch.bool),
    }


@pytest.mark.parametrize("n_states", [1, 2])
@torch.no_grad()
def test_padding_does_not_move_frames_that_are_there(n_states: int) -> None:
    net = network(replace(TINY, n_audio_states=n_states))
    short = inputs(net, 10)
    alone = net(**short)
    long = inputs(net, 16)  # noise in the padding, which must not be seen
    for key in ("x_t", "audio"):
        long[key][:, : short[key].shape[1]] = short[key]
    long |= {key: short[key] for key in ("timesteps", "reference", "has_audio")}
    long["is_frame"] = (torch.arange(16) < 10).expand(2, 16)
    torch.testing.assert_close(net(**long)[:, :10], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_sample_does_not_depend_on_the_rest_of_its_batch() -> None:
    net = network()
    both = inputs(net, 12)
    one = {key: value[1:] for key, value in both.items()}
    torch.testing.assert_close(net(**both)[1:], net(**one), atol=1e-5, rtol=0)


@torch.no_grad()
def test_speech_reaches_the_film_vector_of_the_lips_only() -> None:
    net = network()
    args = inputs(net, 12)
    vectors = []
    for audio in (args["audio"], 3 * args["audio"] + 1):
        condition = net.condition(audio, args["reference"], args["is_frame"], args["has_audio"])
        vectors.append(net.film_vectors(torch.zeros(2, 4 * TINY.width), condition))
    lips, rest, slow = (vectors[0] - vectors[1]).abs().amax(dim=(1, 2))
    assert lips > 1e-3
    assert rest == 0 and slow == 0


@torch.no_grad()
def test_in_the_first_layer_speech_moves_the_lips_before_the_streams_meet() -> None:
    net = network(replace(TINY, n_layers=1))
    hand_on = net.get_parameter("layers.0.back.weight")  # where the streams meet
    torch.nn.init.zeros_(hand_on)
    args = inputs(net, 12)
    lip = TINY.value_counts[0]
    change = (net(**args) - net(**(args | {"audio": 2 * args["audio"] + 1}))).abs().amax(dim=(0, 1))
    assert change[:lip].min() > 1e-4
    assert change[lip:].max() == 0


@torch.no_grad()
def test_dropped_speech_is_not_heard_and_dropped_reference_is_not_seen() -> None:
    net = network()
    args = inputs(net, 12) | {"has_audio": torch.tensor([True, False])}
    change = (net(**args) - net(**(args | {"audio": -args["audio"]}))).abs().amax(dim=(1, 2))
    assert change[0] > 1e-3 and change[1] == 0
    blind = network(replace(TINY, has_reference=False))
    torch.testing.assert_close(blind(**args), blind(**(args | {"reference": -args["reference"]})))


def test_rotary_positions_count_distances_only() -> None:
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(at: float, of: float) -> Tensor:
        return (rotate(q, torch.tensor([at])) * rotate(k, torch.tensor([of]))).sum()

    torch.testing.assert_close(score(3.0, 5.5), score(13.0, 15.5), atol=1e-5, rtol=1e-4)
    assert (score(3.0, 5.5) - score(3.0, 9.0)).abs() > 1e-3


@torch.no_grad()
def test_attention_to_timed_and_timeless_tokens_is_one_softmax_over_both() -> None:
    attention = Attention(TINY)
    generator = torch.Generator().manual_seed(0)
    x, heard, tokens = (torch.randn(2, n, 16, generator=generator) for n in (5, 7, 3))
    position, place = torch.arange(5.0), torch.arange(7.0)
    is_valid = torch.arange(7).expand(2, 7) < 6
    got = attention(x, position, Timed(heard, place, is_valid), tokens)

    expected = torch.zeros(2, 5, 16)
    q = attention.to_q(x)
    keys, values = attention.to_kv(torch.cat([heard, tokens], dim=1)).chunk(2, dim=-1)
    for b in range(2):
        for head in (slice(0, 8), slice(8, 16)):
            k, v = keys[b, :, head], values[b, :, head]
            timed = rotate(q[b, :, head], position) @ rotate(k[:7], place).mT
            timed[:, 6] = -torch.inf
            still = q[b, :, head] @ k[7:].mT
            expected[b, :, head] = (torch.cat([timed, still], dim=1) / 8**0.5).softmax(dim=1) @ v
    torch.testing.assert_close(got, attention.out(expected), atol=1e-5, rtol=0)


def test_switches_of_the_ablation_build_and_gradients_reach_every_parameter() -> None:
    for has_streams, has_slow in ((True, True), (False, True), (True, False), (False, False)):
        net = network(replace(TINY, has_streams=has_streams, has_slow=has_slow)).train()
        args = inputs(net, 8) | {"has_audio": torch.tensor([True, False])}
        args["is_known"] = torch.arange(8).expand(2, -1) < 3
        net(**args).square().mean().backward()
        missing = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
        assert missing == {"reference_encoder.0.attention.to_q.weight"}  # one token has nothing to choose from
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_paper_builds_with_the_published_sizes_on_the_meta_device() -> None:
    preset = OmegaConf.load(Path(__file__).parents[2] / "conf" / "train" / "a2m" / "model" / "paper.yaml")
    paper = AToMConfig(**{str(key): value for key, value in preset.items()})
    with torch.device("meta"):
        net = AToMNet(paper)
        args = inputs_on_meta(net)
    assert net.stream_sizes == [111, 93] and net.space.n_values == 204
    assert [layer.in_features for layer in net.streams_in] == [111, 93]
    assert net.audio_in.weight.shape == (512, 1024, 1) and net.reference_in.in_features == 204
    assert net.layers[0].get_parameter("feed_forward.0.weight").shape == (1024, 512)
    assert paper.n_heads == 8 and paper.dropout == 0.1 and paper.guidance_scale == 2.0
    assert len(net.audio_encoder) == len(net.reference_encoder) == 2 and len(net.layers) == 8
    assert net.get_parameter("layers.7.back.weight").shape == (2 * 512, 512)
    assert net(**args).shape == (2, 156, 204)


def inputs_on_meta(net: AToMNet) -> dict[str, Tensor]:
    return {
        "x_t": torch.empty(2, 156, net.space.n_values),
        "timesteps": torch.zeros(2, dtype=torch.int64),
        "audio": torch.empty(2, 312, 1024),
        "reference": torch.empty(2, 68, 3),
        "is_frame": torch.ones(2, 156, dtype=torch.bool),
        "has_audio": torch.ones(2, dtype=torch.bool),
    }


@pytest.mark.parametrize("change", [{"space": "pixels"}, {"width": 20, "n_heads": 4}, {"overlap": 9}, {"overlap": 0}])
def test_sizes_that_do_not_fit_together_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(TINY, **change)  # type: ignore[arg-type]


# ---- the space ------------------------------------------------------------------------------------------------------


def test_points_come_back_from_their_values() -> None:
    space = MotionSpace(111, 93, N_SLOW)
    generator = torch.Generator().manual_seed(0)
    lips, rest, slow = (torch.randn(5, *n, generator=generator) for n in ((37, 3), (31, 3), (7,)))
    for got, expected in zip(space.decode(space.encode(lips, rest, slow)), (lips, rest, slow), strict=True):
        torch.testing.assert_close(got, expected)


def test_mirrored_twice_is_as_it_was_and_the_opening_is_linear() -> None:
    rest, slow = torch.randn(4, len(REST), 3), torch.randn(4, N_SLOW)
    torch.testing.assert_close(mirror_rest(mirror_rest(rest)), rest)
    torch.testing.assert_close(mirror_slow(mirror_slow(slow)), slow)
    space = MotionSpace(111, 93, 0)
    values = torch.randn(6, 204)
    lips = space.decode_lips(values)
    gap = lips[:, LIP_STREAM.index(62), 1] - lips[:, LIP_STREAM.index(66), 1]
    torch.testing.assert_close(values @ space.opening_weights(), gap)
