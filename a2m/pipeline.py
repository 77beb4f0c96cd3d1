"""Stage one from end to end: a recording and one picture's landmarks to a Motion."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor

from a2m import mouth
from a2m.pose import HeadPrior, apply_lids, apply_pose
from a2m.regression import WEIGHTS, Regression
from a2m.speech import Voice, analyse, mouth_gate
from common import weights
from common.audio import FPS, SAMPLE_RATE_HZ
from common.errors import InputError
from common.face.model import LIP_STREAM, FaceModel
from common.face.pos import Pose
from common.motion import Motion, Reference

log = logging.getLogger(__name__)

PoseMode = Literal["natural", "still"]


class AudioToMotion:
    """The regression for mouth and lids, the prior for head and blinks, the gate that closes the mouth in silence."""

    name = "regression"

    def __init__(self, regression: Regression, head: HeadPrior, face_model: FaceModel):
        self.regression, self.head, self.face_model = regression.eval(), head, face_model

    @classmethod
    def from_pretrained(cls, name: str | Path = WEIGHTS, device: torch.device | str = "cpu") -> AudioToMotion:
        """Load weights by name, folder or hub id. The networks run on `device`; results are on the CPU."""
        state, config = weights.from_pretrained(name)
        face_model = FaceModel.builtin()
        theirs = (config.get("face_model"), config.get("convention"))
        if theirs != (face_model.name, face_model.convention):
            raise InputError(f"{name} was trained with the face model {theirs}: choose weights for the built-in one.")
        if config.get("features") != "log-mel":
            raise InputError(f"{name} listens to {config.get('features')}, not log-mel: choose other weights.")
        regression = Regression.from_state(state, config, name).to(device)
        return cls(regression, HeadPrior.from_state(state, name), face_model)

    @torch.no_grad()
    def __call__(
        self,
        audio: Tensor,
        reference_landmarks: Tensor,
        reference_pose: Pose,
        image_size: tuple[int, int],
        pose: PoseMode = "natural",
        seed: int = 0,
        is_stretched: bool = True,
    ) -> Motion:
        """A Motion of ceil(n / 640) frames at 25 fps.

        audio: float [n] at 16 kHz; reference_landmarks: LM3D [68, 3]; reference_pose: of one frame, pixels of
        image_size (width, height), v up. pose: `still` leaves the head as in the picture and the eyes open. The
        mouth's rest is the picture's own where that is closed, else the picture's with its mouth closed.
        """
        if pose not in ("natural", "still"):
            raise ValueError(f"pose must be natural or still, got {pose!r}")
        if reference_landmarks.shape != (68, 3):
            raise ValueError(f"reference_landmarks must be [68, 3], got shape {list(reference_landmarks.shape)}")
        audio, lm3d = audio.detach().cpu(), reference_landmarks.detach().cpu().float()
        given = (reference_pose.scale, reference_pose.rotation, reference_pose.translation)
        reference_pose = Pose(*(part.detach().cpu().float() for part in given))
        voice = analyse(audio)
        if not voice.sound.any():
            log.warning("the recording is silent, or nothing but steady noise: the mouth stays closed")
        points = self._speaking(audio, voice, lm3d + self.face_model.mean, is_stretched)  # [T, 68, 3]
        T = len(points)
        deviation, lids = torch.zeros(T, 6), torch.ones(T)
        if pose == "natural":
            deviation = self.head.sample_pose(voice.sound, _generator(seed, "head"))
            lids = self.head.sample_lids(T, _generator(seed, "lids"))
        moved = apply_pose(reference_pose, deviation)
        return Motion(
            landmarks=apply_lids(points, lids) - self.face_model.mean,
            mean_landmarks=self.face_model.mean,
            pose=moved,
            fps=float(FPS),
            image_size=image_size,
            model=self.face_model.name,
            convention=self.face_model.convention,
            reference=Reference(lm3d, reference_pose),
            provenance={
                "a2m": self.name,
                "pose": pose,
                "seed": seed,
                "is_stretched": is_stretched,
                "audio_duration_s": round(len(audio) / SAMPLE_RATE_HZ, 6),
            },
        )

    def _speaking(self, audio: Tensor, voice: Voice, reference: Tensor, is_stretched: bool) -> Tensor:
        """The reference's points [68, 3] with a mouth that speaks: [T, 68, 3]."""
        regression = self.regression
        coefficients = regression.predict(audio, voice)
        if is_stretched:
            coefficients = regression.stretched(coefficients)
        motion, lids = regression.decode(coefficients)
        gate = mouth_gate(voice.sound)
        rest = mouth.closed(reference, regression.opening_direction.cpu())
        points = rest.repeat(len(gate), 1, 1)
        points[:, LIP_STREAM, :] += gate[:, None, None] * motion.cpu()
        points = mouth.keep_lips_apart(points, mouth.lip_gap(rest).clamp(max=0))
        return apply_lids(points, 1 + gate * (lids.cpu() - 1))


def _generator(seed: int, purpose: Literal["head", "lids"]) -> Generator:
    """Head and lids draw from generators of their own, so that neither's number of draws moves the other."""
    return Generator().manual_seed(2 * seed + (purpose == "lids"))
