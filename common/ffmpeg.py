"""Opening and decoding media through FFmpeg (PyAV), tolerant of damage, for `common.sound` and `common.media`."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from common.errors import InputError

log = logging.getLogger(__name__)


def open_container(path: Path) -> InputContainer:
    """Open a local file, and nothing but local files: a playlist in disguise must not reach for the network."""
    # Until PyAV 19, tags that are not UTF-8 (old WAV and AVI files) were an error unless one said otherwise.
    tags: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    container = av.open(f"file:{path.absolute()}", "r", options={"protocol_whitelist": "file"}, **tags)
    if container.format.name == "tty":  # FFmpeg would draw any text file as a video
        container.close()
        raise InputError(f"{path} is a text file: give a recording or a video.")
    return container


def is_cover(stream: Any) -> bool:
    """Whether a video stream is a picture attached to a sound file (album art)."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def origin_s(container: InputContainer) -> Fraction:
    """The time stamp at which players start: the earliest stream's; what lies before 0 is priming, never shown."""
    return max(Fraction(0), Fraction(container.start_time or 0, av.time_base))


def decoded(path: Path, container: InputContainer, stream: Any) -> Iterator[Any]:
    """The frames of one stream. Damaged packets are left out, counted and logged; InputError if most are."""
    n_packets = n_bad = 0
    for packet in container.demux(stream):
        n_packets += 1
        try:
            frames = packet.decode()
        except av.FFmpegError:
            n_bad += 1
            continue
        yield from frames
    if n_bad > n_packets / 2:  # random bytes can look like a few frames of MP3
        raise InputError(f"{path} is damaged or of an unknown kind: copy it again, or convert it.")
    if n_bad:
        log.warning("%s: %d of %d packets are damaged and left out.", path, n_bad, n_packets)
