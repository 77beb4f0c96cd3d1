"""How programs end."""

import signal
import subprocess
import sys

import pytest
import torch

from common import entry
from common.errors import InputError


@pytest.mark.parametrize(
    "error, code, said",
    [
        (InputError("The file\n  is not there"), 2, "error: The file is not there\n"),
        (torch.OutOfMemoryError("CUDA"), 2, "error: The device's memory is full"),
        (KeyboardInterrupt(), 130, "nothing was written"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def program(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        entry.run(program)
    assert stopped.value.code == code
    printed = capsys.readouterr().err
    assert said in printed and len(printed.splitlines()) == 1


def test_what_is_our_own_fault_is_not_hidden() -> None:
    def program(argv: list[str]) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        entry.run(program)


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    program = "from common import entry; entry.run(lambda argv: print('a line'))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout and run.stderr
        run.stdout.close()  # long before it prints: it has yet to start
        assert (run.stderr.read(), run.wait()) == (b"", 141)


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        entry.run(lambda argv: None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
