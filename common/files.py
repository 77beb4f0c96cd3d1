"""Files that a user names: is it there, is it whole, may it be written; and writing one so that it is never half there.

Decoders play the first half of a broken download without a word, and a video of half a speech is a poor surprise, so
a file's own header is held against its bytes. Only lengths that the format states are used (RIFF, AIFF, AU, ISO base
media, Ogg pages, MP3's Xing header, Matroska), never estimates; "unknown", as pipes and live recorders write it, counts
as whole.
"""

import csv
import os
import secrets
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from common.errors import InputError

SLACK_BYTES = 4096  # writers of these formats miscount by a few bytes; 4 KiB of PCM at 16 kHz are 0.13 s
UNKNOWN_FROM = 0x7FFF_0000  # pipes write 0xFFFFFFFF (ffmpeg) or about 0x7FFFFFFF (sox, espeak-ng) for "unknown"
OGG_PAGE_MAX = 65307  # bytes: 27 + 255 + 255 * 255
MATROSKA_SEGMENT = 0x18538067
# What json, csv, zipfile, numpy, scipy and the operating system raise on damaged files, and our own ValueErrors.
UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    OSError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    csv.Error,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,  # from numpy's header parser
)


def check_input(path: Path, what: str) -> None:
    """Raise InputError unless `path` is a readable file that is not empty."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise InputError(f"There is no {what} at {path}: check the path.") from error
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{path} is {kind}: give the path of one {what}.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read: change its permissions, or give another {what}.")
    if size == 0:
        raise InputError(f"{path} is an empty file: give another {what}, or copy this one again.")


@contextmanager
def reading(path: Path, what: str, remedy: str = "export it again") -> Iterator[None]:
    """Raise InputError where there is no such file, or, naming it, for whatever the block raises on its content."""
    check_input(path, what)
    try:
        yield
    except InputError:
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        lacks = "it lacks " if isinstance(error, KeyError) else ""
        raise InputError(f"{path} is not a usable {what} ({lacks}{reason}): {remedy}.") from error


def check_whole(path: Path) -> None:
    """Raise InputError where the file's own header promises more bytes than there are."""
    if n_missing := missing_bytes(path):
        raise InputError(f"{path} is truncated, {n_missing} bytes of it are missing: copy or download it again.")


def check_output(path: Path, overwrite: bool = False) -> None:
    """Raise InputError unless a file can be written at `path`; create the folders above it."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: give the name of a file to write.")
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already: choose another name, or allow it with --overwrite.")
        path.parent.mkdir(parents=True, exist_ok=True)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} can't be written ({reason}): choose another place.") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"The folder {path.parent} is not writable: choose another place, or change its permissions.")


def check_result(path: Path, suffixes: tuple[str, ...], inputs: Iterable[Path | None], overwrite: bool = False) -> None:
    """`check_output`, and raise InputError where the name doesn't end as it must or is that of one of the inputs."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} is not named as what is to be written: let the name end in {' or '.join(suffixes)}")
    for given in inputs:
        if given is not None and is_file(path) and is_file(given) and path.samefile(given):
            raise InputError(f"{path} is an input of this run and would be lost: choose another name for the result")
    check_output(path, overwrite)


def check_folder(path: Path, inputs: Iterable[Path | None], overwrite: bool = False) -> None:
    """Raise InputError unless files can be written into a folder at `path`, which is made; with anything in it only

    for `overwrite`, and never with an input in it.
    """
    if is_file(path):
        raise InputError(f"{path} is a file: give the name of a folder to write into.")
    check_output(path / "index.html", overwrite=True)
    if any(path.iterdir()) and not overwrite:
        raise InputError(f"{path} holds files already: choose another folder, or allow it with --overwrite.")
    for given in inputs:
        if given is not None and is_file(given) and given.parent.samefile(path):
            raise InputError(f"{path} holds {given.name}, an input of this run: choose another folder.")


def is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a name can be
        return False


@contextmanager
def atomic_path(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` if the block succeeds and is removed if it doesn't."""
    check_output(path, overwrite)
    temporary = path.with_name(f".{path.stem[:60]}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield temporary
        check_output(path, overwrite)  # somebody else may have written it meanwhile
        temporary.replace(path)
    except OSError as error:  # a full disk, a folder that is gone or can't be written: inputs have errors of their own
        raise InputError(
            f"{path} can't be written ({error.strerror or error}): make room or choose another place."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def missing_bytes(path: Path) -> int:
    """How many bytes of a media file its header promises and the file lacks; 0 where nothing reliable is said."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            end, slack = _stated_end(file, size)
        except (
            struct.error,
            IndexError,
            OSError,
            OverflowError,
        ):  # a header that leads nowhere: the decoder will say so
            return 0
    return end - size if end - size > slack else 0


def _stated_end(file: BinaryIO, size: int) -> tuple[int, int]:
    """The offset at which the file should end, as its format says, and by how much writers of it miscount."""
    head = file.read(12)
    if head[:4] in (b"RIFF", b"FORM"):
        (length,) = struct.unpack("<I" if head[:4] == b"RIFF" else ">I", head[4:8])
        return (8 + length if length < UNKNOWN_FROM else 0), SLACK_BYTES
    if head[:4] == b".snd":
        offset, length = struct.unpack(">II", head[4:12])
        return (offset + length if length < UNKNOWN_FROM else 0), SLACK_BYTES
    if head[:3] == b"ID3" or (head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        return _mp3_end(file, head), 256  # an ID3v1 tag that was counted and removed
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _iso_end(file, size), 0
    if head[:4] == b"OggS":
        return _ogg_end(file, size), 0
    if head[:4] == b"\x1aE\xdf\xa3":
        return _matroska_end(file), 0
    return 0, 0


def _iso_end(file: BinaryIO, size: int) -> int:
    """MP4, MOV, M4A: the end of the last box at the top level."""
    offset = 0
    while offset + 8 <= size:
        file.seek(offset)
        length, kind = struct.unpack(">I4s", file.read(8))
        if not all(32 <= c < 127 or c == 0xA9 for c in kind):
            return 0  # padding or foreign bytes after the last box
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if length < 8:  # 0: to the end of the file
            return 0
        offset += length
    return offset


def _ogg_end(file: BinaryIO, size: int) -> int:
    """The end of the last page that begins in the file."""
    start = max(0, size - OGG_PAGE_MAX)
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) - page < 27 or tail[page + 4] != 0:
        return 0
    n_segments = tail[page + 26]
    lacing = tail[page + 27 : page + 27 + n_segments]
    return start + page + 27 + n_segments + sum(lacing)


def _matroska_end(file: BinaryIO) -> int:
    """Matroska, WebM: the end of the Segment element. Elements are an id and a length of 1 to 8 bytes, then data."""

    def number() -> tuple[int, int]:
        """A number with its marker bit, and the number of its value bits."""
        first = file.read(1)[0]
        n_bytes = 9 - first.bit_length()
        return int.from_bytes(bytes([first]) + file.read(n_bytes - 1), "big"), 7 * n_bytes

    file.seek(0)
    while True:
        element, _ = number()
        length, n_bits = number()
        length &= (1 << n_bits) - 1
        if length == (1 << n_bits) - 1:  # all ones: unknown
            return 0
        if element == MATROSKA_SEGMENT:
            return file.tell() + length
        file.seek(length, 1)


def _mp3_end(file: BinaryIO, head: bytes) -> int:
    """MP3 with a Xing or Info header that states its bytes (LAME and most encoders write one)."""
    start = 0
    if head[:3] == b"ID3":
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    file.seek(start)
    frame = file.read(256)
    tag = max(frame.find(b"Xing"), frame.find(b"Info"))
    if tag < 0:
        return 0
    (flags,) = struct.unpack(">I", frame[tag + 4 : tag + 8])
    if not flags & 2:
        return 0
    (n_bytes,) = struct.unpack(">I", frame[tag + 8 + 4 * (flags & 1) :][:4])
    return start + n_bytes
