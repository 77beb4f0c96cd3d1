"""Figures of the face geometry, one command a section of docs/geometry.md:

    python -m benchmarks.geometry fit|detect|pose|paste|mesh|references|dub [options]

`--help` after the command lists its options.
"""

import argparse
import sys

from benchmarks.report import run_main

_COMMANDS = ("fit", "detect", "pose", "paste", "mesh", "references", "dub")


def main(argv: list[str] | None = None) -> None:
    """Hand the rest of the command line to the command's own module, which is imported only then."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geometry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    if args.command == "fit":
        from benchmarks.geometry.fit import main as command
    elif args.command == "detect":
        from benchmarks.geometry.detect import main as command
    elif args.command == "pose":
        from benchmarks.geometry.pose import main as command
    elif args.command == "paste":
        from benchmarks.geometry.paste import main as command
    elif args.command == "mesh":
        from benchmarks.geometry.mesh import main as command
    elif args.command == "references":
        from benchmarks.geometry.references import main as command
    else:
        from benchmarks.geometry.dub import main as command
    run_main(lambda: command(args.options))


if __name__ == "__main__":
    main(sys.argv[1:])
