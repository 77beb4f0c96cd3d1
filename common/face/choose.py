"""Which face of a picture is meant, and its landmarks: found, or as the user says."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from common.face import detect
from common.face.conventions import to_model
from common.face.landmark_file import as_model_has_them, check_landmarks, read_landmarks
from common.face.model import FaceModel

log = logging.getLogger(__name__)

SMALL_PX = 48


@dataclass(frozen=True)
class Choice:
    """index: which face, the largest is 0; box: "x0,y0,x1,y1"; landmarks_path: points instead of detecting, of a

    convention (None: as the file says, else ibug68); detector: of `detect.BACK_ENDS`, on a device.
    """

    index: int | None = None
    box: str | None = None
    landmarks_path: Path | None = None
    convention: str | None = None
    detector: str = detect.BUILTIN
    device: str = "cpu"


def find_landmarks(path: Path, picture: np.ndarray, choice: Choice) -> np.ndarray:
    """Landmarks float32 [68, 3] of the face to animate in a picture uint8 [H, W, 3], as the built-in model has them.

    path: the picture's name in messages.
    """
    model, height = FaceModel.builtin(), picture.shape[0]
    if choice.landmarks_path:
        file = read_landmarks(choice.landmarks_path)
        check_landmarks(file.points, choice.landmarks_path, picture.shape[1], height)
        return as_model_has_them(file, choice.convention, height, model)
    face = find_face(path, picture, choice)
    if choice.detector == detect.BUILTIN:
        return face.landmarks
    points = torch.from_numpy(detect.landmarks_by(choice.detector, picture, face.box, choice.device))[None]
    return to_model(points, detect.CONVENTION_OF[choice.detector], model, height)[0].numpy()


def find_face(path: Path, picture: np.ndarray, choice: Choice) -> detect.Face:
    """The face that is meant, by the built-in detector."""
    detect.check_back_end(choice.detector, choice.device)
    if choice.box:
        numbers = choice.box.split(",")
        try:
            x0, y0, x1, y1 = (float(number) for number in numbers)
        except ValueError as error:
            raise InputError(f"--face-box takes four numbers x0,y0,x1,y1, not '{choice.box}'") from error
        face = detect.landmarks_at(picture, (x0, y0, x1, y1))
        if face.score < 0.5 or not face.is_steady:
            log.warning(
                "nothing in --face-box %s of %s looks like a face: the result may be nonsense", choice.box, path
            )
        return face
    faces = detect.find_faces(picture)
    if not faces:
        turn_deg = detect.turn_that_shows_a_face(picture)
        remedy = (
            f"there is one when it is turned by {turn_deg}° counterclockwise: turn it first"
            if turn_deg
            else "use a picture with a face that is upright, not too small and seen from the front, or say where it is "
            "with --face-box x0,y0,x1,y1"
        )
        raise InputError(f"No face was found in {path}: {remedy}")
    index = choice.index or 0
    if not 0 <= index < len(faces):
        raise InputError(
            f"{path} shows {len(faces)} face(s), so --face-index goes from 0 to {len(faces) - 1}, not {index}"
        )
    if len(faces) > 1 and choice.index is None:
        boxes = "; ".join(f"{k}: {','.join(f'{v:.0f}' for v in face.box)}" for k, face in enumerate(faces))
        log.warning("%s shows %d faces, the largest is used; --face-index chooses (%s)", path, len(faces), boxes)
    if faces[index].size_px < SMALL_PX:
        log.warning("the face in %s is only %.0f pixels large: the result will be soft", path, faces[index].size_px)
    return faces[index]
