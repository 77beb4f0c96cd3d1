"""One picture and a speech recording in, a talking-head video out:

    uv run generate.py --audio examples/speech.wav --image examples/portrait.jpg

Stage one (a2m) turns the sound into a Motion, stage two (m2v) turns the Motion and the picture into frames. After the
flags come Hydra overrides of conf/generate.yaml, such as `a2m.weights=PATH`; a flag wins over an override.
"""

import argparse
import logging
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from common.errors import InputError
from common.memory import keep_freed_memory

if TYPE_CHECKING:  # torch takes seconds to import: a wrong flag should not wait for it
    import numpy as np
    import torch

    from common.face.framing import ReferencePicture
    from common.motion import Motion

Item = TypeVar("Item")

POSES = ("natural", "still")
RENDERERS = ("mcvdm", "warp")
MOST_STEPS = 1000  # timesteps that the models were trained with
OPEN_MOUTH, TURNED_RAD = 0.15, 0.6  # a picture beyond these deserves a note
FLAG_OVERRIDES = {"seed": "seed", "steps": "steps", "device": "device", "pose": "pose", "renderer": "m2v"}


@dataclass
class AudioToMotionConfig:
    name: str = "???"  # which model: the files of conf/a2m
    weights: str = "???"  # built-in name, folder, or hub id
    steps: int | None = None  # of sampling; None: the weights' own, as the next
    guidance_scale: float | None = None  # how closely AToM-Net keeps to what it hears; 1: no guidance


@dataclass
class MotionToVideoConfig:
    name: str = "???"  # which renderer: the files of conf/m2v
    autoencoder: str = ""  # weights of mcvdm: built-in names, folders, or hub ids
    denoiser: str = ""
    steps: int | None = None  # of sampling; None: the weights' own; 0: none, planes of zeros (a regression)
    guidance_scale: float = 1.0  # above 1 takes twice as long


@dataclass
class GenerateConfig:
    a2m: AudioToMotionConfig = field(default_factory=AudioToMotionConfig)
    m2v: MotionToVideoConfig = field(default_factory=MotionToVideoConfig)
    seed: int = 0  # of everything that is drawn
    steps: int | None = None  # sampling steps of both stages; None: what each says
    device: str = "auto"
    pose: str = "natural"  # or still
    crf: int = 18  # quality of the H.264 stream, 0 (lossless) to 51


def main() -> None:
    keep_freed_memory()
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal, `timeout`, a batch system: clean up as on Ctrl-C
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        args, overrides = parse(sys.argv[1:])
        generate(args, compose(args, overrides))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)


def stop(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def generate(args: argparse.Namespace, config: GenerateConfig) -> None:
    """From files to a file, in the order things happen."""
    clock = Clock()
    result_path: Path = args.motion_only or args.out or default_output(args)
    check_result(result_path, args)
    with clock.stage("loading"):
        device = pick_device(config.device)
        made_earlier = read_motion(args) if args.motion else None
        reference = read_reference(args)
    if made_earlier:
        motion = made_earlier
    else:
        with clock.stage("speech to motion"):
            motion = speak(config, read_speech(args.audio), reference, device)
    if args.motion_only:
        motion.save(result_path, overwrite=args.overwrite)
    else:
        with clock.stage("motion to video"):
            render(config, motion, reference, args, result_path, device)
    print(f"{result_path}: {motion.n_frames} frames, {motion.duration_s:.2f} s ({clock})")


# ---- what was asked for ---------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:]} (--help lists the flags)")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Flags, and the Hydra overrides among them."""
    parser = Parser(
        prog="generate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--audio", type=Path, metavar="FILE", help="speech: any sound file, or a video's sound")
    add(
        "--image",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="the person; of several, the most frontal with a closed mouth",
    )
    add("--out", type=Path, metavar="MP4", help="default: outputs/<audio>_<image>.mp4")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--seed", type=int, help="of all that is drawn (default 0); the same seed gives the same frames")
    add("--steps", type=int, help="sampling steps of both stages (default: what the weights say)")
    add("--device", help="auto, cpu or cuda (default: auto)")
    add("--pose", choices=POSES, help="natural: the head moves and blinks (default); still: as in the picture")
    add("--motion-only", type=Path, metavar="NPZ", help="stop after stage one and save the Motion")
    add("--motion", type=Path, metavar="NPZ", help="start at stage two with this Motion")
    add("--renderer", choices=RENDERERS, help="stage two: mcvdm (diffusion) or warp (instant preview)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--face-index", type=int, metavar="N", help="which face, the largest is 0")
    where.add_argument("--face-box", metavar="X0,Y0,X1,Y1", help="the face's box in pixels of the picture")
    where.add_argument(
        "--landmarks", type=Path, metavar="FILE", help="68 points (text, JSON or .npy) instead of detecting"
    )
    add("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides of conf/generate.yaml")
    args = parser.parse_intermixed_args(argv)
    # --image takes all that follows it: overrides among that are those that look like one and are no file.
    pictures = [path for path in args.image or [] if not is_override(str(path)) or is_file(path)]
    overrides = [str(path) for path in args.image or [] if path not in pictures] + args.overrides
    args.image = pictures
    for override in overrides:
        if not is_override(override):
            raise InputError(f"'{override}' is neither a flag nor an override like seed=3 (--help lists the flags)")
        if override.startswith("+"):
            raise InputError(f"'{override}' adds a key that nothing reads: conf/generate.yaml names those there are")
    if not pictures and overrides != args.overrides:
        raise InputError(f"There is no picture at {overrides[0]}: check the path")
    if not args.image and not (args.motion_only and not args.motion):
        raise InputError("Give a picture of the person: --image FILE")
    if not args.audio and not args.motion:
        raise InputError("Give a recording to speak: --audio FILE (or a Motion made earlier: --motion NPZ)")
    if args.motion and args.motion_only:
        raise InputError("--motion starts at stage two and --motion-only stops before it: give one of them")
    if args.out and args.motion_only:
        raise InputError("--motion-only names its own output and makes no video: leave --out away")
    if args.motion and args.pose:
        raise InputError("--motion brings its own head motion: leave --pose away")
    if args.image and len(args.image) > 1 and (args.face_index is not None or args.face_box or args.landmarks):
        raise InputError("--face-index, --face-box and --landmarks describe one picture: give one --image with them")
    return args, overrides


def is_override(text: str) -> bool:
    return "=" in text or text.startswith("~")


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a name can be
        return False


def compose(args: argparse.Namespace, overrides: list[str]) -> GenerateConfig:
    """conf/generate.yaml, then the overrides, then the flags that were given."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="generate_schema", node=GenerateConfig)
    flags = {key: getattr(args, flag) for flag, key in FLAG_OVERRIDES.items() if getattr(args, flag) is not None}
    for key, value in flags.items():
        for override in [each for each in overrides if re.match(rf"{key}(\.name)?=", each)]:
            say(f"note: the flag for {key} ({value}) wins over the override {override}")
            overrides.remove(override)
    try:
        with initialize_config_dir(str(Path(__file__).resolve().parent / "conf"), version_base="1.3"):
            composed = hydra_compose("generate", [*overrides, *(f"{key}={value}" for key, value in flags.items())])
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"The configuration does not fit ({reason}): conf/generate.yaml names what there is"
        ) from error
    assert isinstance(config, GenerateConfig)
    if config.pose not in POSES:
        raise InputError(f"There is no pose '{config.pose}': choose {' or '.join(POSES)}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"A seed is a whole number from 0 to {2**32 - 1}, not {config.seed}")
    if not 0 <= config.crf <= 51:
        raise InputError(f"crf goes from 0 (lossless) to 51, not {config.crf}")
    if config.steps is not None and not 1 <= config.steps <= MOST_STEPS:
        raise InputError(f"Sampling takes 1 to {MOST_STEPS} steps, not {config.steps}")
    if config.m2v.name not in RENDERERS:
        raise InputError(f"There is no renderer '{config.m2v.name}': choose {' or '.join(RENDERERS)}")
    for name, steps, least in (("a2m", config.a2m.steps, 1), ("m2v", config.m2v.steps, 0)):
        if steps is not None and not least <= steps <= MOST_STEPS:
            raise InputError(f"{name}.steps goes from {least} to {MOST_STEPS}, not {steps}")
    if config.steps is not None and (config.a2m.name, config.m2v.name) == ("regression", "warp"):
        say("note: neither the regression nor the warp samples in steps: --steps has no effect")
    return config


def default_output(args: argparse.Namespace) -> Path:
    return Path("outputs") / f"{(args.audio or args.motion).stem}_{args.image[0].stem}.mp4"


def check_result(path: Path, args: argparse.Namespace) -> None:
    """Before any work: can the result be written?"""
    from common.files import check_input, check_output
    from common.media import VIDEO_SUFFIXES

    if args.motion_only and path.suffix != ".npz":
        raise InputError(f"{path} is not named as a Motion: let the name end in .npz")
    if not args.motion_only and path.suffix.lower() not in VIDEO_SUFFIXES:
        raise InputError(f"{path} is not named as a video that can be written: let the name end in .mp4")
    if args.audio:
        check_input(args.audio, "sound file")
    for given in [args.audio, args.motion, args.landmarks, *(args.image or [])]:
        if given and is_file(path) and is_file(given) and path.samefile(given):
            raise InputError(f"{path} is an input of this run and would be lost: choose another name for the result")
    check_output(path, args.overwrite)


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
    from common.face.model import FaceModel, mouth_opening
    from common.motion import Motion

    motion = Motion.load(args.motion)
    model = FaceModel.builtin()
    if (motion.model, motion.convention) != (model.name, model.convention):
        raise InputError(
            f"The Motion's landmarks are those of '{motion.model}' ({motion.convention}), the renderer's those of "
            f"'{model.name}' ({model.convention}): make the Motion with this project's face model"
        )
    farthest_m = float((motion.landmarks - motion.rest.landmarks).abs().max()) * model.metres_per_unit
    if farthest_m > 0.15:
        raise InputError(f"{args.motion} moves points of the face by {farthest_m:.2g} m: it is no face, make it again")
    if motion.reference is None and mouth_opening(model.mean + motion.rest.landmarks) > OPEN_MOUTH:
        say("note: the motion's first frame, taken to be as in the picture, has an open mouth: it will open less")
    say(f"motion: {args.motion}, {motion.n_frames} frames at {motion.fps:g} frames/s")
    if args.audio:
        sound_s = len(read_speech(args.audio)) / 16000
        if abs(sound_s - motion.duration_s) > 1 / motion.fps:
            what = "the rest of the sound is left out" if sound_s > motion.duration_s else "the end is silent"
            say(f"note: the motion lasts {motion.duration_s:.2f} s, {args.audio} {sound_s:.2f} s: {what}")
    return motion


def read_reference(args: argparse.Namespace) -> "ReferencePicture":
    """The picture with its face, cut and frontalised; without a picture, the face model's mean face."""
    from common.face.framing import ReferencePicture
    from common.face.model import FaceModel
    from common.media import read_picture

    model = FaceModel.builtin()
    if not args.image:
        say("no picture: the face model's mean face speaks")
        return ReferencePicture.mean(model)
    references = []
    for path in args.image:
        picture = read_picture(path)
        references.append(ReferencePicture.of(picture, find_landmarks(args, path, picture), model))
        if references[-1].opening > OPEN_MOUTH:
            say(f"note: the mouth in {path} is open: one with a closed mouth looks better")
        if references[-1].turn_rad > TURNED_RAD:
            say(f"note: the head in {path} is turned far to the side: a frontal picture looks better")
    chosen = min(range(len(references)), key=lambda k: references[k].opening + references[k].turn_rad)
    if len(references) > 1:
        say(f"of {len(references)} pictures, {args.image[chosen]} is used: the most frontal with the mouth most closed")
    return references[chosen]


def find_landmarks(args: argparse.Namespace, path: Path, picture: "np.ndarray") -> "np.ndarray":
    """Landmarks [68, 3] of the face to animate: detected, or as the flags say."""
    from common.face import detect
    from common.face.landmark_file import check_landmarks, read_landmarks, with_depth
    from common.face.model import FaceModel

    if args.landmarks:
        points = read_landmarks(args.landmarks)
        check_landmarks(points, args.landmarks, picture.shape[1], picture.shape[0])
        return with_depth(points, picture.shape[0], FaceModel.builtin())
    if args.face_box:
        numbers = args.face_box.split(",")
        try:
            x0, y0, x1, y1 = (float(number) for number in numbers)
        except ValueError as error:
            raise InputError(f"--face-box takes four numbers x0,y0,x1,y1, not '{args.face_box}'") from error
        face = detect.landmarks_at(picture, (x0, y0, x1, y1))
        if face.score < 0.5 or not face.is_steady:
            say(f"note: nothing in --face-box {args.face_box} of {path} looks like a face: the result may be nonsense")
        return face.landmarks
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
    index = args.face_index or 0
    if not 0 <= index < len(faces):
        raise InputError(
            f"{path} shows {len(faces)} face(s), so --face-index goes from 0 to {len(faces) - 1}, not {index}"
        )
    if len(faces) > 1 and args.face_index is None:
        boxes = "; ".join(f"{k}: {','.join(f'{v:.0f}' for v in face.box)}" for k, face in enumerate(faces))
        say(f"note: {path} shows {len(faces)} faces, the largest is used; --face-index chooses ({boxes})")
    if faces[index].size_px < 48:
        say(f"note: the face in {path} is only {faces[index].size_px:.0f} pixels large: the result will be soft")
    return faces[index].landmarks


# ---- the two stages -------------------------------------------------------------------------------------------------


def speak(
    config: GenerateConfig, audio: "torch.Tensor", reference: "ReferencePicture", device: "torch.device"
) -> "Motion":
    """Stage one: sound → Motion."""
    from a2m.pipeline import AudioToMotion, PoseMode

    model = AudioToMotion.from_pretrained(config.a2m.weights, device=device)
    height, width = reference.picture.shape[:2]
    pose: PoseMode = "still" if config.pose == "still" else "natural"
    motion = model(
        audio,
        reference.lm3d,
        reference.pose,
        (width, height),
        pose=pose,
        seed=config.seed,
        n_steps=config.steps or config.a2m.steps,
        guidance_scale=config.a2m.guidance_scale,
    )
    say(f"stage one: {model.name} ({config.a2m.weights}), head {config.pose}, {motion.n_frames} frames")
    return motion


def render(
    config: GenerateConfig,
    motion: "Motion",
    reference: "ReferencePicture",
    args: argparse.Namespace,
    video_path: Path,
    device: "torch.device",
) -> None:
    """Stage two: Motion and picture → frames → file."""
    from common.face.model import FaceModel
    from common.media import VideoWriter
    from m2v.drive import drive
    from m2v.preview import LIMITS

    model = FaceModel.builtin()
    landmarks = drive(motion, reference, model.mean, LIMITS)
    if (landmarks - drive(motion, reference, model.mean)).norm(dim=-1).max() > 3:
        say("note: the motion goes further than the picture can follow: turns, shifts and sizes are held back")
    height, width = reference.picture.shape[:2]
    frames = frames_of(config, reference, landmarks, device)
    with VideoWriter(
        video_path, width, height, fps=motion.fps, audio_path=args.audio, overwrite=args.overwrite, crf=config.crf
    ) as writer:
        for frame in progress(frames, motion.n_frames, "frames"):
            writer.write(frame)


def frames_of(
    config: GenerateConfig, reference: "ReferencePicture", landmarks: "torch.Tensor", device: "torch.device"
) -> "Iterator[np.ndarray]":
    """The chosen renderer at work."""
    if config.m2v.name == "warp":
        from m2v.preview import WarpRenderer

        say("stage two: warp (the picture bent along the landmarks; only a mouth's inside is painted)")
        return WarpRenderer(reference, device).render(landmarks)
    from m2v.pipeline import MCVDM

    model = MCVDM.from_pretrained(config.m2v.autoencoder, config.m2v.denoiser, device)
    n_steps = config.m2v.steps if config.steps is None else config.steps
    n_steps = model.denoiser.config.n_steps if n_steps is None else n_steps
    say(f"stage two: {model.name} ({config.m2v.denoiser}), {n_steps} steps a clip")
    return model.render(reference, landmarks, config.seed, n_steps, config.m2v.guidance_scale)


# ---- what is said ---------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
    main()
