"""The phonetic encoder's training: crops, the two losses, what is reported, and a corpus learnt by heart."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from a2m.phonetics.corpus import PARTS, Entry
from a2m.phonetics.encoder import Phonetic, PhoneticConfig, PhoneticEncoder
from a2m.phonetics.inventory import PHONES, feature_table
from a2m.phonetics.training import (
    UNKNOWN,
    PhoneticDataConfig,
    Utterance,
    Utterances,
    agreement,
    aligned,
    cut,
    draw_samples,
    make_loss,
    make_task,
    read_corpus,
    supervised,
    validate,
)
from common.errors import InputError
from common.trainer import TrainConfig, train

TINY = PhoneticConfig(width=32, dilations=(1, 2), bottleneck=16)
PLAIN = PhoneticDataConfig(crop_states=40, stretch=0.0, real_share=0.0)


def utterance(n_states: int, seed: int, is_real: bool = False) -> Utterance:
    """Each phone, of three or four states, is a pattern of bands of its own."""
    random = np.random.default_rng(seed)
    patterns = 2 * np.random.default_rng(0).normal(size=(len(PHONES), 64))
    phones = np.repeat(random.integers(0, len(PHONES), n_states), random.integers(3, 5, n_states))[:n_states]
    mel = patterns[phones.repeat(2)] + 0.1 * random.normal(size=(2 * n_states, 64))
    known = np.full(n_states, UNKNOWN) if is_real else phones
    return Utterance(mel.astype(np.float16), known.astype(np.int8))


def write_corpus(folder: Path, train: list[Utterance], held_out: list[Utterance]) -> None:
    """As `a2m.phonetics.corpus` does."""
    for name, utterances in zip(PARTS, (train, held_out), strict=True):
        path = folder / name
        path.mkdir(parents=True)
        phones = np.concatenate([u.phones for u in utterances])
        np.save(path / "mel.npy", np.concatenate([u.mel for u in utterances]))
        np.save(path / "phones.npy", phones)
        np.save(path / "sound.npy", np.ones(len(phones) // 2, bool))
        lengths = [len(u.phones) for u in utterances]
        firsts = np.cumsum([0, *lengths])[:-1].tolist()
        entries = [Entry(first, n, "", "", "") for first, n in zip(firsts, lengths, strict=True)]
        (path / "index.json").write_text(json.dumps({"utterances": [asdict(entry) for entry in entries]}))


def certain(phones: torch.Tensor, size: float) -> Phonetic:
    """Logits of somebody who knows."""
    table = feature_table()
    one_hot = torch.nn.functional.one_hot(phones, len(PHONES)).float()
    return Phonetic(torch.zeros(*phones.shape, 1), size * one_hot, size * (2 * table[phones] - 1))


def test_a_corpus_is_read_as_written_and_so_are_several(tmp_path: Path) -> None:
    parts = [utterance(n, n) for n in (20, 32, 44)]
    for name in ("a", "b"):
        write_corpus(tmp_path / name, parts[1:], parts[:1])
    train_part, held_out = read_corpus(tmp_path / "a")
    assert len(held_out) == 1 and np.array_equal(held_out[0].mel, parts[0].mel)
    assert all(np.array_equal(a.phones, b.phones) for a, b in zip(train_part, parts[1:], strict=True))
    assert [len(part) for part in read_corpus(tmp_path)] == [4, 2]
    with pytest.raises(InputError, match="no corpus"):
        read_corpus(tmp_path / "nowhere")


def test_a_cut_goes_on_in_the_next_utterance_and_from_the_last_to_the_first() -> None:
    parts = [utterance(n, n) for n in (5, 7, 4)]
    ends = np.cumsum([5, 7, 4])
    mel, phones = (np.concatenate([getattr(u, name) for u in parts] * 3) for name in ("mel", "phones"))
    for first in range(16):
        got_mel, got_phones = cut(parts, ends, first, 20)
        assert np.array_equal(got_mel, mel[2 * first : 2 * first + 40])
        assert np.array_equal(got_phones, phones[first : first + 20])


def test_a_crop_follows_from_its_number_and_its_phones_from_its_columns() -> None:
    data = Utterances([utterance(200, 1)], [], PhoneticDataConfig(crop_states=40), 3)
    again = Utterances([utterance(200, 1)], [], PhoneticDataConfig(crop_states=40), 3)
    patterns = torch.from_numpy(2 * np.random.default_rng(0).normal(size=(len(PHONES), 64))).float()
    for number in range(5):
        sample = data[number]
        assert all(torch.equal(sample[key], again[number][key]) for key in sample)
        assert sample["mel"].shape == (80, 64) and sample["phones"].shape == (40,)
        middle = sample["mel"].unflatten(0, (40, 2)).mean(dim=1)
        nearest = (middle[:, None] - patterns).square().mean(dim=-1).argmin(dim=1)
        assert (nearest == sample["phones"]).float().mean() > 0.8  # all but some at borders between phones
    assert not torch.equal(data[0]["mel"], data[1]["mel"])


def test_real_speech_has_its_share_and_its_weight_grows() -> None:
    options = PhoneticDataConfig(crop_states=10, real_share=0.4, agreement_from=100)
    data = Utterances([utterance(60, 1)], [utterance(50, 2, is_real=True)], options, 0)
    samples = [data[number] for number in range(300)]
    is_real = torch.stack([(sample["phones"] == UNKNOWN).all() for sample in samples]).float()
    assert 0.3 < is_real.mean() < 0.5
    assert [float(samples[k]["teaches"]) for k in (0, 50, 299)] == [0.0, 0.5, 1.0]


def test_who_knows_all_has_no_loss_and_unknown_states_count_nothing() -> None:
    phones = torch.arange(12).view(2, 6)
    right = supervised(certain(phones, 50.0), phones, feature_table(), PLAIN)
    assert all(value < 1e-4 for value in right.values())
    half = phones.clone()
    half[1] = UNKNOWN
    wrong = certain((phones + 1) % len(PHONES), 3.0)
    whole, known = (supervised(wrong, labels, feature_table(), PLAIN) for labels in (phones, half))
    first = supervised(Phonetic(*(each[:1] for each in wrong)), phones[:1], feature_table(), PLAIN)
    assert all(torch.isclose(known[name], first[name] / 2) and known[name] < whole[name] for name in known)


def test_states_at_the_lips_weigh_more() -> None:
    silent, closed = (torch.full((1, 6), PHONES.index(name)) for name in ("sil", "m"))
    for phones, factor in ((silent, 1.0), (closed, 3.0)):
        said = certain((phones + 1) % len(PHONES), 3.0)
        once, more = (
            supervised(said, phones, feature_table(), replace(PLAIN, lips_weight=weight)) for weight in (1.0, 3.0)
        )
        assert all(torch.isclose(more[name], factor * once[name]) for name in once)


def test_a_student_who_says_the_same_agrees_best() -> None:
    phones = torch.arange(12).view(2, 6)
    teacher, table, weight = certain(phones, 9.0), feature_table(), torch.ones(2)
    target = teacher.phone_logits.softmax(dim=-1)
    same, other = (agreement(each, target, table, weight, PLAIN) for each in (teacher, certain(phones + 1, 9.0)))
    assert 0 <= same < 0.1 < other
    assert agreement(teacher, target, table, torch.zeros(2), PLAIN) == 0


def test_a_teacher_who_always_says_the_same_is_made_to_doubt_and_silence_is_left_alone() -> None:
    usual = torch.full((len(PHONES),), 1 / len(PHONES))
    logits = torch.zeros(2, 50, len(PHONES))
    logits[..., 7] = 3.0
    before, after = logits.softmax(dim=-1), aligned(logits, usual)
    torch.testing.assert_close(after.sum(dim=-1), torch.ones(2, 50))
    assert after[..., 7].max() < 0.5 * before[..., 7].min()
    even = certain(torch.arange(1, len(PHONES))[None], 5.0).phone_logits  # says each phone once
    heard = even.softmax(dim=-1)
    torch.testing.assert_close(aligned(even, heard.mean(dim=(0, 1))), heard, atol=1e-5, rtol=0)
    silent = certain(torch.zeros(1, 50, dtype=torch.long), 5.0).phone_logits
    assert (aligned(silent, usual).argmax(dim=-1) == 0).all()


def test_real_speech_teaches_through_the_student_only() -> None:
    options = PhoneticDataConfig(crop_states=40, real_share=0.5, agreement_from=0)
    data = Utterances([utterance(200, 1)], [utterance(200, 2, is_real=True)], options, 0)
    net = PhoneticEncoder(TINY)
    samples = [data[k] for k in range(16)]
    is_real = torch.stack([(sample["phones"] == UNKNOWN).all() for sample in samples])
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
    terms = make_loss(options)(net, batch, Generator().manual_seed(0))
    assert terms.keys() == {"phones", "features", "agreement"} and is_real.any() and not is_real.all()
    terms["agreement"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    alone = {key: value[is_real] for key, value in batch.items()}
    assert sum(make_loss(options)(net, alone, Generator().manual_seed(0)).values()) == 0  # nobody knows anything


def test_what_is_reported_counts_states() -> None:
    class Knows(torch.nn.Module):
        """Hears the first state's phone as /p/ and all others as they are: known by the first band."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(()))

        def forward(self, mel: torch.Tensor) -> Phonetic:
            phones = mel[:, ::2, 0].round().long().clamp(0, len(PHONES) - 1)
            phones[:, 0] = PHONES.index("p")
            return certain(phones, 9.0)

    phones = np.array([PHONES.index(name) for name in ("sil", "m", "b", "a")], np.int8)
    mel = np.repeat(phones[:, None].repeat(2, axis=0), 64, axis=1).astype(np.float16)
    figures = validate(Knows(), [Utterance(mel, phones)], [])
    assert figures == pytest.approx(
        {"accuracy": 0.75, "accuracy_speaking": 1.0, "bilabial_recall": 1.0, "bilabial_precision": 2 / 3}
    )


def test_a_small_encoder_learns_a_small_corpus_and_its_run_goes_on(tmp_path: Path) -> None:
    parts, real = [utterance(300, k) for k in range(4)], [utterance(100, 9, is_real=True)]
    options = PhoneticDataConfig(crop_states=40, agreement_from=200)

    def task() -> object:
        return make_task(parts, [utterance(200, 8)], real, [utterance(80, 7)], TINY, options, "", 0)

    config = TrainConfig(
        n_steps=200, batch_size=8, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9, precision="no", device="cpu"
    )
    config.validate_every = config.sample_every = 0
    net = train(task(), tmp_path, config)  # type: ignore[arg-type]
    held_out = [utterance(200, 8)]
    assert validate(net, held_out, [])["accuracy"] > 0.5  # of 47 phones, none seen undisturbed
    loaded = PhoneticEncoder.from_pretrained(tmp_path / "weights")
    torch.testing.assert_close(
        validate(loaded, held_out, [])["accuracy"], validate(net, held_out, [])["accuracy"], atol=0.05, rtol=0
    )
    config.n_steps = 201
    train(task(), tmp_path, config)  # type: ignore[arg-type]
    draw_samples(loaded, [*held_out, real[0]], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
