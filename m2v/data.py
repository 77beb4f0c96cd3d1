"""Clips for training stage two: frames, where the landmarks of each lie, and a reference picture of the same person.

Videos are decoded once, into a folder of plain arrays that are mapped into memory afterwards: a run that starts again
does not wait, and several processes share what is read. Sample i depends on the seed and on i, on nothing else.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from common.clip_index import is_word, read_index
from common.errors import InputError
from common.face.fit import frontalise
from common.face.model import MIRROR, FaceModel, mouth_opening
from common.face.pos import flip_image
from common.files import atomic_path, check_input
from common.media import VideoReader
from m2v.condition import Conditions, Window, build

log = logging.getLogger(__name__)

FRAME_PX = 256
Sample = dict[str, Tensor]


@dataclass
class DataConfig:
    """What a training sample is. From coarse to fine: 128/128/8, then 256/128/8, then 256/256/16."""

    size_px: int = 256  # frames are brought to this size ...
    crop_px: int = 128  # ... and a square of this is seen
    n_frames: int = 8
    mouth_share: float = 0.6  # of the crops lie around the mouth
    most_minutes: float = 1.0  # of one person; groups of people count fourfold
    portraits: float = 0.15  # of the samples are made of single pictures (autoencoder only); 0: none
    cache_dir: str = "runs/frames"  # decoded frames, 200 KB each


@dataclass(frozen=True)
class Clip:
    """frames: uint8 [T, 256, 256, 3], mapped from disk. tracks: [3, T, 68, 2] in pixels, y down: as tracked, smoothed,

    and as the face model can express it; starts: frames from which `n_frames` in a row are valid; valid, opening: [T].
    """

    name: str
    person: str
    frames: np.ndarray
    tracks: Tensor
    valid: np.ndarray
    opening: np.ndarray
    starts: np.ndarray


def read_clips(data_dir: Path, split: str, n_frames: int, cache_dir: Path, kinds: tuple[str, ...]) -> list[Clip]:
    """Clips of a split without anything drawn over them, long enough for n_frames and a reference picture."""
    rows = read_index(data_dir, "kind", "overlay")
    rows = [row for row in rows if row["split"] == split and row["kind"] in kinds and not row["overlay"]]
    model = FaceModel.builtin()
    clips = [read_clip(data_dir, row["clip_id"], row["person"], n_frames, cache_dir, model) for row in rows]
    usable = [clip for clip in clips if len(clip.starts)]
    if not usable:
        raise InputError(f"{data_dir} has no clip of {n_frames} valid frames in its split '{split}': see docs/data.md.")
    log.info("%s: %d clips, %d too short", split, len(usable), len(clips) - len(usable))
    return usable


def read_clip(data_dir: Path, name: str, person: str, n_frames: int, cache_dir: Path, model: FaceModel) -> Clip:
    check_input(data_dir / "tracks" / f"{name}.npz", "track")
    with np.load(data_dir / "tracks" / f"{name}.npz") as track:
        points, valid = torch.from_numpy(track["landmarks"].astype(np.float32)), track["valid"]
    frames = decoded(data_dir / "clips" / f"{name}.mp4", cache_dir)
    n = min(len(frames), len(valid))
    points, valid = points[:n], valid[:n]
    run = np.convolve(valid.astype(int), np.ones(n_frames, int), mode="valid") if n >= n_frames else np.zeros(0)
    raw = points[..., :2]
    tracks = torch.stack([raw, smoothed(raw), projected(points, model)])
    return Clip(name, person, frames[:n], tracks, valid, mouth_opening(raw).numpy(), np.flatnonzero(run == n_frames))


def decoded(video_path: Path, cache_dir: Path) -> np.ndarray:
    """All frames of a video, uint8 [T, 256, 256, 3], mapped from the cache; decoded into it the first time."""
    stat = video_path.stat() if video_path.is_file() else None
    stamp = f"{stat.st_size:x}-{stat.st_mtime_ns:x}" if stat else ""
    cached = cache_dir / f"{video_path.stem}.{stamp}.npy"
    if not is_whole(cached):
        with VideoReader(video_path) as video:
            if (video.width, video.height) != (FRAME_PX, FRAME_PX):
                raise InputError(
                    f"{video_path} is {video.width} x {video.height}: training clips are {FRAME_PX} pixels squared, "
                    "cut around the head (docs/data.md)."
                )
            frames = np.stack([frame for _, frame in video])
        with atomic_path(cached, overwrite=True) as temporary, temporary.open("wb") as file:
            np.save(file, frames)
    return np.load(cached, mmap_mode="r")


def is_whole(cached: Path) -> bool:
    """Whether an array is there, with as many bytes as its header says."""
    try:
        return cached.is_file() and len(np.load(cached, mmap_mode="r")) > 0
    except (OSError, ValueError, EOFError):
        return False


def smoothed(points: Tensor, sigma: float = 1.2) -> Tensor:
    """Points [T, 68, 2] smoothed in time: what a generated Motion looks like."""
    offsets = torch.arange(-4, 5)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    index = (torch.arange(len(points))[:, None] + offsets).clamp(0, len(points) - 1)  # [T, 9]
    return torch.einsum("tkpc,k->tpc", points[index], kernel / kernel.sum())


def projected(points: Tensor, model: FaceModel) -> Tensor:
    """Points [T, 68, 3] with the motion that the face model's expressions can make, about their mean: [T, 68, 2]."""
    lm3d, pose = frontalise(points, FRAME_PX, model)
    mean = lm3d.mean(dim=0)
    basis = model.expression.flatten(1)  # [E, 204]
    coefficients = torch.linalg.lstsq(basis.mT, (lm3d - mean).flatten(1).mT).solution  # [E, T]
    shape = mean + (basis.mT @ coefficients).mT.view(-1, 68, 3)
    return flip_image(pose.project(model.mean + shape), FRAME_PX)[..., :2]


def clip_shares(clips: list[Clip], most_minutes: float) -> np.ndarray:
    """Probability of each clip: within a person by length, between persons by length up to a cap."""
    length = np.array([len(clip.frames) for clip in clips], np.float64)
    people = np.array([clip.person for clip in clips])
    most = np.array([most_minutes * 1500 * (4 if is_word(clip.name) else 1) for clip in clips])
    total = {person: length[people == person].sum() for person in set(people.tolist())}
    share = length * np.minimum(1.0, most / np.array([total[person] for person in people.tolist()]))
    return share / share.sum()


class ClipSamples(Dataset[Sample]):
    """Endless samples: clip [3, S, h, w] in [-1, 1], the fields of Conditions, and `mouth` [S, 4]: its centre and half

    its width and height, in pixels of the crop."""

    def __init__(self, clips: list[Clip], config: DataConfig, seed: int, is_disturbed: bool = True) -> None:
        check_config(config)
        self.clips, self.config, self.seed, self.is_disturbed = clips, config, seed, is_disturbed
        self.shares = clip_shares(clips, config.most_minutes)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        clip = self.clips[rng.choice(len(self.clips), p=self.shares)]
        start = int(rng.choice(clip.starts))
        reference = pick_reference(clip, start, self.config.n_frames, rng)
        return self.sample(clip, start, reference, rng)

    def sample(self, clip: Clip, start: int, reference: int, rng: np.random.Generator) -> Sample:
        """Frames start ... of a clip with the reference picture of one of its frames."""
        config, disturbed = self.config, self.is_disturbed
        part = slice(start, start + config.n_frames)
        kind = int(rng.choice(3, p=(0.5, 0.3, 0.2))) if disturbed else 0
        source, targets = clip.tracks[0, reference], clip.tracks[kind, part]
        frames = np.concatenate([clip.frames[reference][None], clip.frames[part]])
        pictures = torch.from_numpy(frames).movedim(-1, 1).float() / 127.5 - 1  # [1 + S, 3, 256, 256]
        if config.size_px != FRAME_PX:
            zoom = config.size_px / FRAME_PX
            pictures = F.interpolate(pictures, scale_factor=zoom, mode="area")
            source, targets = ((points + 0.5) * zoom - 0.5 for points in (source, targets))
        if disturbed:
            pictures = recoloured(pictures, rng)
            if rng.random() < 0.5:
                pictures, source, targets = pictures.flip(-1), flipped(source, config), flipped(targets, config)
        window = pick_window(targets, config, rng)
        top, left, side = window
        return assembled(pictures[1:, :, top : top + side, left : left + side], pictures[0], source, targets, window)


def check_config(config: DataConfig) -> None:
    if not 0 < config.crop_px <= config.size_px <= FRAME_PX or config.crop_px % 8:
        raise InputError(
            f"options.crop_px={config.crop_px} of options.size_px={config.size_px} can't be cut: give a multiple "
            f"of 8 and a size from there to {FRAME_PX}."
        )


def assembled(frames: Tensor, reference: Tensor, source: Tensor, targets: Tensor, window: Window) -> Sample:
    """A sample of what is seen in a window: frames [S, 3, h, w] of that part, the whole reference picture [3, H, W],

    and landmarks [68, 2] and [S, 68, 2] in pixels of the whole.
    """
    sample = vars(build(reference, source, targets, window))
    top, left, _ = window
    low, high = targets[:, 48:68].amin(dim=1), targets[:, 48:68].amax(dim=1)  # [S, 2]
    sample["mouth"] = torch.cat([(low + high) / 2 - targets.new_tensor([left, top]), (high - low) / 2], dim=1)
    sample["clip"] = frames.movedim(0, 1).contiguous()
    return sample


def pick_window(targets: Tensor, config: DataConfig, rng: np.random.Generator) -> Window:
    """Where the crop lies, given the landmarks [S, 68, 2]; corners on multiples of 8."""
    room = config.size_px - config.crop_px
    corner = rng.integers(0, room // 8 + 1, 2) * 8
    if rng.random() < config.mouth_share:
        middle = targets[len(targets) // 2, 48:68].mean(dim=0).numpy() + rng.normal(0, config.crop_px / 6, 2)
        left, top = np.clip((middle - config.crop_px / 2) // 8 * 8, 0, room)
        corner = np.array([top, left])
    return int(corner[0]), int(corner[1]), config.crop_px


def pick_reference(clip: Clip, start: int, n_frames: int, rng: np.random.Generator) -> int:
    """A valid frame, mostly far in time from the clip: of a few, half the time the one with its mouth most closed."""
    valid = np.flatnonzero(clip.valid)
    if rng.random() < 0.05:
        return start  # a frame that is as in the picture must come out as the picture
    few = rng.choice(valid, 6)
    distance = np.maximum(start - few, few - (start + n_frames - 1)).clip(min=0)
    if rng.random() < 0.5:
        return int(few[(clip.opening[few] - 0.002 * distance.clip(max=12)).argmin()])
    middle = clip.opening[start : start + n_frames].mean()
    return int(few[(distance.clip(max=25) / 25 + 4 * np.abs(clip.opening[few] - middle)).argmax()])


def flipped(points: Tensor, config: DataConfig) -> Tensor:
    """Landmarks [..., 68, 2] of the mirrored picture."""
    x, y = points[..., MIRROR, :].unbind(-1)
    return torch.stack([config.size_px - 1 - x, y], dim=-1)


def recoloured(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """The same other light on all pictures of a sample: gain, colour, contrast, offset."""
    gain = torch.tensor(rng.uniform(0.8, 1.2) * rng.uniform(0.92, 1.08, 3), dtype=torch.float32)
    offset = float(rng.uniform(-0.1, 0.1))
    return (pictures * gain.view(1, 3, 1, 1) + offset).clamp(-1, 1)


def conditions_of(batch: Sample) -> Conditions:
    """The fields of Conditions in a batch of samples."""
    return Conditions(**{each.name: batch[each.name] for each in fields(Conditions)})
