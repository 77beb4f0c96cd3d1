"""What more pictures of the person bring: `python -m benchmarks.geometry references --data DIR`.

Running speech; one clip a person. The first picture is the clip's first valid frame, as everywhere; the two others are
the frames with the widest mouth and with the head turned farthest from it, from parts of the clip that are not judged.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.renders import PICTURE_COLUMNS, Render, Scene, judge, mcvdm, read_scene
from benchmarks.report import clips, count, is_word, table
from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.media import VideoReader
from m2v.pipeline import MCVDM
from m2v.source import YAW_WEIGHT, Several, as_picture, difference, look_of

APART = 5  # frames between what is judged and what is shown
ONE, THREE = "one picture", "three, the nearest for every clip"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry references", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--max-frames", type=int, default=16, help="per clip (default 16: one clip of the renderer)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model = MCVDM.from_pretrained()
    others: dict[str, list[ReferencePicture]] = {}
    lit: list[float] = []
    n_chosen = [0, 0, 0]

    def several(scene_of: dict[int, str]) -> Render:
        def render(reference: ReferencePicture, landmarks: Tensor, frames: np.ndarray) -> np.ndarray:
            source = Several([reference, *others[scene_of[id(reference)]]])
            shown = np.stack([as_picture(frame) for frame in model.render(source, landmarks)])
            for k, n in enumerate(source.n_clips):
                n_chosen[k] += n
            return shown

        return render

    names: dict[int, str] = {}

    def scenes() -> Iterator[Scene]:
        for scene, more in read(args.data, args.split, args.max_frames):
            others[scene.name], names[id(scene.reference)] = more, scene.name
            lit.extend(difference(scene.reference, each) for each in more)
            yield scene

    seen, values, _ = judge(scenes(), {ONE: mcvdm(model), THREE: several(names)}, every=4)
    persons = [scene.person for scene in seen]
    print(f"\nRunning speech: {count(persons)}; the face came from the first, the widest mouth, the farthest turn in")
    print(f"{', '.join(map(str, n_chosen))} clips of the renderer; {len(lit)} pictures are lit differently by")
    print(f"{min(lit):.1f} to {max(lit):.1f} levels (median {np.median(lit):.1f})\n")
    print(table(PICTURE_COLUMNS, {name: values[name] for name in (ONE, THREE)}, [(THREE, ONE)], persons))


def read(data_dir: Path, split: str, max_frames: int) -> Iterator[tuple[Scene, list[ReferencePicture]]]:
    """One scene a person, and two more pictures of each."""
    face_model, taken = FaceModel.builtin(), set()
    for row in clips(data_dir, split):
        if is_word(row) or row["person"] in taken:
            continue
        scene = read_scene(data_dir, row, max_frames, face_model)
        if scene is None:
            continue
        with np.load(data_dir / "tracks" / f"{row['clip_id']}.npz") as track:
            valid, landmarks = track["valid"], track["landmarks"].astype(np.float32)
        with VideoReader(data_dir / "clips" / f"{row['clip_id']}.mp4") as video:
            frames = [frame for _, frame in video][: len(valid)]
        crop = scene.reference.crop
        assert crop is not None
        points = crop.points(landmarks)
        judged = int(np.abs(points - scene.landmarks[0].numpy()).sum((1, 2)).argmin())
        free = valid.copy()
        free[max(0, judged - APART) : judged + len(scene.landmarks) + APART] = False
        free[int(np.flatnonzero(valid)[0])] = False
        if not free.any():
            continue
        look = look_of(torch.from_numpy(points[..., :2])).numpy()
        turn = np.abs(look[:, 0] - look[int(np.flatnonzero(valid)[0]), 0]) / YAW_WEIGHT
        chosen = [int(np.where(free, measure, -np.inf).argmax()) for measure in (look[:, 2], turn)]
        taken.add(row["person"])
        yield scene, [ReferencePicture.of(frames[k], landmarks[k], face_model) for k in chosen]
