from a2m.regression import RegressionConfig
from a2m.regression_train import TrainConfig
from benchmarks.folds import left_out
from tests.a2m.tiny import clip


def test_every_clip_is_judged_once_by_a_network_that_does_not_know_its_person() -> None:
    clips = [clip(f"c{k}", k, 40, person=f"p{k // 2}") for k in range(6)]
    small = RegressionConfig(n_components=2, n_members=1, conv_width=8, gru_width=8)
    options = TrainConfig(steps=2, batch=2, words_share=0.0)
    found = left_out(clips, small, options, None)
    assert sorted(found) == [c.name for c in clips]
    # What a fold's own clips look like makes no difference to what is said of them.
    changed = [clip("c0", 9, 40, person="p0"), *clips[1:]]
    assert left_out(changed, small, options, None)["c1"] == found["c1"]
