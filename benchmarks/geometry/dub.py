"""Dubbing a video anew: `python -m benchmarks.geometry dub --data DIR --audio examples/speech.wav`.

Running speech; the first frames of one clip a person are given the mouth of another recording. No picture shows what
they should look like, so asked is: are the lips where they were asked to be (the landmarks are found again), and does
the mouth move as restlessly as a real one?
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from a2m.pipeline import AudioToMotion
from benchmarks.report import Column, clips, count, is_word, table
from common.face.fit import frontalise
from common.face.model import LIPS, FaceModel
from common.face.reenact import neutral
from common.face.track import smooth
from common.media import VideoReader, read_audio
from common.metrics.image import change, mouth_box
from common.metrics.landmarks import find_again, landmark_error
from common.motion import Motion
from m2v.dub import Footage, dub
from m2v.pipeline import MCVDM
from m2v.preview import WarpRenderer
from m2v.scene import Scene

MCVDM_NAME, WARP, NOTHING, REAL = "dubbed", "dubbed, --renderer warp", "not dubbed", "the detector on real frames"
COLUMNS = (Column("lips %", "lips"), Column("unrest of the mouth", "flicker", is_ratio=True))


@dataclass(frozen=True)
class Score:
    lips: float  # percent of the outer-eye distance
    flicker: float  # change from frame to frame in the mouth's box, by that of the video before


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry dub", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--audio", type=Path, required=True)
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--max-frames", type=int, default=28)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    speaker, renderer = AudioToMotion.from_pretrained(), MCVDM.from_pretrained()
    audio = torch.from_numpy(read_audio(args.audio))[: args.max_frames * 640 + 16000]
    persons: list[str] = []
    values: dict[str, list[Score]] = {MCVDM_NAME: [], WARP: [], NOTHING: [], REAL: []}
    for person, footage in read(args.data, args.split, args.max_frames):
        who = footage.person()
        speech = speaker(audio, who.lm3d, who.pose, who.size, pose="still").slice(25, 25 + args.max_frames)
        made = dub(footage, speech, "hold")
        begin = [frame.copy() for frame in made.pictures()]
        asked, had = made.motion.posed().numpy(), made.begin().numpy()
        scenes = [Scene.of_video(made) for _ in range(2)]
        shown = {
            MCVDM_NAME: list(scenes[0].frames(renderer.render(scenes[0].source, scenes[0].landmarks), "full")),
            WARP: list(scenes[1].frames(WarpRenderer(scenes[1].source).render(scenes[1].landmarks), "full")),
            NOTHING: begin,
        }
        for name, frames in shown.items():
            values[name].append(score(frames, asked, begin))
        values[REAL].append(score(begin, had, begin))
        persons.append(person)
    print(f"\n{count(persons)}, the first {args.max_frames} frames of each\n")
    pairs = [(MCVDM_NAME, REAL), (MCVDM_NAME, WARP)]
    print(table(COLUMNS, values, pairs, persons))


def read(data_dir: Path, split: str, max_frames: int) -> Iterator[tuple[str, Footage]]:
    """One clip a person, with the landmarks of its track."""
    model, taken = FaceModel.builtin(), set()
    for row in clips(data_dir, split):
        path = data_dir / "clips" / f"{row['clip_id']}.mp4"
        with np.load(data_dir / "tracks" / f"{row['clip_id']}.npz") as track:
            valid, landmarks = track["valid"], track["landmarks"].astype(np.float32)
        if is_word(row) or row["person"] in taken or len(valid) < max_frames or not valid[:max_frames].all():
            continue
        taken.add(row["person"])
        with VideoReader(path) as video:
            fps, size = video.fps, (video.width, video.height)
        points = torch.from_numpy(smooth(landmarks[:max_frames], float(fps)))
        lm3d, pose = frontalise(points, size[1], model)
        motion = Motion(lm3d, model.mean, pose, float(fps), size, model.name, model.convention)
        yield row["person"], Footage(path, motion, fps, 0, neutral(model.mean + lm3d, model) - model.mean)


def score(frames: Sequence[np.ndarray], asked: np.ndarray, begin: Sequence[np.ndarray]) -> Score:
    """frames, begin: uint8 [H, W, 3]; asked: [T, 68, 3], where the landmarks should be."""
    height, width = frames[0].shape[:2]
    every = range(1, len(frames), 3)
    errors = [100 * landmark_error(find_again(frames[k], asked[k]), asked[k], LIPS) for k in every]
    where = np.zeros((len(frames), height, width), bool)
    for k, points in enumerate(asked):
        where[k][mouth_box(points, height)] = True
    moved = [change(np.stack(each), where) for each in (frames, begin)]
    return Score(float(np.mean(errors)), moved[0] / max(moved[1], 0.1))
