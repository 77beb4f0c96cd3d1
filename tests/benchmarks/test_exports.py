"""The table of what exports cost."""

from pathlib import Path

import pytest

from benchmarks.exports import GLTF, ROWS, Row, cost
from common.export import formats
from tests.common.export.takes import smooth_take


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_each_row_is_a_file_that_can_be_written(tmp_path: Path, row: Row) -> None:
    take_path = tmp_path / "take.npz"
    smooth_take(30).motion().save(take_path)
    spent, before, peak, size = (float(cell.split()[0]) for cell in cost(row, take_path, 30.0))
    assert spent >= 0 and 0 < before <= peak and size >= 0


def test_rows_are_all_that_can_be_written() -> None:
    assert {Path(row.name).suffix for row in ROWS} == set(formats.WRITTEN)
    assert GLTF in ROWS and sum(row.is_livelink for row in ROWS) == 1
