import signal
from dataclasses import dataclass

import pytest

from dsf.shell.command import run_command
from dsf.shell.errors import CommandFailed, UserError


@dataclass(frozen=True)
class Nothing:
    """No options."""


def failed_import(code: int) -> ImportError:
    """What pybind11 makes of an exception that a signal handler raised while a module's C code imported others."""
    error = ImportError("initialization failed")
    error.__cause__ = SystemExit(code)
    return error


def interrupted_import() -> ImportError:
    error = failed_import(0)
    error.__cause__ = KeyboardInterrupt()
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such task"), 2, "no such task"),
        (CommandFailed("unproven"), 1, "unproven"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, "ended by SIGTERM"),
        (failed_import(143), 143, "ended by SIGTERM"),
        (failed_import(129), 129, "ended by SIGHUP"),
        (interrupted_import(), 130, "interrupted"),
        (BrokenPipeError(), 141, "nobody reads the output any more (broken pipe)"),
        (FileNotFoundError(2, "No such file or directory", "gone"), 2, "No such file or directory: gone"),
        (ImportError("broken"), 1, "internal error, ImportError: broken; --debug shows where"),
    ],
)
def test_every_end_has_a_code_and_one_line(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["dsf-test"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def main(_: Nothing) -> int:
        raise error

    try:
        with pytest.raises(SystemExit) as stop:
            run_command(main, Nothing, "dsf-test", "Tests.")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stop.value.code == code
    assert capsys.readouterr().err == f"dsf-test: {line}\n"


def test_an_ordinary_exit_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["dsf-test", "--help"])
    with pytest.raises(SystemExit) as stop:
        run_command(lambda _: 0, Nothing, "dsf-test", "Tests.")
    assert stop.value.code == 0
    assert capsys.readouterr().err == ""
