"""Takes made earlier, for animation tools:

    uv run python -m common.export convert take.npz take.glb take.usda --audio speech.wav
    uv run python -m common.export curves take.npz

`convert` reads whatever comes back as a Motion and writes what the new names end in; `curves` says how well each of
ARKit's curves tells what the points do.
"""

from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from common import entry
from common.export import formats


def main(argv: list[str]) -> None:
    parser = entry.Parser("python -m common.export", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    converts = commands.add_parser("convert", help="a take into other files")
    converts.set_defaults(run=convert)
    converts.add_argument("take", type=Path, help=f"what comes back: {' '.join(formats.READ)}")
    converts.add_argument("files", type=Path, nargs="+", help=f"what is written: {' '.join(formats.WRITTEN)}")
    converts.add_argument("--audio", type=Path, metavar="FILE", help="the speech, which goes beside them as .wav")
    converts.add_argument("--overwrite", action="store_true", help="replace files that exist")
    formats.add_flags(converts)
    tells = commands.add_parser("curves", help="ARKit's curves of a take: how far they go, what they leave over")
    tells.set_defaults(run=curves)
    tells.add_argument("take", type=Path)
    tells.add_argument("--face-model", metavar="FOLDER", help="ICT-FaceKit: its expressions instead of our basis")
    args = parser.parse_args(argv)
    args.run(args)


def convert(args: Namespace) -> None:
    asked = formats.request_of(args, args.files, [args.take, args.audio])
    notes, made = formats.write(formats.read(args.take), asked, args.overwrite)
    print("\n".join(notes + made))


def curves(args: Namespace) -> None:
    from common.export import arkit
    from common.export.take import Take
    from common.face.model import FaceModel

    take = Take.of(formats.read(args.take))
    model = FaceModel.load(args.face_model) if args.face_model else None
    print((arkit.solve(take, model) if model else formats.curves_of(take)).table())


if __name__ == "__main__":
    entry.run(main)
