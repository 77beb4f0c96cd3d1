"""A data folder in small: people of noise who speak in tones, with landmarks that open and close their mouths."""

import csv
from pathlib import Path

import numpy as np
import soundfile
import torch

from common.face.model import LID_PAIRS, FaceModel
from common.face.pos import Pose, flip_image
from common.media import VideoWriter

SIDE_PX, FPS = 256, 25
COLUMNS = ("clip_id", "kind", "person", "seconds", "frames", "split", "overlay", "source_repo")


def write_data(folder: Path, clips: list[tuple[str, str, str, str, int]]) -> Path:
    """clips: (clip_id, person, split, kind, n_frames). Returns the folder."""
    for name in ("clips", "tracks"):
        (folder / name).mkdir(parents=True)
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for name, person, split, kind, n_frames in clips:
            row = (name, kind, person, f"{n_frames / FPS:.2f}", n_frames, split, "", "made here")
            writer.writerow(dict(zip(COLUMNS, row, strict=True)))
            write_clip(folder, name, person, kind, n_frames)
    return folder


def write_clip(folder: Path, name: str, person: str, kind: str, n_frames: int) -> None:
    rng = np.random.default_rng(sum(f"{name} {person}".encode()))
    points = track(n_frames, rng)
    valid = np.ones(n_frames, bool)
    np.savez(folder / "tracks" / f"{name}.npz", landmarks=points.astype(np.float16), valid=valid)
    sound_path = folder / f"{name}.wav"
    time_s = np.arange(640 * n_frames) / 16000
    tone = np.sin(2 * np.pi * (150 + 40 * np.sin(5 * time_s)) * time_s) * (0.3 + 0.2 * np.sin(20 * time_s))
    soundfile.write(sound_path, tone + 0.02 * rng.standard_normal(len(tone)), 16000)
    waves = np.sin(np.arange(SIDE_PX)[:, None, None] / 9 + np.arange(SIDE_PX)[:, None] / 7 + rng.uniform(0, 6, 3))
    picture = (128 + 100 * waves).astype(np.uint8)
    audio_path = sound_path if kind == "talking" else None
    with VideoWriter(folder / "clips" / f"{name}.mp4", SIDE_PX, SIDE_PX, FPS, audio_path) as video:
        for k in range(n_frames):
            frame = np.roll(picture, k, axis=1)  # moves by a pixel a frame: which frame it is can be told
            x, y = points[k, 66, :2].astype(int)
            frame[y - 4 : y + 4, x - 8 : x + 8] = 200
            video.write(frame)
    sound_path.unlink()


def track(n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Landmarks [T, 68, 3] in pixels: the mean face, its mouth opening and closing, blinks, nods."""
    model = FaceModel.builtin()
    frame = torch.arange(n_frames)
    shape = model.mean.repeat(n_frames, 1, 1)
    size = (model.mean[45] - model.mean[36]).norm()
    opening = 0.06 * size * (1 + torch.sin(0.9 * frame + float(rng.uniform(0, 6))))
    for point in (*range(56, 59), *range(65, 68), *range(6, 11)):
        shape[:, point, 1] -= opening
    closed = torch.exp(-0.5 * ((frame % 50 - 25) / 1.5) ** 2)
    for upper, lower in LID_PAIRS:
        shape[:, upper] -= closed[:, None] * (shape[:, upper] - shape[:, lower])
    shape += 0.002 * size * torch.from_numpy(rng.standard_normal((n_frames, 68, 3)).astype(np.float32))
    ones = torch.ones(n_frames)
    nod = torch.stack([128 + 0 * ones, 128 + 3 * torch.sin(0.2 * frame)], dim=-1)
    pose = Pose(ones * 70 / size, torch.eye(3).repeat(n_frames, 1, 1), nod)
    return flip_image(pose.project(shape), SIDE_PX).numpy()
