"""Re-enactment: the Motion of one person, made to move the picture of another.

Two people share neither face nor camera, so nothing is taken over as it is: the pose relative to the moment at which
the driver holds the head as the picture does, the mouth as a departure from the driver's closed one in measures of the
picture's own, the lids as a share of how far each person's eyes are usually open.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.face.framing import ReferencePicture
from common.face.lids import CLOSED, aperture, open_lids
from common.face.model import EYES, LIP_STREAM, FaceModel, eye_distance
from common.face.mouth import closed, keep_lips_apart, lip_gap, opening_direction
from common.face.pos import Pose
from common.face.rotations import angle_rad
from common.motion import Motion, Reference

SAME_RAD = 0.035  # 2°: turns that tracking can hardly tell apart
CLOSED_SHARE, FEWEST_CLOSED = 0.1, 3  # of the frames: those with the mouth most closed say what the driver's rest is
OPEN_EYES = 0.75  # quantile of the apertures: blinks and looks down are below
NARROWEST = 0.06  # usual aperture above closed lids; eyes that never open more are half closed, not usual
WIDEST_EYES = 1.3  # of the picture's own aperture
RATIO = (0.7, 1.4)  # of two people's mouths; what lies outside is more likely a wrong landmark


def reenact(motion: Motion, reference: ReferencePicture, model: FaceModel) -> Motion:
    """A Motion without a reference (tracked from any video) as one for this picture; one that has a reference is kept.

    The result's pose is in pixels of the picture, its reference the picture's own landmarks and pose: where the driver
    is as in the picture, the result is. Of a picture with an open mouth the mouth is closed first. Raises ValueError
    where the Motion's landmarks are of another convention than the model's.
    """
    if motion.reference is not None:
        return motion
    if motion.convention != model.convention:
        raise ValueError(
            f"the motion's landmarks are {motion.convention}, the picture's {model.convention}: convert them first"
        )
    driver = motion.mean_landmarks + motion.landmarks  # [T, 68, 3]
    picture = model.mean + reference.lm3d  # [68, 3]
    points = with_lids(with_mouth(driver, picture, model), driver, picture)
    height, width = reference.picture.shape[:2]
    at_rest = nearest_pose(motion.pose, reference.pose, model)
    return replace(
        motion,
        landmarks=points - model.mean,
        mean_landmarks=model.mean,
        pose=relative_pose(motion.pose, at_rest, reference.pose),
        image_size=(width, height),
        model=model.name,
        provenance=motion.provenance | {"reenacted": True},
        reference=Reference(reference.lm3d, reference.pose),
    )


# ---- head -----------------------------------------------------------------------------------------------------------


def nearest_pose(poses: Pose, picture: Pose, model: FaceModel) -> Pose:
    """Of a driver's poses [T] the one that stands for the picture's (no leading shape).

    Its rotation is the nearest to the picture's: a driver who starts turned away, or never looks into the camera, must
    not twist a head that does. Of those as near within 2° it is the one whose place and size are nearest to the
    driver's medians, so that the head stays about where the picture has it. Where it is the picture's own rotation to
    within 2°, it is taken to be exactly that: then turns are absolute, as within one video and in the paper.
    """
    turn = angle_rad(poses.rotation, picture.rotation)  # [T]
    log_scale = poses.scale.log()
    face_px = poses.scale.median() * (model.mean[:, 1].amax() - model.mean[:, 1].amin())
    moved = (poses.translation - poses.translation.median(dim=0).values).norm(dim=-1) / face_px
    zoomed = (log_scale - log_scale.median()).abs()
    is_near = turn <= turn.min() + SAME_RAD
    nearest = poses[int(torch.where(is_near, moved**2 + zoomed**2, torch.inf).argmin())]
    return replace(nearest, rotation=picture.rotation) if turn.min() <= SAME_RAD else nearest


def relative_pose(poses: Pose, at_rest: Pose, picture: Pose) -> Pose:
    """A driver's poses [T] moved to where `at_rest` equals the picture's pose (both without leading shape).

    Turns are taken about the head's own axes: who nods while looking aside must not tip sideways a head that looks
    into the camera. Shifts are in units of the face model at the driver's size at rest, so pixels cancel.
    """
    zoom = picture.scale / at_rest.scale
    return Pose(
        scale=poses.scale * zoom,
        rotation=picture.rotation @ (at_rest.rotation.mT @ poses.rotation),
        translation=picture.translation + zoom * (poses.translation - at_rest.translation),
    )


# ---- face -----------------------------------------------------------------------------------------------------------


def neutral(driver: Tensor, model: FaceModel) -> Tensor:
    """A driver's face with the mouth closed, [T, 68, 3] -> [68, 3].

    The median of the frames with the mouth most nearly closed, which none of them can spoil; closed by the face model
    where the driver never does. All points are M̄ + LM3D.
    """
    gap = (driver[:, 62, 1] - driver[:, 66, 1]).abs() / eye_distance(driver)  # depth would only add its noise
    n = min(len(driver), max(FEWEST_CLOSED, round(CLOSED_SHARE * len(driver))))
    at = gap.topk(n, largest=False).indices
    return closed(driver[at].median(dim=0).values, opening_direction(model))


def with_mouth(driver: Tensor, picture: Tensor, model: FaceModel) -> Tensor:
    """The picture's face [68, 3] with the driver's [T, 68, 3] departures from neutral: [T, 68, 3]; eyes untouched.

    Lips and jaw move in measures of the picture's person: sideways by the width of the mouth, up, down and in depth by
    the distance from nose to chin. Brows and nose move by the distance of the eyes.
    """
    start, rest = neutral(driver, model), closed(picture, opening_direction(model))
    offset = driver - start  # [T, 68, 3]
    scale = torch.ones_like(picture) * ratio(eye_distance(rest), eye_distance(start))
    tall = ratio((rest[33] - rest[8]).norm(), (start[33] - start[8]).norm())
    wide = ratio((rest[48] - rest[54]).norm(), (start[48] - start[54]).norm())
    scale[LIP_STREAM, :] = torch.stack([wide, tall, tall])
    scale[EYES, :] = 0.0
    return keep_lips_apart(rest + scale * offset, lip_gap(rest).clamp(max=0))


def with_lids(points: Tensor, driver: Tensor, picture: Tensor) -> Tensor:
    """Faces [T, 68, 3] with the picture's eyes opened as the driver's: closed is closed, usual is as in the picture."""
    asked, usual = aperture(driver), aperture(driver).quantile(OPEN_EYES, dim=0)  # [T, 2], [2]
    share = ((asked - CLOSED) / (usual - CLOSED).clamp(min=NARROWEST)).clamp(0, WIDEST_EYES)
    own = aperture(picture).clamp(min=1e-3)  # [2]
    shut = torch.minimum(own, own.new_tensor(CLOSED))
    return open_lids(points, (shut + share * (own - shut)) / own)


def ratio(picture: Tensor, driver: Tensor) -> Tensor:
    return (picture / driver.clamp(min=1e-6)).clamp(*RATIO)
