"""Landmarks as CSV, JSON and NPZ: our landmark format, described for its users in docs/animation/landmarks.md.

Every key is in the file twice: *frontal* points with the head's position and rotation beside them, which is what
counts when the file is read again, and *posed* points, where they are in the world, which are there to look at. Metres,
seconds; axes are a take's (`common.export.take`). Text is exact to 0.05 µm, microseconds and better than a microradian.
A CSV has the head's turns in degrees, which its editors understand; a JSON has quaternions, which programs do.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from scipy.spatial.transform import Rotation

from common.export import rates
from common.export.points import POINT_NAMES
from common.export.take import Take, plain_header
from common.export.turns import TURNS, euler_deg, from_euler_deg
from common.face.model import N_POINTS
from common.files import reading

WHAT = "landmark file"
FORMAT = "duet landmarks 1"
UNITS = "metres, seconds"
AXES = "right-handed: x to the picture's right (the person's left), y up, z towards the camera, where a face looks"

HEAD_COLUMNS = ("head_x_m", "head_y_m", "head_z_m", "head_pitch_deg", "head_yaw_deg", "head_roll_deg")
FRONTAL_COLUMNS, POSED_COLUMNS = (
    tuple(f"{kind}_{name}_{axis}" for name in POINT_NAMES for axis in "xyz") for kind in ("frontal", "posed")
)

_MAX_BYTES = 2 << 30  # five hours of either text at 25 keys a second; a larger file is something else
_MAX_LINE = 1 << 20  # characters of a header's line
_RATE_SLACK = 5e-4  # by which time_s, in microseconds, may miss the rate that a header states: 24 is not 23.976


def write_csv(path: Path, take: Take) -> None:
    """Comments that say what is what, a line of names, a line of numbers for each key."""
    values = np.column_stack([np.arange(take.n_keys), take.time_s, take.position, euler_deg(take.rotation)])
    row = ",".join(["%d", "%.6f", *["%.7f"] * (len(HEAD_COLUMNS) + 2 * len(FRONTAL_COLUMNS))]) + "\n"
    with path.open("w", encoding="utf-8", newline="\n") as file:
        # A comma is followed by a space: a spreadsheet that cuts these lines at commas can be read again.
        file.writelines(f"# {key}: {text}\n" for key, text in _description().items())
        file.write(f"# header: {json.dumps(take.header(), ensure_ascii=False)}\n")
        file.write(",".join(["frame", "time_s", *HEAD_COLUMNS, *FRONTAL_COLUMNS, *POSED_COLUMNS]) + "\n")
        for key in zip(values, take.points, take.posed, strict=True):
            file.write(row % tuple(np.concatenate([part.ravel() for part in key]).tolist()))


def read_csv(path: Path) -> Take:
    """What `write_csv` wrote and somebody edited; raises InputError, which names the file.

    Columns are found by their names, in any order; those of posed points, and `frame`, are not read. Where the comments
    are gone the face is nobody's (`plain_header`). Commas, semicolons or tabs between cells.
    """
    with reading(path, WHAT), path.open(encoding="utf-8-sig", newline="") as file:
        _check_size(path)
        header, names, delimiter = _csv_head(file)
        wanted = [*HEAD_COLUMNS, *FRONTAL_COLUMNS]
        if "BlendShapeCount" in names:
            raise ValueError("it is Live Link Face's, whose curves don't come back as points")
        if missing := [name for name in wanted if name not in names]:
            raise ValueError(f"it lacks {len(missing)} of {len(wanted)} columns, {missing[0]} the first")
        wanted += ["time_s"] * ("time_s" in names)
        columns = [names.index(name) for name in wanted]
        if (first := _skip_blank(file)) is None:
            raise ValueError("it has names of columns but no keys")
        values = np.loadtxt(_with(first, file), delimiter=delimiter, usecols=columns, ndmin=2, quotechar='"')
        head, points = values[:, :6], values[:, 6 : 6 + 3 * N_POINTS].reshape(-1, N_POINTS, 3)
        time_s = values[:, -1] if "time_s" in names else None
        return _take(header, time_s, points, from_euler_deg(head[:, 3:]), head[:, :3])


def write_json(path: Path, take: Take) -> None:
    """One object; `keys` is a list of one object for each key, a line each."""
    triples = "[" + ",".join(["[%.7f,%.7f,%.7f]"] * N_POINTS) + "]"
    row = (
        '{"time_s":%.6f,"position":[%.7f,%.7f,%.7f],"rotation":[%.9f,%.9f,%.9f,%.9f],'
        f'"frontal":{triples},"posed":{triples}}}'
    )
    with path.open("w", encoding="utf-8", newline="\n") as file:
        description = {**_description(), "names": POINT_NAMES, "header": take.header()}
        file.write("{\n")
        file.writelines(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)},\n" for k, v in description.items())
        file.write('"keys": [\n')
        keys = zip(take.time_s[:, None], take.position, take.quaternion, take.points, take.posed, strict=True)
        for number, key in enumerate(keys):
            file.write(",\n" * (number > 0) + row % tuple(np.concatenate([part.ravel() for part in key]).tolist()))
        file.write("\n]\n}\n")


def read_json(path: Path) -> Take:
    """What `write_json` wrote and somebody edited; raises InputError, which names the file.

    Of a key `position`, `rotation` (x, y, z, w, of any length) and `frontal` count, and `time_s` where it is there.
    """
    with reading(path, WHAT):
        _check_size(path)
        content = json.loads(path.read_text("utf-8-sig"), object_hook=_packed)
        keys = content["keys"] if isinstance(content, dict) else None
        if not isinstance(keys, list) or not keys or not all(isinstance(key, dict) for key in keys):
            raise ValueError("its keys are not a list of at least one")
        points, rotation, position = (np.stack([key[name] for key in keys]) for name in _JSON_SHAPES)
        time_s = np.array([key["time_s"] for key in keys], np.float64) if "time_s" in keys[0] else None
        return _take(content.get("header"), time_s, points, Rotation.from_quat(rotation).as_matrix(), position)


def write_npz(path: Path, take: Take) -> None:
    """A Motion file, which `Motion.load` reads, and beside its arrays the same in metres, for the eye."""
    arrays = {
        **take.motion().arrays(),
        "time_s": take.time_s,
        "position_m": take.position.astype(np.float32),
        "frontal_m": take.points.astype(np.float32),
        "posed_m": take.posed.astype(np.float32),
        "names": np.array(POINT_NAMES),
        **{key: np.array(text) for key, text in _description().items()},
    }
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


_JSON_SHAPES = {"frontal": (N_POINTS, 3), "rotation": (4,), "position": (3,)}


def _description() -> dict[str, str]:
    return {"format": FORMAT, "units": UNITS, "axes": AXES, "turns": TURNS}


def _check_size(path: Path) -> None:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES >> 30} GiB")


def _csv_head(file: TextIO) -> tuple[dict[str, Any] | None, list[str], str]:
    """The header among a CSV's comments, None where there is none; the names of its columns, what lies between."""
    header = None
    while (line := _skip_blank(file)) is not None:
        cells = next(csv.reader([line]))
        if not cells[0].startswith("#"):
            delimiter = next((mark for mark in ",;\t" if mark in line), ",")
            return header, [name.strip() for name in next(csv.reader([line], delimiter=delimiter))], delimiter
        comment = ",".join(cells).lstrip("# ").rstrip(", \r\n")  # a spreadsheet had cut it, and filled up the row
        if comment.startswith("header:"):
            header = json.loads(comment.removeprefix("header:"))
    raise ValueError("it has no line of names")


def _skip_blank(file: TextIO) -> str | None:
    """The next line with something in it, None at the end of the file."""
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise ValueError("a line of it has no end")
        if line.strip():
            return line
    return None


def _with(first: str, rest: TextIO) -> Iterator[str]:
    yield first
    yield from rest


def _packed(value: dict[str, Any]) -> dict[str, Any]:
    """An object just read: a key's lists become arrays at once (they would be ten times as large), posed ones go."""
    if "frontal" not in value:
        return value
    for name, shape in _JSON_SHAPES.items():
        array = np.array(value[name], np.float64)
        if array.shape != shape:
            raise ValueError(f"{name} of a key must be {list(shape)} numbers, got {list(array.shape)}")
        value[name] = array
    value.pop("posed", None)
    return value


def _take(
    header: dict[str, Any] | None,
    time_s: np.ndarray | None,
    points: np.ndarray,
    rotation: np.ndarray,
    position: np.ndarray,
) -> Take:
    """Raises what `Take.of_header` raises, and ValueError where times are no rate."""
    header = dict(plain_header(_rate(time_s, None)) if header is None else header)
    header["fps"] = _rate(time_s, float(header["fps"]))
    return Take.of_header(header, points, rotation, position)


def _rate(time_s: np.ndarray | None, stated_fps: float | None) -> float:
    """Keys a second: as stated, unless times say something else; raises ValueError where neither can tell."""
    if time_s is None or len(time_s) < 2:
        if stated_fps is None:
            raise ValueError("nothing in it says how many keys a second has")
        return stated_fps
    steps = np.diff(time_s)
    step = (time_s[-1] - time_s[0]) / len(steps)
    if not step > 0 or not (np.abs(steps - step) < step / 2).all():
        leap = int(np.argmax(~(np.abs(steps - step) < step / 2)))
        raise ValueError(f"time_s doesn't go on evenly from row {leap + 1} to {leap + 2}")
    if stated_fps is not None and abs(step * stated_fps - 1) < _RATE_SLACK:
        return stated_fps
    return rates.exact(round(1 / step, 3))
