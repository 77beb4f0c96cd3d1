"""Reads a C3D file with ezc3d, in a process of its own; `common.export.c3d` starts it: `python -P c3d_reader.py PATH`.

ezc3d is C++: a damaged file may crash it, or have it ask for any amount of memory, and that must take down no more than
this. Nothing of the project is imported. What was found goes to stdout as an .npz, what went wrong to stderr as a line.
"""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np

_MEMORY_BYTES, _CPU_S = 3 << 30, 5
_MEMORY_PER_BYTE, _BYTES_PER_CPU_S = 40, 4 << 20  # of the file: three times, six times what ezc3d needs


def arrays(path: str) -> dict[str, np.ndarray]:
    """points: [T, P, 3] float32, as in the file; labels: [P]; channels: [T, A], the first sample of each frame; and

    texts and numbers of the parameters: units, channel_labels, channel_units, rate, x_screen, y_screen, header.
    """
    import ezc3d

    content = ezc3d.c3d(path)
    parameters, data = content["parameters"], content["data"]
    n_frames = data["points"].shape[2]
    channels = data["analogs"][0]  # [A, T x samples]
    step = max(1, channels.shape[1] // max(1, n_frames))
    return {
        "points": np.ascontiguousarray(data["points"][:3].transpose(2, 1, 0), np.float32),
        "labels": _texts(parameters, "POINT", "LABELS"),
        "units": _texts(parameters, "POINT", "UNITS"),
        "rate": np.asarray(parameters["POINT"]["RATE"]["value"], np.float64),
        "channels": np.ascontiguousarray(channels[:, ::step].T, np.float64)[:n_frames],
        "channel_labels": _texts(parameters, "ANALOG", "LABELS"),
        "channel_units": _texts(parameters, "ANALOG", "UNITS"),
        "x_screen": _texts(parameters, "POINT", "X_SCREEN"),
        "y_screen": _texts(parameters, "POINT", "Y_SCREEN"),
        "header": _texts(parameters, "DUET", "HEADER"),
    }


def _texts(parameters: Any, group: str, name: str) -> np.ndarray:
    """All lines of a parameter, which goes on in NAME2, NAME3 and so on where it is long."""
    lines: list[str] = []
    found, number = parameters.get(group, {}), 1
    while (parameter := found.get(name if number == 1 else f"{name}{number}")) is not None:
        lines += [str(line) for line in parameter["value"]]
        number += 1
    return np.array(lines, dtype=np.str_)


def _limit(path: str) -> None:
    """No more memory and time than a whole file of this size may need."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    size = Path(path).stat().st_size
    for what, most in (
        (resource.RLIMIT_AS, _MEMORY_BYTES + _MEMORY_PER_BYTE * size),
        (resource.RLIMIT_CPU, _CPU_S + size // _BYTES_PER_CPU_S),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def main(path: str) -> None:
    try:
        _limit(path)
        content = io.BytesIO()
        np.savez(content, **arrays(path))  # type: ignore[arg-type]
    except Exception as error:  # whatever the library throws
        print(" ".join(str(error).split())[:300] or type(error).__name__, file=sys.stderr)
        sys.exit(2)
    sys.stdout.buffer.write(content.getbuffer())


if __name__ == "__main__":
    main(sys.argv[1])
