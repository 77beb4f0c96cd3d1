"""Which file a take goes into, by the suffix of its name, and which files come back as a Motion.

`request` says before any work whether files can be written, `write` writes all of them or none. On the way a Motion
becomes a take in metres (`take`), ARKit's curves say what its face does (`arkit`), meshes move by those curves and by
correctives (`morphs`). Each format is a module of its own.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError
from common.export import rates
from common.files import atomic_path, check_input, check_result, is_file

if TYPE_CHECKING:  # a wrong flag should not wait for torch
    from common.export.arkit import Curves
    from common.export.keys import Kept
    from common.export.morphs import MorphMesh
    from common.export.take import Take
    from common.face.model import FaceModel
    from common.motion import Motion

LIVELINK = "livelink"
MESHES = (".glb", ".usda", ".usdc")
WRITTEN = (*MESHES, ".csv", ".json", ".npz", ".c3d", ".bvh")
READ = (".npz", ".csv", ".json", ".c3d", ".glb", ".gltf")
_EXTRA = {".usda": "pxr", ".usdc": "pxr", ".c3d": "ezc3d"}  # what writes them, of the extra `export`
SLOWEST_FPS, FASTEST_FPS = 1.0, 1000.0
MOST_KEY_ERROR_MM = 10.0
MOST_MOVED_M = 0.15  # of a face's points


@dataclass(frozen=True)
class Request:
    """What to export.

    paths: the files to write; fps: their rate, None as the Motion's; key_error_mm: how far glTF and USD may be off
    where keys are left out, 0 leaves none out; is_livelink: CSV is that of Live Link Face; face_model: a dense one
    whose mesh glTF and USD get too; sound_path: the speech, and wav_paths: where it goes beside the files.
    """

    paths: tuple[Path, ...]
    fps: float | None = None
    key_error_mm: float = 0.0
    is_livelink: bool = False
    face_model: str | None = None
    sound_path: Path | None = None
    wav_paths: tuple[Path, ...] = ()


def add_flags(parser: ArgumentParser) -> None:
    """How files are exported."""
    add = parser.add_argument
    add("--fps", type=float, metavar="RATE", help="of exported files: 23.976, 24, 25, 29.97, 30, 50, 60, or any other")
    add(
        "--key-error",
        type=float,
        metavar="MM",
        help="leave out keys of .glb and .usd while all points stay within so many mm (default 0: all keys)",
    )
    add(
        "--export-format", choices=(LIVELINK,), help="livelink: .csv is what Live Link Face records (ARKit's 52 curves)"
    )
    add("--face-model", metavar="MODEL", help="bfm, flame, ict, gnm or a path: .glb and .usd get its whole mesh too")


def has_flags(args: Namespace) -> bool:
    return any(value is not None for value in (args.fps, args.key_error, args.export_format, args.face_model))


def request_of(args: Namespace, paths: Sequence[Path], inputs: Iterable[Path | None]) -> Request:
    """What flags ask for; see `request`."""
    return request(
        paths,
        inputs,
        args.overwrite,
        fps=args.fps,
        key_error_mm=args.key_error,
        form=args.export_format,
        face_model=args.face_model,
        sound_path=args.audio,
    )


def request(
    paths: Sequence[Path],
    inputs: Iterable[Path | None] = (),
    overwrite: bool = False,
    fps: float | None = None,
    key_error_mm: float | None = None,
    form: str | None = None,
    face_model: str | None = None,
    sound_path: Path | None = None,
) -> Request:
    """What is asked for, checked; raises InputError where it can't be."""
    is_livelink = form == LIVELINK
    if is_livelink and not any(path.suffix.lower() == ".csv" for path in paths):
        raise InputError("--export-format livelink is a kind of CSV: let a name in --export end in .csv")
    suffixes = {path.suffix.lower() for path in paths}
    for given, flag in ((key_error_mm, "--key-error"), (face_model, "--face-model")):
        if given is not None and not suffixes & set(MESHES):
            raise InputError(f"{flag} is for {', '.join(MESHES)}: export to one of them, or leave it away")
    if key_error_mm is not None and not 0 <= key_error_mm <= MOST_KEY_ERROR_MM:
        raise InputError(f"--key-error goes from 0 to {MOST_KEY_ERROR_MM:g} mm, not {key_error_mm:g}")
    if fps is not None and not SLOWEST_FPS <= fps <= FASTEST_FPS:
        raise InputError(f"--fps goes from {SLOWEST_FPS:g} to {FASTEST_FPS:g} keys a second, not {fps:g}")
    named = [_livelink_name(path) if is_livelink and path.suffix.lower() == ".csv" else path for path in paths]
    if len({realpath(path) for path in named}) < len(named):
        raise InputError("One of the files to export is named twice: give every file its own name")
    for path in named:
        check_result(path, WRITTEN, inputs, overwrite)
        _check_extra(path)
    wav_paths: list[Path] = []
    if sound_path:
        check_input(sound_path, "sound file")
        beside = dict.fromkeys(path.with_suffix(".wav") for path in named)
        # The recording itself may lie there already.
        wav_paths = [path for path in beside if not (is_file(path) and path.samefile(sound_path))]
        for path in wav_paths:
            check_result(path, (".wav",), inputs, overwrite)
    if face_model:
        from common.face.published import lookup

        if (found := lookup.find(face_model)) and not found[1].exists():
            raise found[0].missing(found[1])
    rate = None if fps is None else rates.exact(fps)
    return Request(tuple(named), rate, key_error_mm or 0.0, is_livelink, face_model, sound_path, tuple(wav_paths))


def write(motion: Motion, asked: Request, overwrite: bool = False) -> tuple[list[str], list[str]]:
    """Write the Motion into every file that is asked for, or into none; notes and what was written, a line each."""
    from common.export import keys
    from common.export.take import Take

    take = Take.of(motion)
    take = take if asked.fps is None else take.retimed(asked.fps)
    model = _face_model(asked.face_model) if asked.face_model else None
    has_meshes = any(path.suffix.lower() in MESHES for path in asked.paths)
    curves = curves_of(take, model) if asked.is_livelink or has_meshes else None
    meshes = _meshes(take, curves, model) if curves and has_meshes else []
    kept = keys.kept(take, asked.key_error_mm / 1000, meshes) if meshes else None
    sound_s = None
    with ExitStack() as files:
        for path in asked.paths:
            _write(files.enter_context(atomic_path(path, overwrite)), take, curves, meshes, kept, asked)
        for path in asked.wav_paths:
            from common.sound import copy_wav

            assert asked.sound_path is not None
            sound_s = copy_wav(asked.sound_path, files.enter_context(atomic_path(path, overwrite)))
    n_keys = f"{take.n_keys} key{'s' * (take.n_keys != 1)}"
    made = [f"{path}: {n_keys}, {take.fps:.6g} a second, {_size(path)}" for path in asked.paths]
    made += [f"{path}: the sound, {_size(path)}" for path in asked.wav_paths]
    notes = _notes(take, motion, asked, curves, kept)
    if sound_s is not None and abs(sound_s - motion.duration_s) > 1 / motion.fps:
        notes.append(f"the sound lasts {sound_s:.2f} s, the take {motion.duration_s:.2f} s: both begin at 0")
    return notes, made


def read(path: Path) -> Motion:
    """A Motion, or what `write` made of one and somebody edited; raises InputError that names the file."""
    from common.face.published.assemble import METRES_PER_UNIT
    from common.motion import Motion

    suffix = path.suffix.lower()
    motion = Motion.load(path) if suffix == ".npz" else _read(path, suffix).motion()
    farthest_m = float((motion.landmarks - motion.rest.landmarks).abs().max()) * METRES_PER_UNIT
    if farthest_m > MOST_MOVED_M:
        raise InputError(f"{path} moves points of the face by {farthest_m:.2g} m: it is no face, make it again")
    return motion


def _read(path: Path, suffix: str) -> Take:
    _check_extra(path)
    if suffix == ".csv":
        from common.export.table import read_csv

        return read_csv(path)
    if suffix == ".json":
        from common.export.table import read_json

        return read_json(path)
    if suffix == ".c3d":
        from common.export import c3d

        return c3d.read(path)
    if suffix in (".glb", ".gltf"):
        from common.export import gltf

        return gltf.read(path)
    check_input(path, "motion file")
    what = "doesn't come back as a Motion" if suffix in WRITTEN else "is no motion file"
    raise InputError(f"{path} {what}: give one that ends in {', '.join(READ)}.")


def _meshes(take: Take, curves: Curves, model: FaceModel | None) -> list[MorphMesh]:
    """The 68 points, and the whole mesh of a face model where there is one."""
    from common.export import morphs

    dense = [] if model is None else [morphs.model_mesh(take, model)]
    return [morphs.landmark_mesh(take, curves), *dense]


def _write(
    path: Path, take: Take, curves: Curves | None, meshes: list[MorphMesh], kept: Kept | None, asked: Request
) -> None:
    suffix = path.suffix.lower()
    if suffix in MESHES:
        from common.export import gltf, usd

        (gltf if suffix == ".glb" else usd).write(path, take, meshes, kept)
    elif suffix == ".csv" and asked.is_livelink:
        from common.export import livelink

        assert curves is not None
        livelink.write(path, take, curves)
    elif suffix == ".c3d":
        from common.export import c3d

        c3d.write(path, take)
    elif suffix == ".bvh":
        from common.export import bvh

        bvh.write(path, take)
    else:
        from common.export import table

        {".csv": table.write_csv, ".json": table.write_json, ".npz": table.write_npz}[suffix](path, take)


def curves_of(take: Take, model: FaceModel | None = None) -> Curves:
    """ARKit's curves: on ICT-FaceKit's expressions where it is the model or in face_models/, else on our own basis."""
    from common.export import arkit
    from common.face.model import FaceModel
    from common.face.published import ict
    from common.face.published.lookup import FACE_MODELS_DIR

    name = ict.SOURCE.name
    if (model is None or model.name != name) and (FACE_MODELS_DIR / name).is_dir():
        model = FaceModel.load(name)
    return arkit.solve(take, model if model and model.name == name else None)


def _face_model(name: str) -> FaceModel:
    from common.face.model import FaceModel

    model = FaceModel.load(name)
    if model.landmark_vertices is None:
        raise InputError(f"The face model {name} has no mesh, only landmarks: give bfm, flame, ict, gnm or a path")
    return model


def _livelink_name(path: Path) -> Path:
    from common.export import livelink

    return livelink.named(path)


def _check_extra(path: Path) -> None:
    module = _EXTRA.get(path.suffix.lower())
    if module and not find_spec(module):
        raise InputError(f"{path.suffix} needs the extra `export`: run it with `uv run --extra export`")


def _notes(take: Take, motion: Motion, asked: Request, curves: Curves | None, kept: Kept | None) -> list[str]:
    notes = []
    if not math.isclose(take.fps, motion.fps):
        notes.append(f"retimed: {motion.n_frames} frames at {motion.fps:.6g} a second became {take.n_keys} keys")
    if asked.is_livelink and curves is not None:
        notes.append(
            f"ARKit curves (basis: {curves.source}): points are off by {1000 * curves.total_residual_m:.2f} mm (root "
            "mean square); gaze, tongue and what else 68 points cannot see is 0"
        )
    if asked.key_error_mm and kept:
        n_face, n_head = len(kept.face), len(kept.head)
        notes.append(f"keys: {n_face} for the face and {n_head} for the head stay within {asked.key_error_mm:g} mm")
    return notes


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"
