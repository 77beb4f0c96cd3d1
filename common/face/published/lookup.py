"""Which published face model a name or a path means, and reading it.

`bfm`, `flame`, `ict` and `gnm` are looked for in `face_models/NAME/` of the repository, which git ignores: nobody may
pass these files on but their makers.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from common.errors import InputError
from common.face.model import FaceModel
from common.face.published import bfm, flame, gnm, ict
from common.face.published.assemble import Source

FACE_MODELS_DIR = Path(__file__).resolve().parents[3] / "face_models"
SOURCES = (bfm.SOURCE, flame.SOURCE, ict.SOURCE, gnm.SOURCE)
NAMES = tuple(source.name for source in SOURCES)


def load(name_or_path: str | Path) -> FaceModel | None:
    """The published face model that is meant, or None where none is; InputError where its files are not as they should.

    name_or_path: one of NAMES, or a path: BFM's `.mat`, FLAME's `.pkl` or `.npz`, ICT-FaceKit's folder, GNM's `.npz`.
    """
    found = find(name_or_path)
    if found is None:
        return None
    source, path = found
    read = {"bfm": bfm.read, "flame": flame.read, "ict": ict.read, "gnm": gnm.read}[source.name]
    try:
        return read(path)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, MemoryError, OSError) as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise InputError(f"{path} can't be read as {source.title} ({reason}): {source.get} again.") from error


def find(name_or_path: str | Path) -> tuple[Source, Path] | None:
    """The model's kind and the file or folder it is read from (which may not be there); None for other models."""
    if isinstance(name_or_path, str) and name_or_path in NAMES:
        folder = FACE_MODELS_DIR / name_or_path
        return {
            "bfm": (bfm.SOURCE, folder / bfm.FILE_NAME),
            "flame": (flame.SOURCE, flame.file_in(folder)),
            "ict": (ict.SOURCE, folder),
            "gnm": (gnm.SOURCE, folder / gnm.FILE_NAME),
        }[name_or_path]
    path = Path(name_or_path).expanduser()
    suffix = path.suffix.lower()
    if suffix == ".mat":
        return bfm.SOURCE, path
    if suffix == ".pkl":
        return flame.SOURCE, path
    if suffix == ".npz":
        return (gnm.SOURCE if _is_gnm(path) else flame.SOURCE), path
    if (path / bfm.FILE_NAME).is_file():
        return bfm.SOURCE, path / bfm.FILE_NAME
    if (path / gnm.FILE_NAME).is_file():
        return gnm.SOURCE, path / gnm.FILE_NAME
    if any((folder / name).is_file() for folder in (path, path / ict.FOLDER) for name in (ict.NEUTRAL, ict.CONFIG)):
        return ict.SOURCE, path
    return None


def _is_gnm(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{gnm.TEMPLATE}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return "gnm" in path.name.lower()
