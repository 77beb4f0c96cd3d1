"""The index of a data folder: rows as they stand, and one sentence for what is not there."""

from pathlib import Path

import pytest

from common.clip_index import is_word, read_index
from common.errors import InputError

HEADER = "clip_id,person,split,kind\n"


def test_rows_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text(HEADER + "b,p1,train,talking\nlrwar_a,p2,val,silent\n")
    rows = read_index(tmp_path, "kind")
    assert [(row["clip_id"], row["kind"]) for row in rows] == [("b", "talking"), ("lrwar_a", "silent")]
    assert [is_word(row["clip_id"]) for row in rows] == [False, True]


@pytest.mark.parametrize("text", [None, "", "clip_id,person\nx,y\n", HEADER])
def test_a_missing_index_or_column_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "index.csv").write_text(text)
    with pytest.raises(InputError, match=r"index\.csv"):
        read_index(tmp_path, "overlay")
