"""A take to look at before it goes into anybody's tool: front and side views, the mouth's opening, the waveform.

Both views show world space at one scale, over a grid of 5 cm: the front as the camera sees it, the side from the
person's left. A video has a frame for every key; a picture has keys from all over the take, each above its time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from common import entry
from common.export import formats
from common.export.take import Take
from common.face.draw import CHANNELS, COLOURS
from common.face.model import INNER_LIP
from common.face.rotations import euler_rad
from common.files import check_result, is_file
from common.media import VIDEO_SUFFIXES, VideoWriter, read_audio, write_picture

DRAWN = "The 68 landmarks of a motion file, drawn by Duet: no recording of anybody."
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
SAMPLE_RATE_HZ = 16_000

# Pixels. Lines are drawn SUPERSAMPLING times as large; sizes and places are given as they are in the result.
SUPERSAMPLING = 2
PANEL, COLUMN = (560, 480), (150, 170)  # width and height of a view, in a video and in a picture
BELOW_PX, LEFT_PX, RIGHT_PX = 220, 120, 16  # height of the timeline, and what its curves leave free on both sides
WAVE_LANE, OPENING_LANE = (14, 84), (98, 194)  # top and bottom in it; without sound the opening has both
N_COLUMNS = 8
PAGE_S, MOST_PAGE_S = 10.0, 13.0  # a video shows 10 s of the timeline at a time, unless up to 13 s are all there is

MARGIN_M, GRID_M = 0.01, 0.05
DEPTH_M, FAINTEST = 0.07, 0.25  # what is so far behind the head's middle has that much of its colour
BACKGROUND, GRID, AXIS, TEXT = (22, 24, 29), (40, 44, 52), (72, 78, 90), (176, 184, 196)
WAVE, CURSOR, MOUTH, UNDER = (96, 122, 158), (255, 255, 255), (84, 16, 40), (72, 30, 50)
OPENING = COLOURS[2]  # as the lips
STROKES = tuple(
    (start, end, colour)
    for lines, colour in zip(CHANNELS, COLOURS, strict=True)
    for line in lines
    for start, end in pairwise(line)
)


@dataclass(frozen=True)
class View:
    """A direction to look from, without perspective. right, towards: where the picture's right and the eye are."""

    name: str
    right: tuple[int, int, int]
    towards: tuple[int, int, int]


VIEWS = (
    View("front", right=(1, 0, 0), towards=(0, 0, 1)),
    View("side", right=(0, 0, -1), towards=(1, 0, 0)),
)


@dataclass(frozen=True)
class Panel:
    """World space in a picture of `size` pixels: `centre` [3] is in the middle, px_per_m everywhere."""

    centre: np.ndarray
    px_per_m: float
    size: tuple[int, int]

    @staticmethod
    def of(take: Take, size: tuple[int, int]) -> Panel:
        """One that holds all keys in every view."""
        posed = take.posed
        low, high = posed.min(axis=(0, 1)) - MARGIN_M, posed.max(axis=(0, 1)) + MARGIN_M
        across, upright, deep = high - low
        return Panel((low + high) / 2, min(size[0] / max(across, deep), size[1] / upright), size)

    def place(self, points: np.ndarray, view: View) -> np.ndarray:
        """World points [..., 3] -> pixels [..., 2], y down."""
        beside, up = (points - self.centre) @ np.array(view.right), points[..., 1] - self.centre[1]
        return np.stack([beside, -up], axis=-1) * self.px_per_m + np.array(self.size) / 2

    def grid(self, view: View) -> Image.Image:
        """An empty picture but for lines every 5 cm, two of which cross in the world's origin; supersampled."""
        picture = _canvas(self.size)
        pen, (width, height) = ImageDraw.Draw(picture), picture.size
        x_0, y_0 = self.place(np.zeros(3), view) * SUPERSAMPLING
        step = GRID_M * self.px_per_m * SUPERSAMPLING
        if step > 8:  # else the head goes so far that all would be lines
            for x in np.arange(x_0 % step, width, step):
                pen.line([(x, 0), (x, height)], fill=GRID, width=SUPERSAMPLING)
            for y in np.arange(y_0 % step, height, step):
                pen.line([(0, y), (width, y)], fill=GRID, width=SUPERSAMPLING)
        return picture

    def face(self, grid: Image.Image, posed: np.ndarray, position: np.ndarray, view: View) -> Image.Image:
        """The points [68, 3] of a key over `grid`, near lines over far ones, which are fainter; of `size` again."""
        picture = grid.copy()
        pen = ImageDraw.Draw(picture)
        at = [(float(x), float(y)) for x, y in self.place(posed, view) * SUPERSAMPLING]
        nearness = (posed - position) @ np.array(view.towards) / DEPTH_M  # about -1 to 1
        pen.polygon([at[i] for i in INNER_LIP], fill=MOUTH)
        width = max(1, round(self.size[1] / 200 * SUPERSAMPLING))
        for start, end, colour in sorted(STROKES, key=lambda stroke: nearness[stroke[0]] + nearness[stroke[1]]):
            share = np.clip(1 + (nearness[start] + nearness[end]) / 2, 0, 1)
            pen.line([at[start], at[end]], fill=_mixed(colour, FAINTEST + (1 - FAINTEST) * share), width=width)
        return picture.reduce(SUPERSAMPLING)


@dataclass(frozen=True)
class Timeline:
    """The curves below. opening_mm: [T] at fps; sound: float32 [n] at 16 kHz, or none; width: of the picture."""

    opening_mm: np.ndarray
    fps: float
    sound: np.ndarray | None
    width: int

    @staticmethod
    def of(take: Take, sound: np.ndarray | None, width: int) -> Timeline:
        opening = 1000 * np.linalg.norm(take.points[:, 62] - take.points[:, 66], axis=-1)
        return Timeline(opening, take.fps, sound, width)

    @property
    def duration_s(self) -> float:
        return len(self.opening_mm) / self.fps

    @property
    def lane(self) -> tuple[int, int]:
        """Top and bottom of the mouth's curve."""
        return OPENING_LANE if self.sound is not None else (WAVE_LANE[0], OPENING_LANE[1])

    @property
    def highest_mm(self) -> float:
        """The top of the mouth's curve: at least 10 mm, so that a closed mouth looks closed."""
        return 1.1 * max(10.0, float(self.opening_mm.max()))

    def x(self, time_s: float, start_s: float, stop_s: float) -> float:
        return LEFT_PX + (time_s - start_s) / (stop_s - start_s) * (self.width - LEFT_PX - RIGHT_PX)

    def y(self, millimetres: float) -> float:
        top, bottom = self.lane
        return bottom - millimetres / self.highest_mm * (bottom - top)

    def draw(self, start_s: float, stop_s: float) -> Image.Image:
        """Everything from a time to a time, of `width` and BELOW_PX."""
        picture = Image.new("RGB", (self.width, BELOW_PX), BACKGROUND)
        picture.paste(self._curves(start_s, stop_s), (LEFT_PX, 0))
        pen = ImageDraw.Draw(picture)
        for value in _ticks(0, self.highest_mm, 4):
            _tell(pen, LEFT_PX - 8, self.y(value), f"{value:g} mm", "rm")
        for value in _ticks(start_s, stop_s, max(1, (self.width - LEFT_PX - RIGHT_PX) // 80)):
            x = self.x(value, start_s, stop_s)
            pen.line([(x, OPENING_LANE[1]), (x, OPENING_LANE[1] + 5)], fill=AXIS)
            _tell(pen, x, OPENING_LANE[1] + 8, f"{value:g} s", "mt")
        _tell(pen, 14, sum(self.lane) / 2, "mouth\nopening", "lm")
        if self.sound is not None:
            _tell(pen, 14, sum(WAVE_LANE) / 2, "sound", "lm")
        return picture

    def _curves(self, start_s: float, stop_s: float) -> Image.Image:
        """The waveform, scaled to its loudest, and the opening; what lies beside falls off the picture."""
        picture = _canvas((self.width - LEFT_PX - RIGHT_PX, BELOW_PX))
        pen, n_columns = ImageDraw.Draw(picture), picture.width
        for value in _ticks(0, self.highest_mm, 4):
            y = self.y(value) * SUPERSAMPLING
            pen.line([(0, y), (n_columns, y)], fill=GRID if value else AXIS, width=SUPERSAMPLING)
        keys = np.arange(max(0, int(start_s * self.fps) - 1), min(len(self.opening_mm), int(stop_s * self.fps) + 3))
        xs = (keys / self.fps - start_s) / (stop_s - start_s) * n_columns
        curve = [(float(x), self.y(mm) * SUPERSAMPLING) for x, mm in zip(xs, self.opening_mm[keys], strict=True)]
        floor = self.y(0) * SUPERSAMPLING
        pen.polygon([(curve[0][0], floor), *curve, (curve[-1][0], floor)], fill=UNDER)
        pen.line([(0, floor), (n_columns, floor)], fill=AXIS, width=SUPERSAMPLING)
        pen.line(curve, fill=OPENING, width=2 * SUPERSAMPLING, joint="curve")
        if self.sound is not None:
            middle, half = sum(WAVE_LANE) / 2 * SUPERSAMPLING, (WAVE_LANE[1] - WAVE_LANE[0]) / 2 * SUPERSAMPLING
            gain = half / max(0.01, float(np.abs(self.sound).max(initial=0)))
            pen.line([(0, middle), (n_columns, middle)], fill=WAVE, width=SUPERSAMPLING)
            edges = (np.linspace(start_s, stop_s, n_columns + 1) * SAMPLE_RATE_HZ).astype(int)
            for column, (first, last) in enumerate(pairwise(edges)):
                piece = self.sound[first : max(last, first + 1)] * gain
                if len(piece):
                    pen.line([(column, middle - piece.max()), (column, middle - piece.min())], fill=WAVE)
        return picture.reduce(SUPERSAMPLING)


def frames(take: Take, sound: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """uint8 [700, 1120, 3] for every key: both views, and the timeline with a cursor. sound: as in `Timeline`."""
    panel, timeline = Panel.of(take, PANEL), Timeline.of(take, sound, 2 * PANEL[0])
    grids = [panel.grid(view) for view in VIEWS]
    page_s = timeline.duration_s if timeline.duration_s <= MOST_PAGE_S else PAGE_S
    posed, turned_deg = take.posed, np.degrees(euler_rad(torch.from_numpy(take.rotation)).numpy())
    page, page_number = Image.new("RGB", (1, 1)), -1
    for key, time_s in enumerate(take.time_s):
        if int(time_s / page_s) != page_number:
            page_number = int(time_s / page_s)
            page = timeline.draw(page_number * page_s, (page_number + 1) * page_s)
        picture = Image.new("RGB", (2 * PANEL[0], PANEL[1] + BELOW_PX))
        for number, (view, grid) in enumerate(zip(VIEWS, grids, strict=True)):
            picture.paste(panel.face(grid, posed[key], take.position[key], view), (number * PANEL[0], 0))
        picture.paste(page, (0, PANEL[1]))
        pen = ImageDraw.Draw(picture)
        pitch, yaw, roll = turned_deg[key]
        _tell(pen, 14, 14, "front", "lt")
        _tell(pen, PANEL[0] + 14, 14, "side: the person's left", "lt")
        _tell(pen, 14, PANEL[1] - 14, "grid: 5 cm", "lb")
        _tell(pen, 2 * PANEL[0] - 14, 14, f"key {key} / {take.n_keys - 1}   {time_s:.2f} s   {take.fps:.6g} fps", "rt")
        _tell(pen, 2 * PANEL[0] - 14, 34, f"pitch {pitch:+.0f}°   yaw {yaw:+.0f}°   roll {roll:+.0f}°", "rt")
        x = timeline.x(time_s, page_number * page_s, (page_number + 1) * page_s)
        _cursor(pen, x, PANEL[1] + WAVE_LANE[0], PANEL[1] + timeline.y(timeline.opening_mm[key]), CURSOR)
        yield np.asarray(picture)


def strip(take: Take, sound: np.ndarray | None = None) -> np.ndarray:
    """Keys from all over the take, front above side, above their times: uint8 [560, 1336, 3] (narrower for few)."""
    n = min(N_COLUMNS, take.n_keys)
    keys = ((np.arange(n) + 0.5) / n * take.n_keys).astype(int)
    panel, timeline = Panel.of(take, COLUMN), Timeline.of(take, sound, LEFT_PX + n * COLUMN[0] + RIGHT_PX)
    below_px = 2 * COLUMN[1]
    picture = Image.new("RGB", (timeline.width, below_px + BELOW_PX), BACKGROUND)
    picture.paste(timeline.draw(0, timeline.duration_s), (0, below_px))
    pen, posed = ImageDraw.Draw(picture), take.posed
    for row, view in enumerate(VIEWS):
        grid = panel.grid(view)
        _tell(pen, 14, (row + 0.5) * COLUMN[1], view.name, "lm")
        for column, key in enumerate(keys):
            drawn = panel.face(grid, posed[key], take.position[key], view)
            picture.paste(drawn, (LEFT_PX + column * COLUMN[0], row * COLUMN[1]))
    for key, time_s in zip(keys, take.time_s[keys], strict=True):
        x = timeline.x(time_s, 0, timeline.duration_s)
        _cursor(pen, x, below_px, below_px + timeline.y(timeline.opening_mm[key]), TEXT)
        _tell(pen, x, 14, f"{time_s:.2f} s", "mt")
    return np.asarray(picture)


def write(take: Take, path: Path, audio_path: Path | None = None, overwrite: bool = False) -> None:
    """A video or a picture, as the name of `path` ends, with the speech's waveform (and sound) where there is one."""
    sound = None if audio_path is None else read_audio(audio_path, SAMPLE_RATE_HZ)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        write_picture(path, strip(take, sound), overwrite)
        return
    size = (2 * PANEL[0], PANEL[1] + BELOW_PX)
    with VideoWriter(path, *size, take.fps, audio_path, DRAWN, overwrite, description=DRAWN) as writer:
        for frame in frames(take, sound):
            writer.write(frame)


def _canvas(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), BACKGROUND)


def _mixed(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """A colour on the background, as if it were so opaque."""
    red, green, blue = (round(share * c + (1 - share) * b) for c, b in zip(colour, BACKGROUND, strict=True))
    return red, green, blue


def _tell(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, anchor: str) -> None:
    pen.text((x, y), text, fill=TEXT, font=ImageFont.load_default(13), anchor=anchor)


def _cursor(pen: ImageDraw.ImageDraw, x: float, top: float, y: float, colour: tuple[int, int, int]) -> None:
    """A line down to a point of the opening's curve, and a dot on it."""
    pen.line([(x, top), (x, y)], fill=colour)
    pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=OPENING, outline=colour)


def _ticks(low: float, high: float, most: int) -> np.ndarray:
    """Round numbers from low to high, at most `most` steps: 1, 2 or 5 times a power of ten apart."""
    power = 10 ** np.floor(np.log10((high - low) / most))
    step = next(power * each for each in (1, 2, 5, 10) if (high - low) / (power * each) <= most)
    return (np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) + 0.0) * step


def main(argv: list[str]) -> None:
    """`python -m common.motion view`."""
    parser = entry.Parser(prog="python -m common.motion", description="Motions and what they are exported to.")
    commands = parser.add_subparsers(required=True)
    view = commands.add_parser(
        "view", help="look at a take", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    view.add_argument(
        "take", type=Path, metavar="TAKE", help=f"a Motion, or an export of it: {', '.join(formats.READ)}"
    )
    view.add_argument(
        "out", type=Path, metavar="OUT", nargs="?", help="default: outputs/<take>_view.mp4; or .png, .jpg"
    )
    view.add_argument("--audio", type=Path, metavar="FILE", help="the speech (default: the .wav beside TAKE, if any)")
    view.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    beside = args.take.with_suffix(".wav")
    audio_path = args.audio or (beside if is_file(beside) else None)
    out_path = args.out or Path("outputs") / f"{args.take.stem}_view.mp4"
    check_result(out_path, (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES), [args.take, audio_path], args.overwrite)
    take = Take.of(formats.read(args.take))
    write(take, out_path, audio_path, args.overwrite)
    heard = f" with the sound of {audio_path}" if audio_path else ""
    print(f"{out_path}: {take.n_keys} keys, {take.n_keys / take.fps:.2f} s{heard}")
