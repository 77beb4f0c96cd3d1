"""The benchmark of ARKit's curves, on people whose mouths and lids are known to move."""

import sys
from pathlib import Path

import pytest

from benchmarks import curves
from tests.tiny_data import write_data


def test_mouths_and_blinks_of_made_up_people_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", [(f"x_0{k}", f"person{k}", "test", "talking", 60) for k in range(2)])
    monkeypatch.setattr(sys, "argv", ["curves", "--data", str(data)])
    curves.main()
    lines = {
        line.split("|")[1].strip(): line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line
    }
    moved, left = (float(cell.split()[0]) for cell in lines["lips"][2:4])
    assert 0 < left < moved
    least = {title: float(cells[3]) for title, cells in lines.items() if "eyeBlink" in title or "jawOpen" in title}
    assert least["correlation of jawOpen with the mouth's opening"] > 0.8
    assert least["eyeBlink's peak in a blink"] > least["eyeBlink elsewhere"] + 0.3
