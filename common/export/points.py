"""Names of the 68 points: what they belong to and their number in iBUG's order, counted from 0.

Left and right of the picture: `eye_36` to `eye_41` are the person's right eye. The lips are 48 to 59 outside and 60 to
67 inside.
"""

from common.face.model import BROWS, EYES, JAW, LIPS, NOSE

POINT_NAMES = tuple(
    f"{part}_{number:02d}"
    for part, numbers in (("jaw", JAW), ("brow", BROWS), ("nose", NOSE), ("eye", EYES), ("lip", LIPS))
    for number in numbers
)
