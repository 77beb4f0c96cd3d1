"""How fast a dense face mesh is drawn over frames of three sizes:

    python -m benchmarks.geometry mesh [--threads N] [--pytorch3d]

Mesh: 35,721 vertices and 70,688 triangles (as many as the BFM's face), half an ellipsoid with a nose, two thirds as
high as the picture, in another place and turn in every frame. `see`: which triangle each pixel shows; `draw`: that,
normals, shading and mixing with the frame. Times: the median of the frames, and the slowest; busy: the processor's own
time, of all threads together, which other programs disturb less.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import markdown
from common.errors import InputError
from common.face import mesh, mesh_pytorch3d
from common.face.rotations import from_euler_rad
from common.face.view import draw
from common.memory import keep_freed_memory

SIZES = ((256, 256), (720, 1280), (1080, 1920))  # rows, columns
SIDE = 189  # vertices a side
FACE_HEIGHT = 2 / 3
PYTORCH3D_FRAMES = 2


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geometry mesh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores to use (default: all)")
    parser.add_argument("--pytorch3d", action="store_true", help="pytorch3d as well, on the same device")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the programs do
    if args.pytorch3d and not mesh_pytorch3d.is_importable():
        raise InputError("pytorch3d can't be imported: leave out --pytorch3d.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    points, triangles = (each.to(device) for each in face_mesh())
    load = os.getloadavg()[0]
    print(
        f"{len(points):,} vertices, {len(triangles):,} triangles; {args.frames} frames; torch {torch.__version__} on "
        f"{device.type}, {args.threads} thread(s) of {os.cpu_count()} cores, load {load:.1f} before\n"
    )
    rows = [row(points, triangles, size, args.frames) for size in SIZES]
    header = ["frame", "pixels of the mesh", "see, ms", "draw, ms", "draw, ms busy", "frames/s", "frames/s, busy"]
    print(markdown(header, rows))
    if args.pytorch3d:
        print(f"\npytorch3d on {device.type}: see, {PYTORCH3D_FRAMES} frames")
        for height, width in SIZES[:2]:
            placed = [place(points, height, width, k) for k in range(PYTORCH3D_FRAMES)]
            each = times_s(partial(mesh_pytorch3d.see, triangles=triangles, height=height, width=width), placed)
            print(f"- {width}x{height}: {np.median(each):.2f} s")


def face_mesh(side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Half an ellipsoid of height 2 with a nose: points [side², 3], x right, y down, z negative towards the camera."""
    line = torch.linspace(-1, 1, side)
    v, u = torch.meshgrid(line, line, indexing="ij")
    x, y = u * (1 - v**2 / 2).sqrt(), v * (1 - u**2 / 2).sqrt()  # a square, evenly on a disc
    bulge = (1 - x**2 - y**2).clamp(min=0).sqrt()
    nose = 0.25 * torch.exp(-((x / 0.12) ** 2) - ((y - 0.1) / 0.2) ** 2)
    points = torch.stack([0.75 * x, y, -0.8 * bulge - nose], dim=-1).view(-1, 3)
    number = torch.arange(side**2).view(side, side)
    a, b, c, d = (each.flatten() for each in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
    return points, torch.cat([torch.stack([a, c, b], dim=1), torch.stack([b, c, d], dim=1)])


def place(points: Tensor, height: int, width: int, number: int) -> Tensor:
    """The mesh in frame `number` of a picture: pixels [V, 3]."""
    generator = torch.Generator().manual_seed(number)
    turn = from_euler_rad(0.2 * torch.randn(3, generator=generator)).to(points)
    middle = torch.tensor([width / 2, height / 2, 0]) + 0.03 * height * torch.randn(3, generator=generator)
    return FACE_HEIGHT / 2 * height * points @ turn.mT + middle.to(points)


def row(points: Tensor, triangles: Tensor, size: tuple[int, int], n_frames: int) -> list[object]:
    height, width = size
    frame = torch.full((height, width, 3), 128, dtype=torch.uint8, device=points.device)
    placed = [place(points, height, width, k) for k in range(n_frames)]

    def whole(p: Tensor) -> object:
        return draw(frame, p, triangles, "grey", 0.75, mesh.see)

    see_s, whole_s = times_s(lambda p: mesh.see(p, triangles, height, width), placed), times_s(whole, placed)
    busy_s = times_s(whole, placed, time.process_time)
    n_pixels = np.median([len(mesh.see(p, triangles, height, width).row) for p in placed[:3]])
    cells = [f"{1e3 * np.median(each):.0f} (slowest {1e3 * max(each):.0f})" for each in (see_s, whole_s, busy_s)]
    return [
        f"{width}x{height}",
        f"{n_pixels:,.0f}",
        *cells,
        f"{1 / np.median(whole_s):.1f}",
        f"{1 / np.median(busy_s):.1f}",
    ]


def times_s(
    function: Callable[[Tensor], object], each: list[Tensor], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each call; the first is made twice, once to warm up."""
    seconds = []
    for points in [each[0], *each]:
        start = clock()
        function(points)
        if points.is_cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return seconds[1:]
