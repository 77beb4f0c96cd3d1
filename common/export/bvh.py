"""BVH: the head as one joint that turns and moves, for skeletons to follow.

Centimetres and degrees. The channels' order is the order of the matrices (Meredith and Maddock 2001, "Motion capture
file formats explained", section on BVH): T(x, y, z) Rz(roll) Ry(yaw) Rx(pitch), +Y up, +Z where an unturned face looks.
The joint's one bone ends at the tip of the resting nose.
"""

from pathlib import Path

import numpy as np

from common.export.take import Take
from common.export.turns import euler_deg

CM_PER_M = 100.0
NOSE_TIP = 30


def write(path: Path, take: Take) -> None:
    nose_cm = " ".join(f"{value:.6f}" for value in CM_PER_M * take.neutral[NOSE_TIP])
    hierarchy = f"""HIERARCHY
ROOT head
{{
\tOFFSET 0.0 0.0 0.0
\tCHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
\tEnd Site
\t{{
\t\tOFFSET {nose_cm}
\t}}
}}
MOTION
Frames: {take.n_keys}
Frame Time: {1 / take.fps:.9f}
"""
    pitch, yaw, roll = euler_deg(take.rotation).T
    values = np.column_stack([CM_PER_M * take.position, roll, yaw, pitch])  # [T, 6]
    with path.open("w", encoding="ascii", newline="\n") as file:
        file.write(hierarchy)
        np.savetxt(file, values, fmt="%.6f")
