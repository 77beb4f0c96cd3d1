"""The blind comparison: what is dealt, that nothing but the key tells which is which, and that answers are kept."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from benchmarks import blind, blind_page
from benchmarks.renders import Render, Scene
from common.errors import InputError
from common.face.framing import ReferencePicture
from common.face.model import FaceModel
from common.media import VideoReader, read_picture

SIZE, N_FRAMES = 96, 8
DARK, LIGHT = 40, 200
NEW, OLD, PLAIN = DARK, LIGHT, (DARK + LIGHT) // 2  # the grey that each renderer paints everything with


def grey(level: int) -> Render:
    def render(reference: ReferencePicture, landmarks: Tensor, frames: np.ndarray) -> np.ndarray:
        return np.full((len(landmarks), SIZE, SIZE, 3), level, np.uint8)

    return render


RIVALS = {"formerly": grey(OLD), "bent": grey(PLAIN)}


def scenes(n: int) -> list[Scene]:
    """Every third one of single words."""
    nobody = ReferencePicture.mean(FaceModel.builtin(), SIZE)
    picture = np.full((SIZE, SIZE, 3), 90, np.uint8)
    landmarks = nobody.landmarks.repeat(N_FRAMES, 1, 1)
    landmarks[:, 66, 1] += torch.arange(N_FRAMES)  # the mouth opens
    none, valid = np.empty((0, SIZE, SIZE, 3), np.uint8), np.ones(N_FRAMES, dtype=bool)
    return [
        Scene(f"clip{k}", f"human{k}", k % 3 == 2, replace(nobody, picture=picture), landmarks, none, valid)
        for k in range(n)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blind") / "pairs"
    blind.make(folder, scenes(4), grey(NEW), RIVALS, n_pairs=5, seed=3)
    return folder


@pytest.fixture
def folder(made: Path) -> Iterator[Path]:
    """Without answers, before and after."""
    (made / blind_page.ANSWERS).unlink(missing_ok=True)
    yield made
    (made / blind_page.ANSWERS).unlink(missing_ok=True)


# ---- what is shown --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    is_word=st.lists(st.booleans(), min_size=1, max_size=30),
    n_rivals=st.integers(1, 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_pairs_are_dealt_evenly(is_word: list[bool], n_rivals: int, share: float, seed: int) -> None:
    rivals = ["one", "two", "three"][:n_rivals]
    n_pairs = max(1, round(share * len(is_word) * n_rivals))
    pairs = blind.deal(is_word, rivals, n_pairs, seed)
    assert len(pairs) == n_pairs
    assert pairs == blind.deal(is_word, rivals, n_pairs, seed)
    assert len({(scene, rival) for scene, rival, _ in pairs}) == n_pairs  # nothing twice
    per_person = Counter(scene for scene, _, _ in pairs)
    if n_pairs <= len(is_word):
        assert max(per_person.values()) == 1
        assert len(per_person.keys() & {k for k, each in enumerate(is_word) if not each}) == min(
            n_pairs, is_word.count(False)
        )
    else:
        assert max(per_person.values()) - min(per_person.values()) <= 1
    for chosen in [pairs, *([pair for pair in pairs if pair[1] == rival] for rival in rivals)]:
        sides = Counter(side for *_, side in chosen)
        assert abs(sides["a"] - sides["b"]) <= 1
    if n_pairs <= len(is_word):
        counts = [sum(rival == each for _, rival, _ in pairs) for each in rivals]
        assert max(counts) - min(counts) <= 1


def test_the_seed_decides_sides_and_order() -> None:
    dealt = [blind.deal([False] * 20, ["one"], 20, seed) for seed in range(100)]
    for place in range(20):  # 100 coins: outside 30..70 in 4e-5 of all places
        assert 30 <= sum(pairs[place][2] == "a" for pairs in dealt) <= 70
    assert len({tuple(scene for scene, *_ in pairs) for pairs in dealt}) == 100


def test_more_pairs_than_people_and_rivals_are_refused() -> None:
    with pytest.raises(InputError, match="ask for 1 to 6 pairs"):
        blind.deal([False] * 3, ["one", "two"], 7, seed=0)
    with pytest.raises(InputError, match="1 to 6"):
        blind.deal([False] * 3, ["one", "two"], 0, seed=0)


def test_the_key_says_which_video_is_which(folder: Path) -> None:
    pairs = blind.read_key(folder)
    assert [pair.name for pair in pairs] == ["01", "02", "03", "04", "05"]
    levels = {"formerly": OLD, "bent": PLAIN}
    for pair in pairs:
        for side in blind.SIDES:
            with VideoReader(folder / f"{pair.name}_{side}.mp4") as video:
                frames = np.stack([frame for _, frame in video])
            assert frames.shape == (N_FRAMES, SIZE, SIZE, 3)
            assert abs(frames.mean() - (NEW if side == pair.new else levels[pair.rival])) < 3
        assert read_picture(folder / f"{pair.name}_picture.png").shape == (SIZE, SIZE, 3)


def test_the_strip_has_a_above_b_twice() -> None:
    left, right = (np.full((N_FRAMES, SIZE, SIZE, 3), level, np.uint8) for level in (DARK + 20, LIGHT))
    strip = blind.strip(left, right, scenes(1)[0].landmarks)
    middle = strip[:, blind.MARGIN_PX + strip.shape[1] // 12, 0]
    levels = [int(value) for value in middle if value != blind.GREY]
    assert [level for k, level in enumerate(levels) if k == 0 or level != levels[k - 1]] == [DARK + 20, LIGHT] * 2
    n_large = [int((middle == level).sum()) for level in (DARK + 20, LIGHT)]
    assert n_large[0] == n_large[1] > SIZE + 3 * 16


def test_a_folder_that_is_there_is_left_alone(folder: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        blind.make(folder, scenes(1), grey(NEW), RIVALS, n_pairs=1, seed=0)


def test_nothing_is_left_of_pairs_that_failed(tmp_path: Path) -> None:
    def broken(reference: ReferencePicture, landmarks: Tensor, frames: np.ndarray) -> np.ndarray:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        blind.make(tmp_path / "pairs", scenes(2), grey(NEW), {"bent": broken}, n_pairs=2, seed=0)
    assert list(tmp_path.iterdir()) == []


@given(flags=st.lists(st.booleans(), max_size=12))
def test_the_longest_run_is_true_and_not_longer_anywhere(flags: list[bool]) -> None:
    run = blind.longest_run(np.array(flags, bool))
    assert all(flags[run])
    lengths = [len(part) for part in "".join("x" if flag else " " for flag in flags).split()]
    assert run.stop - run.start == max(lengths, default=0)


def test_rivals_have_names_and_weights() -> None:
    assert blind.named_rivals(["warp", "before=a/b,c"]) == {"warp": [], "before": ["a/b", "c"]}
    for wrong in (["wrap"], ["x="], ["x=a"], ["x=a,b,c"], ["=a,b"], ["warp=a,b"], ["warp", "warp"], ["x=a,b", "x=c,d"]):
        with pytest.raises(InputError, match="--against"):
            blind.named_rivals(wrong)


# ---- answers --------------------------------------------------------------------------------------------------------


def test_answers_are_read_as_they_are_given() -> None:
    names = ["01", "02", "10"]
    assert blind_page.parse_answers(["2", "a"], names) == {"02": "a"}
    assert blind_page.parse_answers(["1=same", "10=b"], names) == {"01": "same", "10": "b"}
    for wrong in (["1"], ["1", "c"], ["3=a"], ["a=1"], ["-1=a"], ["²=a"], ["1=a", "b"], ["1=a=b"], [""]):
        with pytest.raises(InputError, match="is no answer"):
            blind_page.parse_answers(wrong, names)


def test_a_later_answer_replaces_and_others_stay(folder: Path) -> None:
    blind_page.save_answers(folder, {"02": "a", "01": "b"})
    blind_page.save_answers(folder, {"02": "same"})
    assert blind_page.read_answers(folder) == {"01": "b", "02": "same"}


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"01": "c"}', '{"01": []}', '{"99": "a"}', "\ud800"])
def test_damaged_answers_are_one_sentence(folder: Path, text: str) -> None:
    (folder / blind_page.ANSWERS).write_bytes(text.encode("utf-8", "surrogatepass"))
    for call in (
        lambda: blind_page.read_answers(folder),
        lambda: blind_page.save_answers(folder, {"01": "a"}),
        lambda: blind_page.Server(folder, 0),
        lambda: blind.report(folder),
    ):
        with pytest.raises(InputError, match=r"answers\.json is damaged"):
            call()


# ---- report ---------------------------------------------------------------------------------------------------------


def test_the_verdict_is_that_counted_by_hand() -> None:
    n, wins, losses, ties, shares, as_half, p = blind.verdict(14, 4, 2)
    assert (n, wins, losses, ties, as_half) == (20, 14, 4, 2, "75%")
    # Wilson (1927) by hand: (14/18 + z²/36 ± z √(14·4/18³ + z²/(4·18²))) / (1 + z²/18), z = 1.95996
    assert shares == "78% (55%-91%)"
    assert float(str(p)) == pytest.approx(2 * binom.cdf(4, 18, 0.5), rel=0.05)
    assert blind.verdict(0, 0, 2) == [2, 0, 0, 2, "–", "50%", "–"]
    assert blind.verdict(0, 0, 0) == [0, 0, 0, 0, "–", "–", "–"]


def test_the_report_counts_the_side_of_the_new_one(folder: Path) -> None:
    pairs = blind.read_key(folder)
    for pair in pairs:  # the new one always wins against one rival, and never against the other
        other = "b" if pair.new == "a" else "a"
        blind_page.save_answers(folder, {pair.name: pair.new if pair.rival == "bent" else other})
    n_bent = sum(pair.rival == "bent" for pair in pairs)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in blind.report(folder).splitlines()[2:4]]
    table = {row[0]: row[1:5] for row in rows}
    assert table["bent"] == [str(n_bent), str(n_bent), "0", "0"]
    assert table["formerly"] == [str(5 - n_bent), "0", str(5 - n_bent), "0"]
    n_left = sum((pair.new == "a") == (pair.rival == "bent") for pair in pairs)
    assert f"preferred in {n_left} of 5 decided" in blind.report(folder)


def test_missing_answers_are_refused_unless_a_part_is_asked_for(folder: Path) -> None:
    blind_page.save_answers(folder, {"01": "same", "04": "same"})
    with pytest.raises(InputError, match=r"3 of 5 pairs are not answered \(2, 3, 5\)"):
        blind.report(folder)
    assert "3 of 5 not answered" in blind.report(folder, is_partial=True)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"pairs": [1]}', '{"pairs": [{"name": "01"}]}', "null"])
def test_a_damaged_key_is_one_sentence(folder: Path, text: str) -> None:
    whole = (folder / blind.KEY).read_text()
    try:
        (folder / blind.KEY).write_text(text)
        with pytest.raises(InputError, match=r"key\.json is damaged"):
            blind.report(folder)
    finally:
        (folder / blind.KEY).write_text(whole)


def test_other_videos_than_those_of_the_key_are_refused(folder: Path) -> None:
    path = folder / "03_b.mp4"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole + b"\0")
        with pytest.raises(InputError, match=r"03_b\.mp4 is not the file"):
            blind.report(folder, is_partial=True)
    finally:
        path.write_bytes(whole)


# ---- page -----------------------------------------------------------------------------------------------------------


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with blind_page.Server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def say(address: str, body: object, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    with urlopen(Request(f"{address}/answer", content, told)) as response:
        return json.load(response)


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(HTTPError) as caught:
        call()
    assert json.load(caught.value)["error"].endswith(".")
    return caught.value.code


def test_answers_are_on_disk_at_once_and_there_again_after_a_restart(folder: Path) -> None:
    with served(folder) as address:
        assert say(address, {"pair": "02", "choice": "b"})["answers"] == {"02": "b"}
        assert json.loads((folder / blind_page.ANSWERS).read_text()) == {"02": "b"}
        blind_page.save_answers(folder, {"03": "same"})  # from a terminal meanwhile
        assert say(address, {"pair": "02", "choice": "a"})["answers"] == {"02": "a", "03": "same"}
    with served(folder) as address, urlopen(f"{address}/state") as response:
        assert json.load(response) == {
            "pairs": ["01", "02", "03", "04", "05"],
            "answers": {"02": "a", "03": "same"},
        }


def test_nothing_that_is_served_tells_which_is_which(folder: Path) -> None:
    blind_page.save_answers(folder, {f"{k:02d}": "a" for k in range(1, 6)})  # not even when all are answered
    with blind_page.Server(folder, 0) as server:
        names = list(server.files)
    assert sorted(names) == sorted(["/", *(f"/{file}" for k in range(1, 6) for file in blind_page.pair_files(f"0{k}"))])
    secrets = [b"formerly", b"bent", b"human", b"clip", b"key.json", b"sha256"]
    with served(folder) as address:
        for name in [*names, "/state"]:
            with urlopen(address + name) as response:
                content = response.read()
                assert "Last-Modified" not in response.headers
            assert not [word for word in secrets if word in content], name
        page = urlopen(address).read().decode()
        assert "//127" not in page and "http:" not in page and "https:" not in page  # nothing from elsewhere
    for k in range(1, 6):  # of both videos all but the pictures is the same
        for tag in ("comment", "description", "encoder"):
            values = [metadata(folder / f"0{k}_{side}.mp4").get(tag) for side in blind.SIDES]
            assert values[0] == values[1]


def metadata(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return dict(container.metadata)


@pytest.mark.parametrize(
    "path",
    [
        "/key.json",
        "/answers.json",
        "/./key.json",
        "//key.json",
        "/01_a.mp4/../key.json",
        "/../pairs/key.json",
        "/..%2fpairs%2fkey.json",
        "/%6bey.json",
        "/../../../../etc/passwd",
        "/01_a.mp4?x",
        "key.json",
    ],
)
def test_no_other_file_has_an_address(folder: Path, path: str) -> None:
    blind_page.save_answers(folder, {"01": "a"})
    with served(folder) as address:
        connection = HTTPConnection(address.removeprefix("http://"))
        connection.putrequest("GET", path)  # as it is: urllib would tidy it
        connection.endheaders()
        assert connection.getresponse().status == 404
        connection.close()


def test_what_is_no_answer_of_this_page_is_refused(folder: Path) -> None:
    answer = {"pair": "01", "choice": "a"}
    with served(folder) as address:
        port = address.rpartition(":")[2]
        wrong: list[object] = [
            {"pair": "01", "choice": "c"},
            {"pair": "../key", "choice": "a"},
            {"pair": "01"},
            [],
            1,
            b"{",
        ]
        for each in wrong:
            assert refused(partial(say, address, each)) == 400
        assert refused(lambda: say(address, b" " * 2000)) == 400
        assert refused(lambda: say(address, answer, Host=f"evil.example:{port}")) == 403
        assert refused(lambda: say(address, answer, Origin="http://evil.example")) == 403
        assert refused(lambda: say(address, answer, Content_Type="text/plain")) == 403
        assert refused(lambda: urlopen(Request(address, headers={"Host": "evil.example"}))) == 403
        assert not (folder / blind_page.ANSWERS).exists()
        assert say(address, answer, Origin=f"http://localhost:{port}", Host=f"localhost:{port}")["answers"]


def test_answers_damaged_meanwhile_are_told_of_and_kept(folder: Path) -> None:
    with served(folder) as address:
        (folder / blind_page.ANSWERS).write_text("{")
        assert refused(lambda: urlopen(f"{address}/state")) == 500
        assert refused(lambda: say(address, {"pair": "01", "choice": "a"})) == 400
    assert (folder / blind_page.ANSWERS).read_text() == "{"


def test_a_taken_port_and_an_empty_folder_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    with blind_page.Server(folder, 0) as server, pytest.raises(InputError, match="choose another with --port"):
        blind_page.Server(folder, server.server_port)
    with pytest.raises(InputError, match="--port"):
        blind_page.Server(folder, 70_000)
    with pytest.raises(InputError, match="holds no pairs"):
        blind_page.Server(tmp_path, 0)
