"""Entry points run in this process."""

import sys
from collections.abc import Callable

from common import entry


def exit_code(program: Callable[[list[str]], None], *words: object) -> int:
    """Of a program with these words on its command line; what it said is captured by pytest."""
    before = sys.argv
    sys.argv = ["program", *map(str, words)]
    try:
        entry.run(program)
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0
