"""Stage one from end to end: a recording and one picture's landmarks to a Motion.

Two models make the mouth: AToM-Net (`a2m.model`) and the regression (`a2m.regression`). The weights' config says which
it is. What comes around them is the same: the picture's mouth closed as its rest, the gate that closes it in silence,
lips kept apart, pose and provenance.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from a2m.control import AS_MADE, Control
from a2m.data import smooth
from a2m.hearing import Features, load_hubert, recording_features
from a2m.keyframes import HEAD_FADE, Keyframes
from a2m.model import FORMAT as ATOM_FORMAT
from a2m.model import AToMNet
from a2m.pose import N_DIMENSIONS, HeadPrior, activity, apply_lids, apply_pose, within_limits
from a2m.regression import Regression
from a2m.sampling import lip_motion, sample
from a2m.speech import Voice, analyse, levels_db, mouth_gate
from a2m.streaming import Known, fitted
from common import weights
from common.audio import FPS, SAMPLE_RATE_HZ, HubertFeatures
from common.errors import InputError
from common.face import mouth
from common.face.model import LIP_STREAM, REST, FaceModel
from common.face.pos import Pose
from common.motion import Motion, Reference

log = logging.getLogger(__name__)

WEIGHTS = "small/a2m"
_REST_SMOOTHING_FRAMES = 1.0  # brows are slow: what is faster is left over from sampling
_HEAD_SMOOTHING_FRAMES = 2.0  # as the tracks that it has learnt from
_APERTURES = (0.0, 1.1)  # of lids, by the picture's
PoseMode = Literal["natural", "still"]


@dataclass(frozen=True)
class Performance:
    """What a model makes of a recording: lips [T, 37, 3] from the closed mouth and rest [T, 31, 3] from the picture's,

    in units of the face model; what speech does to the lids' aperture, [T], 1 where it does nothing; slow [T, 7] as in
    `a2m.space`, for who has it.
    """

    lips: Tensor
    rest: Tensor
    lids: Tensor
    slow: Tensor | None = None


class AudioToMotion:
    """A model for the mouth, the prior for head and blinks, the gate that closes the mouth in silence."""

    def __init__(
        self,
        model: AToMNet | Regression,
        head: HeadPrior,
        face_model: FaceModel,
        hubert: HubertFeatures | None = None,
        uses_slow: bool = False,
    ):
        """hubert: for an AToM-Net that hears one's states. uses_slow: its slow stream takes the prior's place."""
        self.hubert, self.uses_slow = hubert, uses_slow
        self.model, self.head, self.face_model = model.eval(), head, face_model
        is_atom = isinstance(model, AToMNet)
        self.name = "atom" if is_atom else "regression"
        direction = model.space.opening_direction if isinstance(model, AToMNet) else model.opening_direction
        self.opening_direction = direction.cpu()

    @classmethod
    def from_pretrained(
        cls, name: str | Path = WEIGHTS, device: torch.device | str = "cpu", hubert: str = ""
    ) -> AudioToMotion:
        """Load weights by name, folder or hub id. The networks run on `device`; results are on the CPU.

        hubert: folder or hub id of the HuBERT whose states the weights were trained with, if so they were.
        """
        state, config = weights.from_pretrained(name)
        face_model = FaceModel.builtin()
        theirs = (config.get("face_model"), config.get("convention"))
        if theirs != (face_model.name, face_model.convention):
            raise InputError(f"{name} was trained with the face model {theirs}: choose weights for the built-in one.")
        head = HeadPrior.from_state(state, name)
        if config.get("format") == ATOM_FORMAT:
            atom = AToMNet.from_state(state, config, name)
            heard = load_hubert(atom.config, hubert, device)
            return cls(atom.to(device), head, face_model, heard, bool(config.get("uses_slow")) and atom.config.has_slow)
        if config.get("features") != "log-mel":
            raise InputError(f"{name} listens to {config.get('features')}, not log-mel: choose other weights.")
        return cls(Regression.from_state(state, config, name).to(device), head, face_model)

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
        n_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float = 1.0,
        control: Control = AS_MADE,
        keyframes: Keyframes | None = None,
    ) -> Motion:
        """A Motion of ceil(n / 640) frames at 25 fps.

        audio: float [n] at 16 kHz; reference_landmarks: LM3D [68, 3]; reference_pose: of one frame, pixels of
        image_size (width, height), v up. pose: `still` leaves all but the mouth as in the picture. The mouth's rest is
        the picture's own where that is closed, else the picture's with its mouth closed. is_stretched: of the
        regression, whether variance is restored; n_steps, guidance_scale, temperature (of the noise): of AToM-Net, None
        takes the weights' own. control: how strong the parts are, and when the eyes blink. keyframes: frames that the
        result has exactly; raises InputError where they are not of this picture and recording.
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
        T, picture = len(voice.sound), Reference(lm3d, reference_pose)
        kept = keyframes.over(T, picture) if keyframes else None
        rest = mouth.closed(lm3d + self.face_model.mean, self.opening_direction)
        made: dict[str, Any] = {"a2m": self.name, "pose": pose, "seed": seed, "control": asdict(control)}
        if kept:
            made |= {"kept_frames": kept.is_kept.nonzero()[:, 0].tolist()}
        if isinstance(self.model, AToMNet):
            config = self.model.config
            n_steps = config.n_steps if n_steps is None else n_steps
            guidance_scale = config.guidance_scale if guidance_scale is None else guidance_scale
            made |= {"n_steps": n_steps, "guidance_scale": guidance_scale, "temperature": temperature}
            known = kept.known(self.model.space, rest, control) if kept else None
            known = self._starting_at_rest(known, T) if self.uses_slow else known
            features = recording_features(audio, voice, self.hubert)
            reference, generators = rest - self.face_model.mean, [_generator(seed, "mouth")]
            options = (n_steps, guidance_scale, temperature, known)
            values = sample(self.model, features, T, reference, generators, *options)
            performance = _performance(self.model, values, features)
        else:
            made |= {"is_stretched": is_stretched}
            performance = _regressed(self.model, audio, voice, is_stretched)
        points = self._speaking(performance, mouth_gate(voice.sound), rest, control)  # [T, 68, 3]
        deviation, lids = torch.zeros(T, N_DIMENSIONS), torch.ones(T)
        if pose == "natural":
            points[:, REST] += control.expression_scale * performance.rest
            heard = activity(levels_db(audio), voice.sound)
            deviation = self._head(performance, heard, control, seed)
        blink = control.blink or ("auto" if pose == "natural" else "off")
        if blink != "off":
            lids = self._lids(performance, blink, seed)
        motion = Motion(
            landmarks=apply_lids(points, lids) - self.face_model.mean,
            mean_landmarks=self.face_model.mean,
            pose=apply_pose(reference_pose, kept.turn(deviation) if kept else deviation),
            fps=float(FPS),
            image_size=image_size,
            model=self.face_model.name,
            convention=self.face_model.convention,
            reference=picture,
            provenance=made | {"audio_duration_s": round(len(audio) / SAMPLE_RATE_HZ, 6)},
        )
        return kept.hold(motion, rest) if kept else motion

    def _starting_at_rest(self, known: Known | None, T: int) -> Known:
        """The picture's own frame as the first one, unless that is given."""
        assert isinstance(self.model, AToMNet)
        if known is None:
            known = Known(torch.zeros(T, self.model.space.n_values), torch.zeros(T, dtype=torch.bool))
        is_rest = (torch.arange(T) == 0) & ~known.is_known
        return Known(known.values.masked_fill(is_rest[:, None], 0.0), known.is_known | is_rest)

    def _head(self, performance: Performance, heard: Tensor, control: Control, seed: int) -> Tensor:
        """Deviations [T, 6] from the picture's pose, zero in the first frame; heard: `activity` [T]."""
        if performance.slow is None or not self.uses_slow:
            return self.head.sample_pose(heard, _generator(seed, "head"), control.head_scale)
        path = smooth(performance.slow[:, :N_DIMENSIONS], _HEAD_SMOOTHING_FRAMES)
        at_rest = torch.arange(len(path)) == 0
        return within_limits(control.head_scale * fitted(path[None], 0 * path[None], at_rest, HEAD_FADE)[0])

    def _lids(self, performance: Performance, blink: str | float, seed: int) -> Tensor:
        """Aperture [T] relative to the picture's; blink: auto, or seconds."""
        if blink == "auto" and performance.slow is not None and self.uses_slow:
            return (1 + performance.slow[:, N_DIMENSIONS]).clamp(*_APERTURES)
        every_s = None if blink == "auto" else float(blink)
        return self.head.sample_lids(len(performance.lips), _generator(seed, "lids"), every_s)

    def _speaking(self, performance: Performance, gate: Tensor, rest: Tensor, control: Control) -> Tensor:
        """The picture's points with its mouth closed [68, 3], made to speak where the gate [T] is open: [T, 68, 3]."""
        points = rest.repeat(len(gate), 1, 1)
        points[:, LIP_STREAM, :] += control.mouth_scale * gate[:, None, None] * performance.lips
        points = mouth.keep_lips_apart(points, mouth.lip_gap(rest).clamp(max=0))
        return apply_lids(points, 1 + control.expression_scale * gate * (performance.lids - 1))


def _performance(model: AToMNet, values: Tensor, features: Features) -> Performance:
    """values: [1, T, K], one sample of what is heard in `features`."""
    lips = lip_motion(model, values, features)[0]
    _, rest, slow = (part[0].cpu() for part in model.space.decode(values))
    return Performance(lips, smooth(rest, _REST_SMOOTHING_FRAMES), torch.ones(len(lips)), slow)


def _regressed(model: Regression, audio: Tensor, voice: Voice, is_stretched: bool) -> Performance:
    coefficients = model.predict(audio, voice)
    if is_stretched:
        coefficients = model.stretched(coefficients)
    lips, lids = (part.cpu() for part in model.decode(coefficients))
    return Performance(lips, torch.zeros(len(lips), len(REST), 3), lids)


def _generator(seed: int, purpose: Literal["head", "lids", "mouth"]) -> Generator:
    """Each draws from a generator of its own, so that none's number of draws moves the others."""
    if purpose == "mouth":
        return Generator().manual_seed((seed + 2**31) % 2**32)
    return Generator().manual_seed(2 * seed + (purpose == "lids"))
