"""utils/errors.py: every kind of trouble ends with its exit code and one line."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from utils.checkpoint import ForeignFile
from utils.errors import Diverged, EnvironmentFault, Terminated, UserError, exit_code, run


def oserror(number: int) -> OSError:
    return OSError(number, "reason")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x"), 2),
        (ForeignFile("x"), 2),
        (EnvironmentFault("x"), 3),
        (MemoryError(), 3),
        (torch.OutOfMemoryError("x"), 3),
        *((oserror(n), 3) for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EMFILE)),
        (oserror(errno.ENOENT), 1),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (Diverged("x"), 1),
        (ValueError("x"), 1),
        (AssertionError(), 1),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def ends_with(error: BaseException | None, result: int | None = None) -> int:
    def main() -> int | None:
        if error is not None:
            raise error
        return result

    with pytest.raises(SystemExit) as found:
        run(main)
    assert isinstance(found.value.code, int)
    return found.value.code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.txt:3: class 7; 0 to 0 was expected"), 2, "error: a.txt:3: class 7; 0 to 0 was expected"),
        (EnvironmentFault("disk full"), 3, "error: disk full"),
        (Diverged("the loss is not finite"), 1, "error: the loss is not finite"),
        (ValueError("boom"), 1, "error: ValueError: boom (a fault of ours; --debug shows where)"),
        (KeyboardInterrupt("saved"), 130, "interrupted: saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated("saved"), 143, "terminated: saved"),
    ],
)
def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str) -> None:
    assert ends_with(error) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", line + "\n")


def test_the_traceback_comes_with_debug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--debug"])
    assert ends_with(UserError("why")) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: why\n")


def test_what_main_returns_is_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert [ends_with(None, code) for code in (None, 0, 2)] == [0, 0, 2]
    assert capsys.readouterr() == ("", "")


def test_a_name_that_the_terminal_cannot_write_does_not_stop_a_run() -> None:
    code = "from utils.errors import run, UserError\ndef main():\n    print('\\u6ed1 \\udcff')\n    raise UserError('\\u5761')\nrun(main)"
    done = subprocess.run([sys.executable, "-X", "utf8=0", "-c", code], cwd=ROOT, capture_output=True, env={"PYTHONIOENCODING": "ascii"}, timeout=60)
    assert done.returncode == 2 and done.stdout == b"\\u6ed1 \\udcff\n" and done.stderr == b"error: \\u5761\n"
