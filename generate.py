"""One picture and a speech recording in, a talking-head video out:

    uv run generate.py --audio examples/speech.wav --image examples/portrait.jpg

Stage one (a2m) turns the sound into a Motion, stage two (m2v) turns the Motion and the picture into frames. After the
flags come Hydra overrides of conf/generate.yaml, such as `a2m.weights=PATH`; a flag wins over an override.
"""

import argparse
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from common import entry
from common.errors import InputError
from common.request import POSES, GenerateConfig, blink_of, compose, frame_numbers, framing, parse, results, say

if TYPE_CHECKING:  # torch takes seconds to import: a wrong flag should not wait for it
    import torch

    from a2m.keyframes import Keyframes
    from common.export.formats import Request
    from common.face.framing import ReferencePicture
    from common.face.pose_video import PoseTrack
    from common.motion import Motion
    from m2v.debug import Debug
    from m2v.dub import Dub, Footage
    from m2v.scene import Scene

Item = TypeVar("Item")

OPEN_MOUTH, TURNED_RAD = 0.15, 0.6  # a picture beyond these deserves a note


def main(argv: list[str]) -> None:
    """From files to a file, in the order things happen."""
    args, overrides = parse(argv, __doc__)
    config = compose(args, overrides)
    clock = Clock()
    wanted = results(args, config)
    with clock.stage("loading"):
        device = pick_device(config.device)
        given = read_motion(args) if args.motion else None
        keyframes = read_keyframes(args) if args.keyframes else None
        footage = read_footage(args.video, config.detector, device) if args.video else None
        references = [] if footage else read_references(args, config, device)
        driver = read_driver(Path(config.pose), config.detector, device) if config.pose not in POSES else None
    person = footage.person() if footage else references[0]
    if given:
        has_person = footage is not None or bool(args.image)
        motion = fitted(given, person, is_dub=footage is not None) if has_person else given
    else:
        with clock.stage("speech to motion"):
            motion = speak(config, read_speech(args.audio), person, device, footage is not None, keyframes)
    if driver:
        motion = follow_head(motion, driver, config.pose_end)
    dubbed = dub(footage, motion, config.pose_end) if footage else None
    made = dubbed.motion if dubbed else motion
    if wanted.motion:
        made.save(wanted.motion, overwrite=args.overwrite)
    lines = export(made, wanted.exported, args.overwrite) if wanted.exported else []
    if wanted.video:
        with clock.stage("motion to video"):
            scene = scene_of(dubbed) if dubbed else picture_scene(config, motion, references)
            render(config, scene, args, wanted.video, device)
    summary = f"{made.n_frames} frames, {made.duration_s:.2f} s ({clock})"
    print("\n".join(lines + [f"{path}: {summary}" for path in (wanted.motion, wanted.video) if path]))


def pick_device(name: str) -> "torch.device":
    """auto, cpu, cuda or cuda:N → torch.device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"There is no device '{name}': choose auto, cpu or cuda")
    device = torch.device(name)
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise InputError(
            f"The device {name} is not there or not usable: python -m common.doctor says why; try --device cpu"
        )
    return device


# ---- what comes in --------------------------------------------------------------------------------------------------


def read_speech(path: Path) -> "torch.Tensor":
    """A recording → float32 [n] at 16 kHz."""
    import torch

    from common.media import read_audio

    audio = torch.from_numpy(read_audio(path))
    if len(audio) < 16000 // 5:
        raise InputError(f"{path} lasts {len(audio) / 16000:.3f} s: a recording needs at least 0.2 s")
    return audio


def read_motion(args: argparse.Namespace) -> "Motion":
    """A Motion made earlier; a note where the recording that goes with it is longer or shorter."""
    motion = load_motion(args.motion)
    say(f"motion: {args.motion}, {motion.n_frames} frames at {motion.fps:g} frames/s")
    if args.audio:
        sound_s = len(read_speech(args.audio)) / 16000
        if abs(sound_s - motion.duration_s) > 1 / motion.fps:
            what = "the rest of the sound is left out" if sound_s > motion.duration_s else "the end is silent"
            say(f"note: the motion lasts {motion.duration_s:.2f} s, {args.audio} {sound_s:.2f} s: {what}")
    return motion


def load_motion(path: Path) -> "Motion":
    """A Motion, exported or not, whose landmarks are those of this project's face model."""
    from common.export.formats import read
    from common.face.model import FaceModel

    motion, model = read(path), FaceModel.builtin()
    if (motion.model, motion.convention) != (model.name, model.convention):
        raise InputError(
            f"The Motion's landmarks are those of '{motion.model}' ({motion.convention}), the renderer's those of "
            f"'{model.name}' ({model.convention}): make the Motion with this project's face model"
        )
    return motion


def read_keyframes(args: argparse.Namespace) -> "Keyframes":
    """Frames of an edited Motion."""
    from a2m.keyframes import Keyframes

    keyframes = Keyframes.of(load_motion(args.keyframes), frame_numbers(args.keep))
    say(f"keyframes: {int(keyframes.is_kept.sum())} of {args.keyframes}")
    return keyframes


def read_references(
    args: argparse.Namespace, config: GenerateConfig, device: "torch.device"
) -> list["ReferencePicture"]:
    """The pictures with their faces, cut and frontalised, the best first; without a picture, the model's mean face."""
    from common.face.choose import Choice, find_landmarks
    from common.face.framing import ReferencePicture, within_4k
    from common.face.model import FaceModel
    from common.media import read_picture

    model = FaceModel.builtin()
    if not args.image:
        say("no picture: the face model's mean face speaks")
        return [ReferencePicture.mean(model)]
    choice = Choice(args.face_index, args.face_box, args.landmarks, config.convention, config.detector, str(device))
    references = []
    for path in args.image:
        picture = read_picture(path)
        landmarks = find_landmarks(path, picture, choice)
        if config.framing == "full":
            size = picture.shape
            picture, landmarks = within_4k(picture, landmarks)
            if picture.shape != size:
                say(f"note: {path} is larger than 4K: it is made smaller")
        is_whole_used = config.framing == "full" or config.is_enlarged
        references.append(ReferencePicture.of(picture, landmarks, model, keep_whole=is_whole_used))
        if references[-1].opening > OPEN_MOUTH and len(args.image) == 1:
            say(f"note: the mouth in {path} is open: one with a closed mouth looks better")
        if references[-1].turn_rad > TURNED_RAD and len(args.image) == 1:
            say(f"note: the head in {path} is turned far to the side: a frontal picture looks better")
    order = sorted(range(len(references)), key=lambda k: references[k].opening + references[k].turn_rad)
    if len(references) > 1:
        lent = "; those like it lend their faces where they are nearer"
        also = lent if config.faces_are_lent else ", the others are not used"
        say(f"of {len(references)} pictures, {args.image[order[0]]} comes first (frontal, mouth closed){also}")
    return [references[k] for k in order]


def read_footage(path: Path, detector: str, device: "torch.device") -> "Footage":
    """The video to be dubbed, its face followed."""
    from m2v.dub import Footage

    footage = Footage.read(path, detector, str(device))
    say(f"video: {path}, {footage.motion.n_frames} frames at {footage.motion.fps:g} frames/s with a face")
    return footage


def read_driver(path: Path, detector: str, device: "torch.device") -> "PoseTrack":
    """The head of a driving video, frame by frame."""
    from common.face.model import FaceModel
    from common.face.pose_video import read_pose

    track = read_pose(path, FaceModel.builtin(), detector, str(device))
    say(f"head: {path}, {len(track.time_s)} frames")
    return track


# ---- stage one ------------------------------------------------------------------------------------------------------


def speak(
    config: GenerateConfig,
    audio: "torch.Tensor",
    person: "ReferencePicture",
    device: "torch.device",
    is_dub: bool,
    keyframes: "Keyframes | None" = None,
) -> "Motion":
    """Sound → Motion; of a dubbed video only the mouth is asked for."""
    from a2m.control import Control
    from a2m.pipeline import AudioToMotion, PoseMode

    model = AudioToMotion.from_pretrained(config.a2m.weights, device, config.a2m.hubert)
    pose: PoseMode = "still" if config.pose == "still" or is_dub else "natural"
    motion = model(
        audio,
        person.lm3d,
        person.pose,
        person.size,
        pose=pose,
        seed=config.seed,
        n_steps=config.steps or config.a2m.steps,
        guidance_scale=config.a2m.guidance_scale,
        temperature=config.a2m.temperature,
        keyframes=keyframes,
        control=Control(config.mouth_scale, config.expression_scale, config.head_scale, blink_of(config.blink)),
    )
    head = "of the video" if is_dub else config.pose
    say(f"stage one: {model.name} ({config.a2m.weights}), head {head}, {motion.n_frames} frames")
    return motion


def fitted(motion: "Motion", person: "ReferencePicture", is_dub: bool) -> "Motion":
    """A Motion that names no reference is somebody's performance: mouth, lids and pose are carried over.

    One that does is a change of its own picture, which any picture can take up; a video needs the mouth itself.
    """
    from dataclasses import replace

    from common.face.model import FaceModel
    from common.face.reenact import reenact

    if motion.reference is not None and not is_dub:
        return motion
    motion = replace(motion, reference=None)
    say("the motion is followed as another person's: mouth and lids scaled, the head relative to the picture")
    return reenact(motion, person, FaceModel.builtin())


def follow_head(motion: "Motion", driver: "PoseTrack", end: str) -> "Motion":
    """The motion with the head of a driving video."""
    from common.face.model import FaceModel
    from common.face.pose_video import follow

    return follow(motion, driver, FaceModel.builtin(), "hold" if end == "hold" else "loop")


def dub(footage: "Footage", speech: "Motion", end: str) -> "Dub":
    from m2v.dub import dub as dubbed

    made = dubbed(footage, speech, "hold" if end == "hold" else "loop")
    if made.motion.n_frames > footage.motion.n_frames:
        say(f"note: the video is shorter than the speech: it {'is held' if end == 'hold' else 'plays to and fro'}")
    elif made.motion.n_frames < footage.motion.n_frames:
        say(f"note: the video is longer than the speech: it ends after {made.motion.duration_s:.2f} s")
    return made


def export(motion: "Motion", asked: "Request", overwrite: bool) -> list[str]:
    """Motion → files of animation tools → a line on each."""
    from common.export.formats import write

    notes, made = write(motion, asked, overwrite)
    for note in notes:
        say(note)
    return made


# ---- stage two ------------------------------------------------------------------------------------------------------


def picture_scene(config: GenerateConfig, motion: "Motion", references: list["ReferencePicture"]) -> "Scene":
    """Picture and Motion → what is to be rendered; held back to what a picture bears."""
    from common.face.model import FaceModel
    from m2v.drive import drive
    from m2v.preview import LIMITS
    from m2v.scene import Scene

    mean = FaceModel.builtin().mean
    landmarks = drive(motion, references[0], mean, LIMITS)
    if (landmarks - drive(motion, references[0], mean)).norm(dim=-1).max() > 3:
        say("note: the motion goes further than the picture can follow: turns, shifts and sizes are held back")
    return Scene.of_pictures(references if config.faces_are_lent else references[:1], landmarks, motion.fps)


def scene_of(dubbed: "Dub") -> "Scene":
    from m2v.scene import Scene

    return Scene.of_video(dubbed)


def render(
    config: GenerateConfig, scene: "Scene", args: argparse.Namespace, video_path: Path, device: "torch.device"
) -> None:
    """Frames → file."""
    from common.media import DUBBED, GENERATED, VideoWriter
    from m2v.source import Several

    shown = framing(args, config)
    width, height = scene.size(shown, config.size)
    watch = watcher(config, scene, args) if args.debug_dir else None
    frames = scene.frames(rendered(config, scene, device, watch), shown, config.size)
    if shown == "full":
        cut = "" if (width, height) == scene.whole_size else ", a row or column less: H.264 has no odd sides"
        say(f"full picture: {width}x{height}{cut}")
    if config.is_enlarged:
        side, made = scene.crops[0].side, scene.crops[0].size_px
        finer = f"with what finer detail the picture has (its square: {side} px)" if side > made else "nothing finer"
        say(f"size: {width}, made at {made} and enlarged, {finer}")
    statement = DUBBED if args.video else GENERATED
    writer = VideoWriter(
        video_path,
        width,
        height,
        fps=scene.fps,
        audio_path=args.audio,
        comment=statement,
        description=statement,
        overwrite=args.overwrite,
        crf=config.crf,
    )
    with writer:
        for frame in progress(frames, scene.n_frames, "frames"):
            writer.write(frame)
    if isinstance(scene.source, Several):
        used = zip(scene.source.n_clips, scene.source.lends, strict=True)
        each = ", ".join(f"{n}" if lends else "none (other light)" for n, lends in used)
        say(f"of {sum(scene.source.n_clips)} clips, the pictures, the first first, gave the face in: {each}")


def watcher(config: GenerateConfig, scene: "Scene", args: argparse.Namespace) -> "Debug":
    """Who draws how a frame is made."""
    from m2v.debug import Debug

    if config.debug_frame is not None and config.debug_frame >= scene.n_frames:
        raise InputError(f"There is no frame {config.debug_frame}: debug_frame goes from 0 to {scene.n_frames - 1}")
    watch = Debug(args.debug_dir, scene.begin, scene.landmarks, config.debug_frame, args.overwrite)
    say(f"debug: {args.debug_dir / 'index.html'} will show how frame {watch.frame} is made")
    return watch


def rendered(
    config: GenerateConfig, scene: "Scene", device: "torch.device", watch: "Debug | None" = None
) -> "Iterator[torch.Tensor]":
    """The chosen renderer at work."""
    if config.m2v.name == "warp":
        from m2v.preview import WarpRenderer

        say("stage two: warp (the picture bent along the landmarks; only a mouth's inside is painted)")
        return WarpRenderer(scene.source, device).render(scene.landmarks, watch)
    from m2v.pipeline import MCVDM

    model = MCVDM.from_pretrained(config.m2v.autoencoder, config.m2v.denoiser, device)
    n_steps = config.m2v.steps if config.steps is None else config.steps
    n_steps = model.denoiser.config.n_steps if n_steps is None else n_steps
    say(f"stage two: {model.name} ({config.m2v.denoiser}), {n_steps} steps a clip")
    return model.render(scene.source, scene.landmarks, config.seed, n_steps, config.m2v.guidance_scale, watch)


# ---- what is said ---------------------------------------------------------------------------------------------------


def progress(items: Iterator[Item], total: int, unit: str) -> Iterator[Item]:
    """A progress bar on a terminal, silence elsewhere."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, unit, total, console=console, transient=True, disable=not console.is_terminal)


class Clock:
    """Names each stage as it begins and keeps its seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        say(f"{name} ...")
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


if __name__ == "__main__":
    entry.run(main)
