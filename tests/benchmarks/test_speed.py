"""What the table of speed reads and counts."""

import torch
from torch import nn

from benchmarks import speed


def test_times_are_read_from_the_programs_own_line() -> None:
    line = "outputs/a 3.0 s.mp4: 250 frames, 10.00 s (loading 4.2 s, speech to motion 0.5 s, motion to video 11.7 s)"
    assert speed.stage_times(line) == {"loading": 4.2, "speech to motion": 0.5, "motion to video": 11.7}


def test_products_and_sums_are_both_counted() -> None:
    linear, conv = nn.Linear(30, 20), nn.Conv2d(3, 8, 5, padding=2)
    assert speed.flops(lambda: linear(torch.zeros(7, 30))) == 2 * 7 * 30 * 20
    assert speed.flops(lambda: conv(torch.zeros(1, 3, 16, 16))) == 2 * 16 * 16 * 8 * 3 * 5 * 5
    assert speed.flops(lambda: torch.zeros(3) + 1) == 0


def test_work_under_inference_mode_is_counted() -> None:
    linear = nn.Linear(4, 4)

    @torch.inference_mode()
    def work() -> None:
        linear(torch.zeros(1, 4))

    assert speed.flops(work) == 2 * 4 * 4
