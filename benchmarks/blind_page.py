"""A folder of pairs as it is shown: its files, the answers, and the page that asks for them.

Which side is which is written in another file, of which nothing here knows: neither the page nor the server can tell.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from common.errors import InputError
from common.files import atomic_path

SIDES = ("a", "b")  # left and right
CHOICES = (*SIDES, "same")
ANSWERS = "answers.json"
PAGE = Path(__file__).with_name("blind.html")
TYPES = {".html": "text/html; charset=utf-8", ".json": "application/json", ".mp4": "video/mp4", ".png": "image/png"}
MOST_BYTES = 1000  # of what the page says at once


def pair_files(name: str) -> list[str]:
    return [*(f"{name}_{side}.mp4" for side in SIDES), f"{name}_strip.png", f"{name}_picture.png"]


def pair_names(folder: Path) -> list[str]:
    names = sorted(path.name.removesuffix("_a.mp4") for path in folder.glob("*_a.mp4"))
    if not names:
        raise InputError(f"{folder} holds no pairs: make them with `python -m benchmarks.blind make`.")
    return names


# ---- answers --------------------------------------------------------------------------------------------------------


def read_answers(folder: Path) -> dict[str, str]:
    """Name of the pair → a, b or same; empty before the first answer."""
    path, names = folder / ANSWERS, set(pair_names(folder))
    if not path.exists():
        return {}
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
        is_whole = answers.keys() <= names and all(each in CHOICES for each in answers.values())
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):  # not JSON, or another thing than a table
        is_whole = False
    if not is_whole:
        raise InputError(f"{path} is damaged or of other pairs: put a copy in its place, or remove it and begin anew.")
    return dict(answers)


def save_answers(folder: Path, given: Mapping[str, str]) -> None:
    """Add answers to those on disk; an earlier one to the same pair is replaced."""
    answers = {**read_answers(folder), **given}
    with atomic_path(folder / ANSWERS, overwrite=True) as temporary:
        temporary.write_text(json.dumps(dict(sorted(answers.items())), indent=1), encoding="utf-8")


def parse_answers(words: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """`7 a`, or `7=a 8=same`."""
    texts = ["=".join(words)] if len(words) == 2 and "=" not in "".join(words) else words
    by_number = {int(name): name for name in names}
    given = {}
    for text in texts:
        number, _, choice = text.partition("=")
        name = by_number.get(int(number)) if number.isdecimal() else None
        if name is None or choice not in CHOICES:
            raise InputError(f"{text} is no answer: give a pair from 1 to {len(names)} and a, b or same, as in 7=a.")
        given[name] = choice
    return given


# ---- page -----------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Of this machine alone: the page, the files of the pairs, and the answers. No other file has an address.

    Threads, since browsers hold connections open on which they ask nothing. port 0: any that is free.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.names = folder, pair_names(folder)
        self.files = {f"/{file}": folder / file for name in self.names for file in pair_files(name)} | {"/": PAGE}
        self.saving = threading.Lock()
        read_answers(folder)  # damaged ones are told of now
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"Port {port} can't be used ({error}): choose another with --port.") from error
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.server.files.get(self.path)
        if not self.is_ours():
            self.refuse(HTTPStatus.FORBIDDEN, "Only pages of this machine are answered.")
        elif self.path == "/state":
            self.send_state()
        elif path is None or not path.is_file():
            self.refuse(HTTPStatus.NOT_FOUND, "There is no such file.")
        else:
            self.send(HTTPStatus.OK, path.read_bytes(), path.suffix)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not self.is_ours() or self.headers.get_content_type() != "application/json":
            self.refuse(HTTPStatus.FORBIDDEN, "Only pages of this machine are answered.")
        elif self.path != "/answer" or not length.isdecimal() or int(length) > MOST_BYTES:
            self.refuse(HTTPStatus.BAD_REQUEST, "This is no answer.")
        else:
            try:
                said = json.loads(self.rfile.read(int(length)))
                given = parse_answers([f"{said['pair']}={said['choice']}"], self.server.names)
                with self.server.saving:
                    save_answers(self.server.folder, given)
            except InputError as error:
                self.refuse(HTTPStatus.BAD_REQUEST, str(error))
            except (ValueError, TypeError, KeyError):
                self.refuse(HTTPStatus.BAD_REQUEST, "This is no answer.")
            else:
                self.send_state()

    def is_ours(self) -> bool:
        """Not of another site's page, or under another name of this machine (DNS rebinding)."""
        origin = self.headers.get("Origin")
        hosts = self.server.hosts
        return self.headers.get("Host") in hosts and (origin is None or origin.removeprefix("http://") in hosts)

    def send_state(self) -> None:
        try:
            state = {"pairs": self.server.names, "answers": read_answers(self.server.folder)}
        except InputError as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        else:
            self.send(HTTPStatus.OK, json.dumps(state).encode(), ".json")

    def refuse(self, status: HTTPStatus, why: str) -> None:
        self.send(status, json.dumps({"error": why}).encode(), ".json")

    def send(self, status: HTTPStatus, body: bytes, suffix: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", TYPES[suffix])
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal keeps the address in view."""


def serve(folder: Path, port: int) -> None:
    with Server(folder, port) as server:
        print(
            f"http://127.0.0.1:{server.server_port}/ (end with Ctrl-C; answers are in {folder / ANSWERS})", flush=True
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
