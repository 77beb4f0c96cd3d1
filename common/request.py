"""What generate.py is asked for: flags, and after them Hydra overrides of conf/generate.yaml."""

import argparse
import re
import sys
from dataclasses import dataclass, field, replace
from os.path import realpath
from pathlib import Path

from common import entry
from common.errors import InputError
from common.export import formats
from common.files import check_folder, check_input, check_result, is_file

POSES = ("natural", "still")
POSE_ENDS = ("loop", "hold")
FRAMINGS = ("crop", "full")
SIZES = (256, 512)  # pixels of a crop; the renderers make 256
REFERENCES = ("nearest", "best")
RENDERERS = ("mcvdm", "warp")
DETECTORS = ("builtin", "face-alignment-2d", "face-alignment-3d")
CONVENTIONS = ("facemesh68", "ibug68", "ibug68_3d")
MOST_STEPS = 1000  # timesteps that the models were trained with
MOST_FRAMES = 10**6  # a span of more is a slip of the finger
MOST_SCALE = 3.0
MOST_TEMPERATURE = 2.0
BLINK_EVERY_S = (1.0, 60.0)
SCALES = ("mouth_scale", "expression_scale", "head_scale")
FLAG_OVERRIDES = {
    **{name: name for name in ("seed", "steps", "device", "pose", "pose_end", "framing", "size")},
    **{name: name for name in ("references", "detector", "convention", "blink", *SCALES)},
    "renderer": "m2v",
}


@dataclass
class AudioToMotionConfig:
    name: str = "???"  # which model: the files of conf/a2m
    weights: str = "???"  # built-in name, folder, or hub id
    hubert: str = ""  # of weights that hear the states of a HuBERT: its folder or hub id
    steps: int | None = None  # of sampling; None: the weights' own, as the next
    guidance_scale: float | None = None  # how closely AToM-Net keeps to what it hears; 1: no guidance
    temperature: float = 1.0  # of the noise that AToM-Net starts from; below 1 seeds are more alike


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
    pose: str = "natural"  # or still, or a video whose head is followed
    pose_end: str = "loop"  # or hold: where a video is shorter than the speech
    mouth_scale: float = 1.0  # how far lips and jaw go; 0: not at all, 1: as stage one has it
    expression_scale: float = 1.0  # the same of brows and what else of the face does not speak
    head_scale: float = 1.0  # the same of the head
    blink: str | None = None  # auto, off, or "every 4s"; None: auto, but off with the pose `still`
    framing: str | None = None  # crop or full; None: crop for pictures, full for videos
    size: int | None = None  # of the crop, pixels: 256 (None), or 512, which is 256 enlarged by what the picture shows
    references: str = "nearest"  # of several pictures: the nearest for every clip, or the best for all of them
    detector: str = "builtin"  # of landmarks
    convention: str | None = None  # of --landmarks; None: as the file says, else ibug68
    debug_frame: int | None = None  # which --debug-dir shows; None: that in which the mouth is open widest
    crf: int = 18  # quality of the H.264 stream, 0 (lossless) to 51

    @property
    def is_enlarged(self) -> bool:
        return self.size not in (None, SIZES[0])

    @property
    def faces_are_lent(self) -> bool:
        """Whether of several pictures more than the first is used: the warp alone knows one."""
        return self.references == "nearest" and self.m2v.name == "mcvdm"


@dataclass(frozen=True)
class Results:
    """What is to be written, None where it isn't: the video, the Motion, and the files of --export."""

    video: Path | None
    motion: Path | None
    exported: formats.Request | None


def parse(argv: list[str], description: str | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Flags, and the Hydra overrides among them; raises InputError for what doesn't go together."""
    args = parser(description).parse_intermixed_args(argv)
    # --image and --export take all that follows: overrides among that are those that look like one and are no file,
    # or don't end as one that can be exported (a folder may well be named seed=3).
    pictures, files = args.image or [], args.export or []
    args.image = [path for path in pictures if not is_override(str(path)) or is_file(path)]
    args.export = [path for path in files if not is_override(str(path)) or path.suffix.lower() in formats.WRITTEN]
    no_pictures = [str(path) for path in pictures if path not in args.image]
    overrides = no_pictures + [str(path) for path in files if path not in args.export] + args.overrides
    for override in overrides:
        if not is_override(override):
            raise InputError(f"'{override}' is neither a flag nor an override like seed=3 (--help lists the flags)")
        if override.startswith("+"):
            raise InputError(f"'{override}' adds a key that nothing reads: conf/generate.yaml names those there are")
    if no_pictures and not args.image:
        raise InputError(f"There is no picture at {no_pictures[0]}: check the path")
    if files and not args.export:
        raise InputError(f"--export names no file that ends in {', '.join(formats.WRITTEN)}: give one")
    for is_wrong, reason in _contradictions(args):
        if is_wrong:
            raise InputError(reason)
    return args, overrides


def parser(description: str | None) -> entry.Parser:
    whole = entry.Parser(
        prog="generate.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = whole.add_argument
    add("--audio", type=Path, metavar="FILE", help="speech: any sound file, or a video's sound")
    add("--image", type=Path, nargs="+", metavar="FILE", help="the person; several pictures of one day help")
    add("--video", type=Path, metavar="FILE", help="instead of a picture: a video of the person, to be dubbed anew")
    add("--out", type=Path, metavar="MP4", help="default: outputs/<audio>_<image>.mp4")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--seed", type=int, help="of all that is drawn (default 0); the same seed gives the same frames")
    add("--steps", type=int, help="sampling steps of both stages (default: what the weights say)")
    add("--device", help="auto, cpu or cuda (default: auto)")
    add(
        "--pose",
        metavar="HOW",
        help="natural: the head moves and blinks (default); still: neither (blinks with --blink, if you want them); "
        "or a video whose head it follows",
    )
    of = f"0 (none) to {MOST_SCALE:g}, 1 as made"
    add("--mouth-scale", type=float, metavar="X", help=f"how far lips and jaw go: {of}")
    add("--expression-scale", type=float, metavar="X", help="how far brows and the rest of the face go, likewise")
    add("--head-scale", type=float, metavar="X", help="how far the head goes, likewise")
    add(
        "--blink",
        metavar="WHEN",
        help="auto: as people do (default); off (default with --pose still); or 'every 4s', give or take a quarter",
    )
    add("--pose-end", choices=POSE_ENDS, help="where that video (or --video) ends first: to and fro (default), or hold")
    add("--framing", choices=FRAMINGS, help="crop: 256 px around the face (default); full: the whole picture, as large")
    add("--size", type=int, choices=SIZES, help="of the crop; 512: made at 256, with what finer detail the picture has")
    add(
        "--references",
        choices=REFERENCES,
        help="of several pictures: the nearest for every clip (default), or the best",
    )
    add("--keyframes", type=Path, metavar="NPZ", help="a Motion of this picture, edited, some of whose frames stay ...")
    add("--keep", metavar="FRAMES", help="... these, as in 0,10-20 (25 a second); what is around them is made to fit")
    add("--motion-only", type=Path, metavar="NPZ", help="stop after stage one and save the Motion")
    back, written = " ".join(formats.READ), " ".join(formats.WRITTEN)
    add("--motion", type=Path, metavar="FILE", help=f"start at stage two with this Motion, of whomever: {back}")
    add(
        "--export",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=f"stop after stage one (unless --out asks for a video too) and export the performance: {written}; "
        "the sound goes beside it",
    )
    formats.add_flags(whole)
    add("--renderer", choices=RENDERERS, help="stage two: mcvdm (diffusion) or warp (instant preview)")
    add("--debug-dir", type=Path, metavar="DIR", help="pictures of how one frame was made, and a page that shows them")
    add("--detector", choices=DETECTORS, help="of landmarks (default builtin); the others need the extra `detectors`")
    where = whole.add_mutually_exclusive_group()
    where.add_argument("--face-index", type=int, metavar="N", help="which face, the largest is 0")
    where.add_argument("--face-box", metavar="X0,Y0,X1,Y1", help="the face's box in pixels of the picture")
    where.add_argument(
        "--landmarks", type=Path, metavar="FILE", help="68 points (text, JSON or .npy) instead of detecting"
    )
    add("--convention", choices=CONVENTIONS, help="of --landmarks (default: as the file says, else ibug68)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides of conf/generate.yaml")
    return whole


def _contradictions(args: argparse.Namespace) -> list[tuple[bool, str]]:
    """What can't be asked for together, and what is said then."""
    chooses_face = args.face_index is not None or args.face_box or args.landmarks
    has_no_person = not args.image and not args.video
    needs_person = makes_video(args) or bool(args.motion and args.motion_only)
    return [
        (bool(args.image and args.video), "--image is animated, --video dubbed anew: give one of them"),
        (has_no_person and needs_person, "Give a picture of the person: --image FILE"),
        (
            not args.audio and not args.motion,
            "Give a recording to speak: --audio FILE (or a Motion made earlier: --motion NPZ)",
        ),
        (
            bool(args.motion and args.motion_only and not args.video),
            "--motion starts at stage two and --motion-only stops before it: give one of them",
        ),
        (bool(args.out and args.motion_only), "--motion-only names its own output and makes no video: drop --out"),
        (
            bool(args.debug_dir and not makes_video(args)),
            "--debug-dir shows stage two, which --motion-only and --export leave out: add --out, or drop it",
        ),
        (
            bool((args.renderer or args.size) and not makes_video(args)),
            "--renderer and --size are of the video, and none is asked for: leave them away, or name one with --out",
        ),
        (
            not args.export and formats.has_flags(args),
            "--fps, --key-error, --export-format and --face-model are of --export: name its files, or leave them away",
        ),
        (bool(args.keyframes) != bool(args.keep), "--keep says which frames of --keyframes stay: give both"),
        (bool(args.keyframes and args.motion), "--motion is taken as it is: leave --keyframes away"),
        (bool(args.keyframes and args.video), "--keyframes are a picture's: give --image instead of --video"),
        (bool(args.motion and args.pose), "--motion brings its own head motion: leave --pose away"),
        (bool(args.video and args.pose), "--video keeps the head motion that it has: leave --pose away"),
        (
            bool(chooses_face and (args.video or len(args.image) > 1)),
            "--face-index, --face-box and --landmarks describe one picture: give one --image with them",
        ),
    ]


def _contradictions_of(args: argparse.Namespace, config: GenerateConfig) -> list[tuple[bool, str]]:
    """The same for what overrides may have said too."""
    is_followed = config.pose not in POSES
    asks_for_end = args.pose_end is not None
    controls = [name for name in (*SCALES, "blink") if getattr(config, name) not in (None, 1.0)]
    no_mouth = [name for name in controls if name != "mouth_scale"]
    held: list[str] = [name for name in ("expression_scale", "head_scale") if name in controls]
    return [
        (bool(args.motion and controls), f"--motion brings what {_list(controls)} would change: leave one away"),
        (bool(args.video and no_mouth), f"--video keeps all but the mouth: leave {_list(no_mouth)} away"),
        (config.pose == "still" and bool(held), f"--pose still leaves {_list(held)} nothing to scale: leave one away"),
        (is_followed and "head_scale" in controls, "the head follows the video of --pose: leave --head-scale away"),
        (bool(args.keyframes and is_followed), "--keyframes hold the head too: leave the video of --pose away"),
        (bool(args.motion and is_followed), "--motion brings its own head motion: leave pose=... away"),
        (bool(args.video and is_followed), "--video keeps the head motion that it has: leave pose=... away"),
        (
            asks_for_end and not args.video and not is_followed,
            "--pose-end says how a video goes on that is too short: give one, with --pose or --video",
        ),
        (
            config.size is not None and framing(args, config) == "full",
            "--size is of the crop, the whole picture keeps its own: add --framing crop, or leave --size away",
        ),
        (
            config.debug_frame is not None and not args.debug_dir,
            "debug_frame says which frame --debug-dir shows: give both",
        ),
        (bool(config.convention and not args.landmarks), "--convention says what --landmarks are: give both"),
    ]


def _list(names: list[str]) -> str:
    """Fields as the flags that set them."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def blink_of(text: str | None) -> str | float | None:
    """auto, off or None as they are, "every 4s" as the number; raises InputError where it is none of these."""
    if text in (None, "auto", "off"):
        return text
    found = re.fullmatch(r"every\s*(\d+(?:\.\d+)?)\s*s", text or "")
    low, high = BLINK_EVERY_S
    if not found or not low <= float(found[1]) <= high:
        raise InputError(f"There is no blink '{text}': choose auto, off, or 'every 4s' ({low:g} to {high:g} s)")
    return float(found[1])


def frame_numbers(text: str) -> list[int]:
    """A list like 0,10-20 as its numbers; raises InputError where it is no such list."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < first + MOST_FRAMES:
            raise InputError(f"'{part}' names no frames to keep: give numbers and spans of them, as in --keep 0,10-20")
        numbers += range(first, last + 1)
    return numbers


def is_override(text: str) -> bool:
    return "=" in text or text.startswith("~")


def compose(args: argparse.Namespace, overrides: list[str]) -> GenerateConfig:
    """conf/generate.yaml, then the overrides, then the flags that were given."""
    flags = {key: getattr(args, flag) for flag, key in FLAG_OVERRIDES.items() if getattr(args, flag) is not None}
    for key, value in flags.items():
        for override in [each for each in overrides if each.startswith((f"{key}=", f"{key}.name="))]:
            say(f"note: the flag for {key} ({value}) wins over the override {override}")
            overrides.remove(override)
    # Paths may hold what Hydra's grammar takes for its own.
    kept = {key: flags.pop(key) for key in ("pose", "device", "blink") if key in flags}
    given = [*overrides, *(f"{key}={value}" for key, value in flags.items())]
    config = entry.compose(entry.CONF_DIR, "generate", GenerateConfig, given)
    config = replace(config, **kept)
    _check(config)
    for is_wrong, reason in _contradictions_of(args, config):
        if is_wrong:
            raise InputError(reason)
    if config.steps is not None and (config.a2m.name, config.m2v.name) == ("regression", "warp"):
        say("note: neither the regression nor the warp samples in steps: --steps has no effect")
    return config


def _check(config: GenerateConfig) -> None:
    choices: dict[str, tuple[str | None, tuple[str, ...]]] = {
        "pose_end": (config.pose_end, POSE_ENDS),
        "references": (config.references, REFERENCES),
        "detector": (config.detector, DETECTORS),
        "renderer": (config.m2v.name, RENDERERS),
    }
    if config.framing is not None:
        choices["framing"] = (config.framing, FRAMINGS)
    if config.size is not None:
        choices["size"] = (str(config.size), tuple(map(str, SIZES)))
    if config.convention is not None:
        choices["convention"] = (config.convention, CONVENTIONS)
    for name, (value, known) in choices.items():
        if value not in known:
            raise InputError(f"There is no {name.replace('_', ' ')} '{value}': choose {' or '.join(known)}")
    if config.pose not in POSES and not is_file(Path(config.pose)):
        raise InputError(f"There is no pose '{config.pose}', and no such video: choose {', '.join(POSES)}, or a video")
    blink_of(config.blink)
    if not 0 <= config.a2m.temperature <= MOST_TEMPERATURE:
        raise InputError(f"a2m.temperature goes from 0 to {MOST_TEMPERATURE:g}, not {config.a2m.temperature:g}")
    for name in SCALES:
        if not 0 <= getattr(config, name) <= MOST_SCALE:
            raise InputError(f"{name} goes from 0 to {MOST_SCALE:g}, not {getattr(config, name):g}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"A seed is a whole number from 0 to {2**32 - 1}, not {config.seed}")
    if not 0 <= config.crf <= 51:
        raise InputError(f"crf goes from 0 (lossless) to 51, not {config.crf}")
    if config.debug_frame is not None and config.debug_frame < 0:
        raise InputError(f"debug_frame is a frame's number from 0 on, not {config.debug_frame}")
    steps = (("steps", config.steps, 1), ("a2m.steps", config.a2m.steps, 1), ("m2v.steps", config.m2v.steps, 0))
    for key, n, least in steps:
        if n is not None and not least <= n <= MOST_STEPS:
            raise InputError(f"{key} goes from {least} to {MOST_STEPS}, not {n}")


def framing(args: argparse.Namespace, config: GenerateConfig) -> str:
    """crop or full."""
    return config.framing or ("full" if args.video else "crop")


def makes_video(args: argparse.Namespace) -> bool:
    """Whether stage two is asked for."""
    return bool(args.out) or not (args.motion_only or args.export)


def results(args: argparse.Namespace, config: GenerateConfig) -> Results:
    """Where results go; raises InputError, before any work, where they can't."""
    from common.media import VIDEO_SUFFIXES

    if args.audio:
        check_input(args.audio, "sound file")
    followed = None if config.pose in POSES else Path(config.pose)
    inputs = [args.audio, args.motion, args.keyframes, args.landmarks, args.video, followed, *args.image]
    video = None
    if makes_video(args):
        person = args.video or args.image[0]
        video = args.out or Path("outputs") / f"{(args.audio or args.motion).stem}_{person.stem}.mp4"
        check_result(video, VIDEO_SUFFIXES, inputs, args.overwrite)
    if args.motion_only:
        check_result(args.motion_only, (".npz",), inputs, args.overwrite)
    if args.debug_dir:
        check_folder(args.debug_dir, inputs, args.overwrite)
    exported = formats.request_of(args, args.export, inputs) if args.export else None
    if exported and args.motion_only and realpath(args.motion_only) in map(realpath, exported.paths):
        raise InputError(f"{args.motion_only} is named by --motion-only and --export: give every file its own name")
    return Results(video, args.motion_only, exported)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
