"""What the 68 landmarks of a face mean: the same numbers name slightly different places on the skin.

`facemesh68`: FaceMesh's points in iBUG order, what the built-in networks and face model speak. `ibug68`: the annotation
of 300-W (dlib, face-alignment 2D): the jaw is the contour that the camera sees. `ibug68_3d`: the same with a jaw that
stays on the skull (face-alignment 3D, BFM, FLAME, ICT-FaceKit). They are mixed only through a mapping that has been
measured; any other pair is refused with a sentence.
"""

from torch import Tensor

from common.errors import InputError
from common.face.model import CONVENTION, N_POINTS

FACEMESH68, IBUG68, IBUG68_3D = CONVENTION, "ibug68", "ibug68_3d"
CONVENTIONS = (FACEMESH68, IBUG68, IBUG68_3D)


def convert(points: Tensor, source: str, target: str) -> Tensor:
    """Image landmarks [..., 68, 2 or 3] (pixels, y down) of one convention in another; same shape, dtype and device.

    The same convention gives the points themselves. Raises InputError for a pair whose mapping was never measured,
    ValueError for points of another shape.
    """
    if points.ndim < 2 or points.shape[-2] != N_POINTS or points.shape[-1] not in (2, 3):
        raise ValueError(f"landmarks must be [..., 68, 2 or 3], got shape {list(points.shape)}")
    if source == target:
        return points
    raise InputError(
        f"Landmarks of the convention '{source}' can't be used as '{target}': no mapping between the two has been "
        "measured; use a face model and landmarks of one convention."
    )
