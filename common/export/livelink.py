"""Live Link Face's CSV: ARKit's 52 curves and the turns of head and eyes, a row per key.

As the app's recordings have it and Unreal's LiveLinkFaceImporter reads it: the first row names the columns, the second
cell counts the 61 that follow, a row with an empty cell ends the import. Timecodes are hours:minutes:seconds:frames,
and those frames are sixtieths of a second with three decimals whatever the rate. Values have ten decimals.

Angles are radians. For the eyes the recordings show their signs (looking to the left is negative, down positive); gaze
is 0 here. For the head nobody documents them, and public recordings hold zeros. What is written is how three projects
by different people, who fed MetaHumans or were fed by the app, turn a head (R = Rz(roll) Ry(yaw) Rx(-pitch)): positive
is the face turned to the person's left, up, and the head tipped to the person's right.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from common.export.arkit import CURVES, Curves
from common.export.take import Take
from common.export.turns import euler_deg

TURNS = ("HeadYaw", "HeadPitch", "HeadRoll")
GAZE = ("LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch", "RightEyeRoll")
COLUMNS = (*(name[0].upper() + name[1:] for name in CURVES), *TURNS, *GAZE)
FRAMES_PER_S = 60  # of timecodes

_ROW = ",".join(["%s", str(len(COLUMNS)), *["%.10f"] * len(COLUMNS)]) + "\n"
_NAME = re.compile(r".+_\d+_.+", re.DOTALL)


def write(path: Path, take: Take, curves: Curves) -> None:
    """Write a take's curves; the head's place and what the curves leave over are not in this format."""
    pitch, yaw, roll = np.radians(euler_deg(take.rotation)).T
    gaze = np.zeros((take.n_keys, len(GAZE)))
    cells = np.round(np.column_stack([curves.values, yaw, -pitch, roll, gaze]), 10) + 0.0  # no minus before a zero
    with path.open("w", encoding="ascii", newline="") as file:
        file.write(",".join(("Timecode", "BlendShapeCount", *COLUMNS)) + "\n")
        file.writelines(_ROW % (timecode(time_s), *row) for time_s, row in zip(take.time_s, cells, strict=True))


def timecode(time_s: float) -> str:
    """h:m:s:FF.mmm, frames of a sixtieth of a second: 00:00:00:02.400 for 0.04 s."""
    seconds, thousandths = divmod(round(time_s * FRAMES_PER_S * 1000), FRAMES_PER_S * 1000)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours:02d}:{minutes:02d}:{seconds % 60:02d}:{thousandths // 1000:02d}.{thousandths % 1000:03d}"


def named(path: Path) -> Path:
    """The path with a name as the app gives them, <slate>_<take>_<subject>.csv; as it is where it has one."""
    return path if _NAME.fullmatch(path.stem) else path.with_name(f"{path.stem}_1_duet{path.suffix}")
