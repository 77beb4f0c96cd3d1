"""C3D: the posed landmarks as 68 named markers, millimetres, and the head as analog channels beside them.

The format is c3d.org's user guide. Frames are counted from 1; numbers are float32. Motion capture mostly has +Z up; we
keep a take's axes, +Y up, and say so in POINT:X_SCREEN and Y_SCREEN (the axes that go to the right and up). The head's
place and turns are six channels, one sample a frame, so that 68 markers stay 68. What else a take holds is JSON in a
group of its own, DUET:HEADER. ezc3d (extra `export`) writes, and reads in a process of its own (`c3d_reader`).
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.export import c3d_reader, rates
from common.export.points import POINT_NAMES
from common.export.take import Take, plain_header
from common.export.turns import euler_deg, from_euler_deg
from common.face.model import RIGID
from common.files import reading

MM_PER_M = 1000.0
MOST_FRAMES = 65_535  # the header's 16 bits; more is possible by conventions that few tools know
CHANNELS = {"head_x": "mm", "head_y": "mm", "head_z": "mm", "head_pitch": "deg", "head_yaw": "deg", "head_roll": "deg"}

_METRES = {"mm": 1e-3, "cm": 1e-2, "dm": 0.1, "m": 1.0, "in": 0.0254}
_AXES = {sign + "XYZ"[i]: (-1.0 if sign == "-" else 1.0) * np.eye(3)[i] for i in range(3) for sign in ("+", "-", "")}
_LINE, _LINES = 120, 100  # of the header: characters, lines of one parameter, which holds at most 64 KB
_MOST_HEADER = 90_000  # characters; all parameters have 127 KB
_MAX_BYTES = 1 << 30
_TIMEOUT_S = 180.0
_PROCESSORS = (84, 85, 86)  # Intel, DEC, MIPS
_BLOCK = 512  # bytes


def write(path: Path, take: Take) -> None:
    """Raises InputError where the take is longer than the format allows."""
    import ezc3d

    if take.n_keys > MOST_FRAMES:
        minutes = MOST_FRAMES / take.fps // 60
        raise InputError(
            f"C3D holds {MOST_FRAMES} frames, {minutes:.0f} minutes at {take.fps:.6g} a second, and this take has "
            f"{take.n_keys}: cut the speech into parts, choose a lower --fps, or export to another format."
        )
    markers = MM_PER_M * take.posed
    content = ezc3d.c3d()
    points, analog = content["parameters"]["POINT"], content["parameters"]["ANALOG"]
    points["UNITS"]["value"] = ["mm"]
    points["RATE"]["value"] = analog["RATE"]["value"] = [take.fps]
    points["LABELS"]["value"] = list(POINT_NAMES)
    analog["LABELS"]["value"] = list(CHANNELS)
    analog["UNITS"]["value"] = list(CHANNELS.values())
    content.add_parameter("POINT", "X_SCREEN", "+X")
    content.add_parameter("POINT", "Y_SCREEN", "+Y")
    lines = _header_lines(take)
    for number, start in enumerate(range(0, len(lines), _LINES), 1):
        content.add_parameter("DUET", "HEADER" if number == 1 else f"HEADER{number}", lines[start : start + _LINES])
    content["data"]["points"] = np.ascontiguousarray(markers.transpose(2, 1, 0))  # [3, 68, T]
    turns = (euler_deg(take.rotation) + 180) % 360 - 180  # whole turns would cost float32 its last digits
    head = np.column_stack([MM_PER_M * take.position, turns])  # [T, 6]
    content["data"]["analogs"] = np.ascontiguousarray(head.T)[None]
    written = path if path.suffix == ".c3d" else path.with_name(f"{path.name}.c3d")  # ezc3d knows no other suffix
    content.write(str(written))
    if written.stat().st_size < 4 * take.n_keys * (4 * len(POINT_NAMES) + len(CHANNELS)):
        written.unlink()
        raise OSError("it is cut short: no room")  # the library doesn't say
    written.replace(path)


def read(path: Path) -> Take:
    """What `write` wrote and somebody edited, or 68 markers of these names by anybody; raises InputError.

    Markers count, found by name, in any unit and order, also as "subject:lip_48". The head is that of the channels;
    where they are gone, or the file has other axes than ours, it follows from the points that move with the skull.
    """
    with reading(path, "C3D file"):
        return _take(_content(path))


def aligned(posed: np.ndarray, face: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rotation [T, 3, 3] and position [T, 3] that bring `face` [68, 3] closest to `posed` [T, 68, 3].

    Least squares over the points that move with the skull, in closed form (Kabsch 1976; Umeyama 1991, eq. 40-43).
    """
    still, moved = face[RIGID, :], posed[:, RIGID]
    still_mean, moved_mean = still.mean(axis=0), moved.mean(axis=1)
    cross = (moved - moved_mean[:, None]).swapaxes(1, 2) @ (still - still_mean)  # [T, 3, 3]
    left, _, right = np.linalg.svd(cross)
    signs = np.ones((len(posed), 3))
    signs[:, 2] = np.linalg.det(left @ right)
    rotation = (left * signs[:, None]) @ right
    return rotation, moved_mean - rotation @ still_mean


def _take(content: dict[str, np.ndarray]) -> Take:
    """A take of what `c3d_reader.arrays` found; raises ValueError, KeyError or TypeError where it is none."""
    axes = _axes(content)
    posed = _markers(content) @ axes.T
    (fps,) = content["rate"].tolist()
    text = "".join(content["header"].tolist())
    header: dict[str, Any] = json.loads(text) if text else plain_header(rates.exact(fps))
    if abs(fps / float(header["fps"]) - 1) > 1e-4:  # somebody has resampled it; float32 knows rates to 1e-7
        header["fps"] = rates.exact(fps)
    names = content["channel_labels"].tolist()[: content["channels"].shape[1]]
    if set(CHANNELS) <= set(names) and np.array_equal(axes, np.eye(3)):
        columns = [names.index(name) for name in CHANNELS]
        head = content["channels"][:, columns]
        unit = content["channel_units"].tolist()[columns[0]] if len(content["channel_units"]) > columns[0] else "mm"
        rotation, position = from_euler_deg(head[:, 3:]), _METRES.get(unit.lower(), 1e-3) * head[:, :3]
    else:
        known = header.get("reference") or {"points_m": header["mean_m"]}
        rotation, position = aligned(posed, np.asarray(known["points_m"], np.float64).reshape(len(POINT_NAMES), 3))
        if not text:  # a stage has its own axes, whichever way is up there; ours are those of the head that rests
            posed, position = posed @ rotation[0], position @ rotation[0]
            rotation = rotation[0].T @ rotation
    if not text:
        posed, position = posed - position[0], position - position[0]
    return Take.of_header(header, (posed - position[:, None]) @ rotation, rotation, position)


def _markers(content: dict[str, np.ndarray]) -> np.ndarray:
    """[T, 68, 3] in metres, in iBUG's order; the file's axes."""
    labels = content["labels"].tolist()[: content["points"].shape[1]]
    names = [label.rsplit(":", 1)[-1].strip().lower() for label in labels]
    if missing := [name for name in POINT_NAMES if name not in names]:
        raise ValueError(f"it lacks {len(missing)} of {len(POINT_NAMES)} markers, {missing[0]} the first")
    units = content["units"].tolist()
    unit = units[0].strip().lower() if units else "mm"
    if unit not in _METRES:
        raise ValueError(f"its POINT:UNITS are {unit!r}, not one of {', '.join(_METRES)}")
    markers = content["points"][:, [names.index(name) for name in POINT_NAMES]].astype(np.float64)
    if len(markers) == 0:
        raise ValueError("it has no frames")
    gaps = ~np.isfinite(markers).all(axis=2)
    if gaps.any():
        frame, point = np.argwhere(gaps)[0]
        raise ValueError(
            f"{POINT_NAMES[point]} is not seen in frame {frame + 1}, and {gaps.sum() - 1} gaps more: fill them"
        )
    return _METRES[unit] * markers


def _axes(content: dict[str, np.ndarray]) -> np.ndarray:
    """[3, 3] whose rows are the file's axes that go to the right, up, and towards the viewer; ours where unsaid."""
    right, up = (
        _AXES.get("".join(content[name].tolist()).strip().upper(), own)
        for name, own in (("x_screen", _AXES["X"]), ("y_screen", _AXES["Y"]))
    )
    return np.eye(3) if right @ up else np.stack([right, up, np.cross(right, up)])


def _content(path: Path) -> dict[str, np.ndarray]:
    """`c3d_reader.arrays` of a file; raises ValueError where it isn't C3D or can't be read."""
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES >> 30} GiB")
    with path.open("rb") as file:
        head = file.read(_BLOCK)
        file.seek(_BLOCK * max(0, head[0] - 1))
        parameters = file.read(4)
    if head[1:2] != b"\x50" or len(parameters) < 4 or parameters[3] not in _PROCESSORS:
        raise ValueError("it doesn't begin as C3D files do")
    if parameters[3] == _PROCESSORS[0] and (n_missing := _stated_bytes(head) - size) > _BLOCK:
        raise ValueError(f"it is cut off: {n_missing} bytes are missing")  # the library reads the frames that are left
    command = [sys.executable, "-P", c3d_reader.__file__, str(path.absolute())]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads reserve memory
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, env=alone, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError("reading it takes too long") from error
    if done.returncode == 2:
        raise ValueError(done.stderr.decode(errors="replace").strip().split(". ")[0].rstrip("."))
    try:
        with np.load(io.BytesIO(done.stdout), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError("its content is damaged") from error


def _stated_bytes(head: bytes) -> int:
    """The size of a file of Intel's numbers by its first block; 0 where that can't say how many frames there are."""
    if len(head) < _BLOCK:
        return 0
    n_points, n_channels, first, last, _, scale, start = struct.unpack("<2x5HfH", head[:18])
    if last == MOST_FRAMES:  # or more
        return 0
    width = 4 if scale < 0 else 2  # bytes: float32, else integers
    return _BLOCK * (start - 1) + max(0, last - first + 1) * width * (4 * n_points + n_channels)


def _header_lines(take: Take) -> list[str]:
    """A take's header as lines without spaces, which C3D files lose at the end of a line; all ASCII."""
    header = take.header()
    if len(_packed(header)) > _MOST_HEADER:
        header["provenance"] = {}
    text = _packed(header)
    return [text[start : start + _LINE] for start in range(0, len(text), _LINE)]


def _packed(header: dict[str, Any]) -> str:
    return json.dumps(header, separators=(",", ":")).replace(" ", "\\u0020")
