"""Live Link Face's CSV: ARKit's 52 curves and the turns of head and eyes, a row per key.

As the app's recordings have it and Unreal's LiveLinkFaceImporter reads it: the first row names the columns, the second
cell counts the 61 that follow, a row with an empty cell ends the import. Timecodes are hours:minutes:seconds:frames,
and those frames are sixtieths of a second with three decimals whatever the rate. Values have ten decimals.

Angles are radians, those of Unreal's FRotator of ARKit's rotation, R = Ry(-yaw) Rx(pitch) Rz(-roll): positive is turned
to the person's right, down, and tipped to the person's left. For the eyes public recordings show it (beside
EyeLookOutLeft yaw is negative, beside EyeLookDown pitch positive, and rolls fit); gaze is 0 here. For the head it is
taken over from them: nobody documents it, and those recordings hold zeros.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from common.export.arkit import CURVES, Curves
from common.export.take import Take
from common.face.rotations import euler_rad

HEAD = ("HeadYaw", "HeadPitch", "HeadRoll")
GAZE = ("LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch", "RightEyeRoll")
COLUMNS = (*(name[0].upper() + name[1:] for name in CURVES), *HEAD, *GAZE)
FRAMES_PER_S = 60  # of timecodes

_ROW = ",".join(["%s", str(len(COLUMNS)), *["%.10f"] * len(COLUMNS)]) + "\n"
_NAME = re.compile(r".+_\d+_.+", re.DOTALL)


def write(path: Path, take: Take, curves: Curves) -> None:
    """Write a take's curves; the head's place and what the curves leave over are not in this format."""
    gaze = np.zeros((take.n_keys, len(GAZE)))
    cells = np.round(np.column_stack([curves.values, turns_rad(take.rotation), gaze]), 10) + 0.0  # no minus before 0
    with path.open("w", encoding="ascii", newline="") as file:
        file.write(",".join(("Timecode", "BlendShapeCount", *COLUMNS)) + "\n")
        file.writelines(_ROW % (timecode(time_s), *row) for time_s, row in zip(take.time_s, cells, strict=True))


def turns_rad(rotation: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll [T, 3] of rotations [T, 3, 3], without leaps of whole turns."""
    angles = euler_rad(torch.from_numpy(np.ascontiguousarray(rotation)), "YXZ").numpy()
    return np.unwrap(angles, axis=0) * [-1, 1, -1]


def timecode(time_s: float) -> str:
    """h:m:s:FF.mmm, frames of a sixtieth of a second: 00:00:00:02.400 for 0.04 s."""
    seconds, thousandths = divmod(round(time_s * FRAMES_PER_S * 1000), FRAMES_PER_S * 1000)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours:02d}:{minutes:02d}:{seconds % 60:02d}:{thousandths // 1000:02d}.{thousandths % 1000:03d}"


def named(path: Path) -> Path:
    """The path with a name as the app gives them, <slate>_<take>_<subject>.csv; as it is where it has one."""
    return path if _NAME.fullmatch(path.stem) else path.with_name(f"{path.stem}_1_duet{path.suffix}")
