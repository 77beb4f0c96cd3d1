"""The price of a short delay, and what a block costs."""

import torch

from a2m.model import AToMConfig, AToMNet
from a2m.streaming import Schedule
from benchmarks.performance import block_times, speech, streaming

TINY = AToMConfig(width=16, n_layers=1, n_heads=2, ff_width=16, window=16, overlap=4)


def test_every_block_of_a_recording_is_timed() -> None:
    net, schedule = AToMNet(TINY).eval(), Schedule.of(TINY, 6)
    times = list(block_times(net, speech(2.0), 6, n_steps=1))  # 50 frames
    whole = (50 - schedule.delay) // schedule.block + 1
    assert len(times) == whole + 1 and min(times) >= 0  # and what is left when the speech ends
    assert torch.equal(speech(30.0)[:100], speech(1.0)[:100])


def test_the_models_own_block_is_in_the_table_and_no_longer_one() -> None:
    table = streaming(AToMNet(TINY).eval(), [6, 99], n_steps=1, seconds=2.0)
    assert "| 6 frames | 4 | 0.32 s |" in table
    assert "| 12 frames | 2 | 0.56 s |" in table and len(table.splitlines()) == 4
