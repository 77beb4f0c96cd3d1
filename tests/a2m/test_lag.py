import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2m.data import person_folds, read_lags, realigned
from a2m.lag import MOST, evidence, most_likely
from common.errors import InputError
from tests.a2m.tiny import clip


def course(n: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(n + 8, generator=torch.Generator().manual_seed(seed))
    return noise.unfold(0, 9, 1).mean(dim=1)


def delayed(real: torch.Tensor, lag: int) -> torch.Tensor:
    """What is heard `lag` frames after it is seen; before and after it, something else."""
    return torch.roll(real, lag)


@given(lag=st.integers(-MOST, MOST), n=st.integers(60, 200))
def test_a_delay_is_found(lag: int, n: int) -> None:
    real = course(n)
    assert int(evidence(delayed(real, lag), real).argmax()) - MOST == lag


def test_a_mouth_that_does_the_opposite_is_no_evidence() -> None:
    rising = torch.arange(60.0)
    assert (evidence(-rising, rising) == 0).all()
    assert (evidence(course(5), course(5)) == 0).all()  # too short for any


def test_a_word_keeps_to_its_label_where_it_says_little() -> None:
    words = [clip(f"lrwar_{k}", k, person="p1") for k in range(5)]
    clear, faint = torch.zeros(2 * MOST + 1), torch.zeros(2 * MOST + 1)
    clear[MOST + 2], faint[MOST - 6] = 10.0, 0.5
    gains = {word.name: clear for word in words[:4]} | {words[4].name: faint}
    assert most_likely(gains, words)[words[4].name] == 2
    alone = clip("running", 9)
    assert most_likely({alone.name: faint}, [alone])[alone.name] == 0


@given(lag=st.integers(-30, 30))
def test_realigned_clips_keep_what_both_sides_have(lag: int) -> None:
    whole = clip("running", T=40)
    [moved] = realigned([whole], {"running": lag})
    lengths = {len(moved.mel), len(moved.sound), len(moved.lm3d), len(moved.lip_motion), len(moved.opening)}
    assert lengths == {40 - abs(lag)} == {len(moved.pose.scale)}
    first_heard = max(0, lag)
    assert torch.equal(moved.mel[0], whole.mel[first_heard])
    assert torch.equal(moved.opening[0], whole.opening[first_heard - lag])
    with pytest.raises(ValueError, match="40 frames"):
        whole.realigned(40)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(5, 50)), min_size=1, max_size=20))
def test_nobody_is_in_two_folds(rows: list[tuple[int, bool, int]]) -> None:
    clips = [clip(("lrwar_" if w else "r") + str(k), T=n, person=f"p{p}") for k, (p, w, n) in enumerate(rows)]
    folds = person_folds(clips, 3)
    assert all(0 <= fold < 3 for fold in folds)
    by_person: dict[str, set[int]] = {}
    for each, fold in zip(clips, folds, strict=True):
        by_person.setdefault(each.person, set()).add(fold)
    assert all(len(folds) == 1 for folds in by_person.values())


@pytest.mark.parametrize("text", ["[]", '{"a": 0.5}', '{"a": true}', "{", "\x00"])
def test_what_is_no_file_of_lags_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "lags.json"
    path.write_text(text)
    with pytest.raises(InputError, match="holds no lags"):
        read_lags(path)
    path.write_text(json.dumps({"a": -2}))
    assert read_lags(path) == {"a": -2}
    with pytest.raises(InputError):
        read_lags(tmp_path / "none.json")
