"""The index of a data folder (docs/data.md): a row for every clip, read in one place."""

import csv
from pathlib import Path

from common.errors import InputError
from common.files import check_input

INDEX_NAME = "index.csv"
WORDS_PREFIX = "lrwar_"  # single words (LRW-AR): another thing than running speech; labels are groups of people

Row = dict[str, str]


def read_index(data_dir: Path, *columns: str) -> list[Row]:
    """All rows of index.csv, in its order; InputError unless it has clip_id, person, split and these columns."""
    path = data_dir / INDEX_NAME
    check_input(path, "index of the data")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = sorted({"clip_id", "person", "split", *columns} - set(rows.fieldnames or ()))
        if missing:
            raise InputError(f"{path} has no column {missing[0]}: see docs/data.md.")
        return list(rows)


def is_word(clip_id: str) -> bool:
    """Whether a clip is one of single words, which last about a second."""
    return clip_id.startswith(WORDS_PREFIX)
