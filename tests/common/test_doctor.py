"""The doctor: it tells the truth about what is here, and doesn't fall ill where things are missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import doctor, weights

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def findings() -> list[doctor.Finding]:
    return doctor.examine()


def test_without_any_package_it_names_each_and_exits_with_one() -> None:
    # -S leaves site-packages out: an interpreter with nothing but the standard library.
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "common.doctor"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == ""
    for package in ("numpy", "torch", "av", "soundfile", "rich"):
        assert any(
            line.startswith("problem") and f" {package}: not installed" in line for line in done.stdout.split("\n")
        )
    assert done.stdout.rstrip().split("\n")[-1].startswith("Duet can't make videos here: ")


def test_every_problem_has_a_remedy_and_no_check_failed(findings: list[doctor.Finding]) -> None:
    assert all(finding.remedy for finding in findings if finding.state == "problem")
    assert {finding.group for finding in findings} == {
        "Python", "Packages", "Computing", "Media", "Options", "Weights", "Room",
    }  # fmt: skip


def test_what_these_tests_run_on_is_reported_as_it_is(findings: list[doctor.Finding]) -> None:
    found = {finding.subject: finding for finding in findings}
    assert torch.__version__ in found["torch"].found
    assert (found.get("GPU 0") is not None) == torch.cuda.is_available()
    assert {f.subject for f in findings if f.group == "Packages" and f.state == "problem"} == set()
    assert "pillow" in found["core"].found
    assert found["video"].state == found["sound"].state == "ok"


def test_exit_code_and_last_sentence_agree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = doctor.Finding("A", "a", "ok", "here")
    note = doctor.Finding("A", "b", "note", "not here", "if you want it: get it")
    bad = doctor.Finding("B", "c", "problem", "missing [a/b]", "get it")
    for reported, code, sentence in (
        ([good, note], 0, "Duet can make videos here."),
        ([good, bad], 1, "Duet can't make videos here: c: missing [a/b] (remedy: get it)."),
        ([bad, bad], 1, "There is one more problem above."),
        ([bad, bad, bad], 1, "There are 2 more problems above."),
    ):
        monkeypatch.setattr(doctor, "CHECKS", (lambda reported=reported: reported,))
        assert doctor.main() == code
        printed = capsys.readouterr().out
        assert printed.rstrip().endswith(sentence)
        # Once per row and once in the sentence: brackets in a message are no markup.
        assert printed.count("[a/b]") == (0 if code == 0 else reported.count(bad) + 1)


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_the_moon() -> list[doctor.Finding]:
        raise OSError("no moon")

    monkeypatch.setattr(doctor, "CHECKS", (check_the_moon, doctor.check_python))
    broken, python = doctor.examine()
    assert (broken.subject, broken.state, broken.found) == ("the moon", "problem", "OSError: no moon")
    assert python.state == "ok"


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("numpy>=1.26", "numpy"),
        ("PyYAML", "pyyaml"),
        ("hydra-core ~= 1.3", "hydra-core"),
        ("ray[tune]>=2; python_version < '3.13'", "ray"),
        ("thing @ https://example.org/thing.whl", "thing"),
        ("a!=1", "a"),
    ],
)
def test_package_names_are_read_from_requirements(requirement: str, name: str) -> None:
    assert doctor._package_name(requirement) == name


def test_weights_are_described_without_loading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"a": torch.zeros(300, 500), "b": torch.zeros(7, dtype=torch.int64)}
    weights.save(tmp_path / "small" / "net", state, {"kind": "tiny", "width": 7, "sizes": [1, 2]})
    monkeypatch.setattr(doctor, "WEIGHTS_DIR", tmp_path)
    monkeypatch.setattr(doctor, "NEEDED_WEIGHTS", ("small/net", "small/other"))
    net, other, licence = doctor.check_weights()
    assert (net.subject, net.state) == ("small/net", "ok")
    assert "0.15 M values in BF16, I64; kind tiny, width 7" in net.found
    assert (other.subject, other.state, other.found) == ("small/other", "problem", "missing")
    assert "no licence file" in licence.found


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"\2\0\0\0\0\0\0\0[]", None])
def test_damaged_weights_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    weights.save(tmp_path / "small" / "net", {"a": torch.zeros(300)}, {"kind": "tiny"})
    path = tmp_path / "small" / "net" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    monkeypatch.setattr(doctor, "WEIGHTS_DIR", tmp_path)
    monkeypatch.setattr(doctor, "NEEDED_WEIGHTS", ("small/net",))
    net = doctor.check_weights()[0]
    assert net.state == "problem"
    assert net.found.startswith("damaged: ")


def test_all_built_in_weights_pass_and_come_with_their_licence() -> None:
    reported = {finding.subject: finding for finding in doctor.check_weights()}
    for name in weights.built_in():
        assert reported[name].state == "ok", reported[name].found
    if weights.built_in():
        assert "research" in reported["licence"].found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root can't write to")
def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir("/proc")
    assert {f.subject: f.state for f in doctor.check_room()}["outputs folder"] == "problem"
    monkeypatch.chdir(tmp_path)
    assert {f.subject: f.state for f in doctor.check_room()}["outputs folder"] == "ok"
    assert list(tmp_path.iterdir()) == []
