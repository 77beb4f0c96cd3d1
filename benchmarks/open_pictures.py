"""Does the picture's own mouth show in the motion? A recording said by one person in two pictures: closed and open."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from a2m.data import Clip, read_clips, read_sound
from a2m.pipeline import AudioToMotion
from benchmarks import bars
from benchmarks.bars import Bar
from benchmarks.leaks import LEAST_RANGE
from benchmarks.report import Column, count, table
from benchmarks.shown import at_rest, speaking
from common.errors import InputError
from common.face.model import FaceModel

_MOST = 0.1


@dataclass(frozen=True)
class Difference:
    """Two opening curves [T] of the same speech, by the range of the first: mean, and what 95 % of the frames keep to;

    rest: how much more open the second is when nothing is said, signed; course: the mean without that.
    """

    mean: float
    most: float
    rest: float
    course: float

    @classmethod
    def of(cls, closed: Tensor, wide: Tensor, rests: tuple[float, float]) -> "Difference":
        by = float((closed.max() - closed.min()).clamp(min=1e-6))
        apart, rest = (wide - closed) / by, (rests[1] - rests[0]) / by
        about = float((apart - rest).abs().mean())
        return cls(float(apart.abs().mean()), float(apart.abs().quantile(0.95)), rest, about)


COLUMNS = (
    Column("mean", "mean"),
    Column("95 % of frames", "most"),
    Column("rest", "rest"),
    Column("mean, without the rest's", "course"),
)


def open_pictures(data_dir: Path, split: str, pipeline: AudioToMotion) -> None:
    """One clip of running speech a person: that in which the mouth opens widest."""
    widest: dict[str, tuple[float, Clip]] = {}
    for clip in read_clips(data_dir, split, FaceModel.builtin()):
        opened = float(clip.opening.max() - clip.opening.min())
        if not clip.is_word and opened >= LEAST_RANGE and opened > widest.get(clip.person, (0.0, clip))[0]:
            widest[clip.person] = (opened, clip)
    if not widest:
        raise InputError("no clip of running speech shows a mouth that opens and closes: choose other data")
    values, persons = [], list(widest)
    for _, clip in widest.values():
        audio = read_sound(data_dir, clip.name, len(clip.mel))
        pictures = [clip.lm3d[int(frame)] for frame in (clip.opening.argmin(), clip.opening.argmax())]
        closed, wide = (speaking(pipeline, audio, picture) for picture in pictures)
        values.append(Difference.of(closed, wide, (at_rest(pipeline, pictures[0]), at_rest(pipeline, pictures[1]))))
    print(f"Opening from a picture with the mouth open less that from a closed one, by its range: {count(persons)}\n")
    print(table(COLUMNS, {"ours": values}, [], persons) + "\n")
    print(Bar("difference, mean over frames", bars.mean([each.mean for each in values], persons), most=_MOST))
    print(Bar("what 95 % of the frames keep to", bars.mean([each.most for each in values], persons), most=_MOST))
